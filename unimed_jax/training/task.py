"""The interface between the trainer and a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.io.files import AnyPath
from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models.functional import Params

if TYPE_CHECKING:
    import tensorflow as tf

    from unimed_jax.reporting.html_report import Chart, Section


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluator.

    Attributes:
      metrics: name -> value, logged as ``<evaluator>/<name>``.
      table: a plain-text table for the terminal.
      sections: makes the parts of the HTML report; called only when a report is written.
      files: folder -> JSON text, written beside the results as FOLDER/EVALUATOR.json.
    """

    metrics: Mapping[str, float]
    table: str = ""
    sections: Callable[[], Sequence[Section]] = field(default=lambda: ())
    files: Mapping[str, str] = field(default_factory=dict)


Evaluator = Callable[[Params], Evaluation]


class Task(Protocol):
    """A model with its loss, data and evaluators; the trainer knows nothing else about it.

    A task is created from (config, workdir) on every host and holds no parameters. Its constructor
    and ``batch_spec`` read only files on which the shapes of the parameters depend, so that its
    step can be compiled without data and tokenizer. Its module also has ``default_config() ->
    dict`` (the keys that only this task has) and ``validate(config)``.
    """

    @property
    def record_schema(self) -> str:
        """Name of the schema of the records that ``decode`` reads (``records.Schema.name``)."""

    @property
    def parameter_axes(self) -> ParameterAxes:
        """(regular expression over the path, logical axis of each dim) pairs; see sharding.py."""

    evaluator_classes: ClassVar[Mapping[str, type]]
    """Evaluators that ``config.evals`` may name; the first is used where it names none."""

    @property
    def asset_fingerprints(self) -> Mapping[str, Any]:
        """Hashes of files that the weights depend on (a tokenizer, say); kept in checkpoints."""

    @property
    def charts(self) -> Sequence[Chart]:
        """Training curves of this task's metrics in the report, after the loss."""

    def save_assets(self, workdir: str) -> None:
        """Copies the files that a finished run needs, besides checkpoints, into the workdir."""

    def init(self, key: jax.Array) -> Params:
        """Random parameters, a nested dict of arrays. Pure: it is jitted and sharded."""

    def pretrained(self, abstract_params: Params) -> Params:
        """Host arrays for a sub-tree of the parameters (possibly empty), from ``config.init``."""

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Loss and metrics (scalars) of the global batch; ``rng`` belongs to this step.

        With ``config.optimizer.accumulate_steps`` = A > 1, the loss is the same, but only the
        activations of 1/A of the rows are in memory (``gradient_caching.map_rows``); a task that
        does not support this rejects the key.

        A model keeps running statistics among its parameters, names them in ``optimizer.frozen``,
        and returns their new values as the metric ``statistics``, a sub-tree of the parameters.
        """

    def constrain(self, params: Params) -> Params:
        """Projects the parameters after an update (e.g. a clamp); the identity for most."""

    def decode(
        self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """TFRecord -> features of one training example, in-graph.

        Args:
          record: string (), a serialized Example.
          seed: int64 (2,), belongs to this draw of this record; all randomness derives from it.
          source: int64 (), index into ``config.data.sources`` in sorted order.

        Returns:
          Tensors of fixed shape, among them ``id`` (string).
        """

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Stacked features of this host -> arrays as in ``batch_spec``, on the host."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the global batch that ``loss`` takes."""

    def evaluators(self, mesh: Mesh, cache: AnyPath | None = None) -> Mapping[str, Evaluator]:
        """The evaluators of ``config.evals`` by name.

        Args:
          mesh: over the devices of all hosts.
          cache: folder of files that other processes can reuse; None: no cache.
        """
