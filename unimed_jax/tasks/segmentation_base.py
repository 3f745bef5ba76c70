"""What the segmentation tasks share, 2-D and 3-D: records, statistics, checks and evaluators."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import segmentation_records
from input_pipeline.io.files import AnyPath
from unimed_jax import config as config_lib
from unimed_jax.evals import registry
from unimed_jax.evals.segmentation.evaluator import SegmentationContext
from unimed_jax.losses.segmentation import Head
from unimed_jax.models.conv import STATISTICS
from unimed_jax.models.functional import Params
from unimed_jax.models.segmentation import SegmentationModel
from unimed_jax.models.volumetric import VolumetricModel
from unimed_jax.training.data_location import locate
from unimed_jax.training.task import Evaluator

if TYPE_CHECKING:
    import tensorflow as tf


class RngStream(enum.IntEnum):
    """Constants folded into the key of one draw of a record, one for each purpose.

    Changing a value changes the numbers of every run. The 3-D tasks start at 1000, because they
    pass the same key to ``augmentation.volumes``, which has its own.
    """

    WARP = 0
    INTENSITY = 1
    GLOBAL_LOCATION_SCALE = 2
    LOCAL_LOCATION_SCALE = 3
    FOURIER = 4
    PERMUTATION = 1000
    MASK = 1001


def optimizer_defaults(no_decay: str) -> dict[str, Any]:
    """The keys of ``config.optimizer`` for a model with running statistics.

    Args:
      no_decay: regular expression over the paths of parameters exempt from weight decay.
    """
    # the optimizer never updates running statistics: the loss returns new ones
    return {"frozen": (STATISTICS,), "no_decay": (no_decay,)}


def validate_shared(config: ConfigDict, evaluators: registry.Registry) -> None:
    """Raises ConfigError naming the first key shared by segmentation tasks that is not possible."""
    require = config_lib.require
    require(
        len(set(config.classes)) == len(config.classes) > 0,
        "classes",
        config.classes,
        "one or more different names",
    )
    require(
        STATISTICS in config.optimizer.frozen,
        "optimizer.frozen",
        config.optimizer.frozen,
        f"a tuple that contains {STATISTICS!r}",
    )
    require(
        config.optimizer.accumulate_steps == 1,
        "optimizer.accumulate_steps",
        config.optimizer.accumulate_steps,
        "1, because running statistics are those of a whole batch",
    )
    registry.validate(config.evals, evaluators)


class SegmentationTask:
    """A segmentation Task without its data and its loss; see training/task.py.

    Attributes:
      config: the whole config.
      workdir: work directory of the run.
      model: the network as pure functions.
      head: maps logits to masks, in tasks with evaluators.
    """

    head: Head

    record_schema = segmentation_records.SCHEMA.name
    asset_fingerprints: Mapping[str, Any] = {}
    evaluator_classes: ClassVar[registry.Registry] = {}

    def __init__(
        self, config: ConfigDict, workdir: str, model: SegmentationModel | VolumetricModel
    ) -> None:
        self.config, self.workdir, self.model = config, workdir, model
        self.parameter_axes = model.parameter_axes

    def save_assets(self, workdir: str) -> None:
        """Writes nothing: a run needs only its checkpoints."""

    def data_notes(self, records: Iterable[bytes]) -> Sequence[str]:
        del records
        return ()

    def init(self, key: jax.Array) -> Params:
        return self.model.init(key)

    def constrain(self, params: Params) -> Params:
        return params

    def decode(
        self, serialized: tf.Tensor, seeds: tf.Tensor, sources: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        from input_pipeline import dataset

        return dataset.decode_each(self.decode_one, serialized, seeds, sources)

    def decode_one(
        self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """``decode`` of one record: string (), int64 (2,), int64 () -> features of fixed shapes."""
        raise NotImplementedError

    def predict(self, params: Params, images: jax.Array) -> jax.Array:
        """Images or crops (B, *space, C) -> probabilities (B, *space, outputs).

        Raises:
          NotImplementedError: the task does not segment.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts no masks")

    def evaluators(self, mesh: Mesh, cache: AnyPath | None = None) -> dict[str, Evaluator]:
        """The evaluators of ``config.evals``. ``cache`` is unused: predictions are not kept."""
        del cache
        if not self.config.evals:
            return {}
        root = locate("root:", self.config, self.workdir)
        context = SegmentationContext(self, self.config, root, mesh)
        return registry.create(self.config.evals, self.evaluator_classes, context)
