"""The interface between the trainer and what is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.io.files import AnyPath
from unimed_jax.distributed.sharding import ParameterAxes

if TYPE_CHECKING:
    import tensorflow as tf

    from unimed_jax.reporting.html_report import Chart, Section

Params = Any  # nested dict of arrays


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

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
    """One thing that can be trained; the trainer knows nothing else about it.

    A task is made from (config, workdir) on every host and holds no parameters. Making it and
    ``batch_spec`` read no files but those that the shapes of the parameters depend on, so that its
    step can be compiled where there is neither data nor tokenizer. Its module also has
    ``default_config() -> dict`` (the keys that only this task has) and ``validate(config)``.
    """

    record_schema: str
    """Name of the schema of the records that ``decode`` reads (``records.Schema.name``)."""

    parameter_axes: ParameterAxes
    """(regular expression over the parameter path, logical axis of each dim); see sharding.py."""

    identity: Mapping[str, Any]
    """What the weights depend on besides the config (a tokenizer's hash): kept in checkpoints."""

    charts: Sequence[Chart]
    """Training curves of this task's metrics in the report, after the loss."""

    def save_assets(self, workdir: str) -> None:
        """Copies into the work directory what a finished run needs besides checkpoints."""

    def init(self, key: jax.Array) -> Params:
        """Random parameters, a nested dict of arrays. Pure: it is jitted and sharded."""

    def pretrained(self, abstract_params: Params) -> Params:
        """Host arrays for a sub-tree of the parameters (maybe empty), from ``config.init``."""

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Loss and metrics (scalars) of the global batch; ``rng`` belongs to this step.

        With ``config.optimizer.accumulate_steps`` = A > 1 it keeps no activations but those of
        1/A of the rows (``microbatches.map_rows``) and is the same loss; a task that cannot refuses
        the key.

        A model with running statistics keeps them among its parameters, names them in
        ``optimizer.frozen``, and returns new values of them as the metric ``statistics``, a
        sub-tree of the parameters.
        """

    def constrain(self, params: Params) -> Params:
        """Projects the parameters after an update (e.g. a clamp); the identity for most."""

    def decode(
        self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """TFRecord -> features of one training example, in-graph.

        Args:
          record: string (), a serialized Example.
          seed: int64 (2,), belongs to this visit of this record; all randomness derives from it.
          source: int64 (), index into ``config.data.sources`` in sorted order.

        Returns:
          Tensors of fixed shape, among them ``id`` (string).
        """

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Stacked features of this host -> what ``batch_spec`` says, on the host."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the global batch that ``loss`` takes."""

    def evaluators(self, mesh: Mesh, cache: AnyPath | None = None) -> Mapping[str, Evaluator]:
        """The evaluators of ``config.evals`` by name.

        Args:
          mesh: over the devices of all hosts.
          cache: folder for what can be used again in another process; None: nothing is kept.
        """
