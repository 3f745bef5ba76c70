"""The interface between the trainer and the tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.io.files import AnyPath
from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models.functional import Params

if TYPE_CHECKING:
    import tensorflow as tf

    from unimed_jax.reporting.html_report import Chart, Section


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluator.

    Attributes:
      metrics: name -> value, logged as ``<evaluator>/<name>``.
      table: a plain-text table for the terminal.
      sections: creates the sections of the HTML report; called only when a report is written.
      files: folder -> JSON text, written next to the results as FOLDER/EVALUATOR.json.
      headline: the metrics to show at the top of the report.
    """

    metrics: Mapping[str, float]
    table: str = ""
    sections: Callable[[], Sequence[Section]] = field(default=lambda: ())
    files: Mapping[str, str] = field(default_factory=dict)
    headline: Sequence[str] = ()


Evaluator = Callable[[Params], Evaluation]


class Task(Protocol):
    """A model with its loss, data and evaluators, as the trainer sees it.

    Every host creates the task from (config, workdir). A task holds no parameters. Its constructor
    and ``batch_spec`` read only files that determine the shapes of the parameters, so that the
    train step can be compiled without data and tokenizer. The module of a task also has
    ``default_config() -> dict`` (the keys of this task alone) and ``validate(config)``.
    """

    def __init__(self, config: ConfigDict, workdir: str) -> None:
        """Creates the task from a whole config and the work directory of the run."""

    @property
    def record_schema(self) -> str:
        """Schema of the records that ``decode`` reads (``records.Schema.name``)."""

    @property
    def parameter_axes(self) -> ParameterAxes:
        """(path regex, logical axis of each dim) for all parameters; see ``sharding``."""

    evaluator_classes: ClassVar[Mapping[str, type]]
    """Evaluators that ``config.evals`` may name; the first is the default."""

    @property
    def asset_fingerprints(self) -> Mapping[str, Any]:
        """Hashes of files that the weights depend on, such as a tokenizer; for checkpoints."""

    @property
    def charts(self) -> Sequence[Chart]:
        """Training curves of this task in the report, after the loss."""

    def save_assets(self, workdir: str) -> None:
        """Copies files that a finished run needs besides its checkpoints into ``workdir``."""

    def init(self, key: jax.Array) -> Params:
        """Random parameters, a nested dict of arrays. Must be pure: it is jitted and sharded."""

    def pretrained(self, abstract_params: Params) -> Params:
        """Pretrained weights of ``config.init``: host arrays for a sub-tree, possibly empty."""

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Loss and scalar metrics of the global batch.

        With ``config.optimizer.accumulate_steps`` = A > 1, the loss stays the same, but only the
        activations of 1/A of the rows are in memory (``gradient_caching.map_rows``); a task without
        support for this rejects the key.

        Running statistics are part of the parameters and are listed in ``optimizer.frozen``; their
        new values are returned as the metric ``statistics``, a sub-tree of the parameters.

        Args:
          params: the parameters.
          batch: arrays as in ``batch_spec``.
          rng: random key of this step.
        """

    def constrain(self, params: Params) -> Params:
        """Projects the parameters after an update, e.g. clamps a scalar; often the identity."""

    def decode(
        self, serialized: tf.Tensor, seeds: tf.Tensor, sources: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """TFRecords -> features of training examples, as TensorFlow ops.

        The features of a record must not depend on the records beside it. A task that decodes one
        record at a time calls ``dataset.decode_each``.

        Args:
          serialized: string (n,), serialized Examples; n is static.
          seeds: int64 (n, 2), the seeds of these draws of the records, the only source of
            randomness.
          sources: int64 (n,), indices into ``config.data.sources`` in sorted order.

        Returns:
          Tensors (n, ...) of fixed shapes, including ``id`` (string).
        """

    def data_notes(self, records: Iterable[bytes]) -> Sequence[str]:
        """Lines for the log about the training data, from the first records of every source."""

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Stacked features of this host -> host arrays as in ``batch_spec``."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the global batch that ``loss`` takes."""

    def evaluators(self, mesh: Mesh, cache: AnyPath | None = None) -> Mapping[str, Evaluator]:
        """The evaluators of ``config.evals`` by name.

        Args:
          mesh: mesh over the devices of all hosts.
          cache: directory of results that later runs can reuse; None: no cache.
        """
