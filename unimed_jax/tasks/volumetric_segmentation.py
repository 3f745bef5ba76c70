"""Segmentation of volumes: Dice and cross-entropy at every resolution that the network answers in.

It may start from the weights that `volumetric_init` has learned (``config.init.network``); see
docs/guides/volumetric.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import AnyPath
from unimed_jax import config as config_lib
from unimed_jax.evals.segmentation.volume_evaluator import VolumeEvaluator
from unimed_jax.losses import segmentation
from unimed_jax.tasks.volumetric_base import VolumeTask, shared_config, validate_shared
from unimed_jax.training.data_location import locate
from unimed_jax.training.task import Evaluator, Params


def default_config() -> dict[str, Any]:
    """The keys of this task."""
    return {
        **shared_config(),
        "loss": {
            "dice": "foreground",  # as published for UNETR++; "squared": for UNETR
            "outputs": (1.0, 0.5, 0.25),  # weight of each output, divided by their sum
        },
        # of NIfTI files that are segmented with the result: values that become 0 and 1
        # (input_pipeline/segmentation/windows.py); a corpus has been windowed as it was converted
        "window": "minmax",
    }


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming the first key of this task that is not possible."""
    validate_shared(config)
    config_lib.one_of(config, "loss.dice", tuple(segmentation.DICE))
    outputs = tuple(config.loss.outputs)
    config_lib.require(len(outputs) > 0 and outputs[0] > 0 and min(outputs) >= 0,
                       "loss.outputs", outputs, "0 or more each, the first above 0")  # fmt: skip


class VolumetricSegmentation(VolumeTask):
    """The Task; see tasks/base.py for what each method is."""

    def __init__(self, config: ConfigDict, workdir: str) -> None:
        dice = segmentation.DICE[config.loss.dice]
        self.head = segmentation.Exclusive(len(config.classes), dice)
        super().__init__(config, workdir, num_outputs=self.head.num_outputs)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        images, labels, _ = self.augmented(batch)
        output, statistics = self.forward(params, images, rng)
        # a network with fewer outputs has no use for the other weights
        weights = tuple(self.config.loss.outputs)[: len(output.logits)]
        total, terms = 0.0, {}
        for number, (weight, logits) in enumerate(zip(weights, output.logits, strict=False), 1):
            if not weight:
                continue
            term = self.head.loss(logits, reduced(labels, logits.shape[1:-1]))
            terms[f"segmentation_{number}"] = term
            total += weight / sum(weights) * term
        return total, {**terms, "statistics": statistics}

    def predict(self, params: Params, images: jax.Array) -> jax.Array:
        """float32 (B, D, H, W, C) in 0..1 -> probabilities (B, D, H, W, outputs)."""
        output, _ = self.model.apply(params, images, train=False)
        return self.head.probabilities(output.logits[0])

    def evaluators(self, mesh: Mesh, cache: AnyPath | None = None) -> dict[str, Evaluator]:
        del cache  # a segmentation has no embeddings that could be used again
        made = {}
        for name, settings in self.config.evals.items():
            if settings.kind != "volumes":
                raise ConfigError(f"config.evals.{name}.kind={settings.kind!r}; valid: volumes")
            root = locate("root:", self.config, self.workdir)
            made[name] = VolumeEvaluator(self, settings, root, mesh)
        return made


def reduced(labels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Labels (B, D, H, W) at a smaller resolution: the voxel in the middle of those that become
    one, the later of two."""
    strides = [n // m for n, m in zip(labels.shape[1:], shape, strict=True)]
    return labels[(slice(None), *(slice(s // 2, None, s) for s in strides))]


TASK = VolumetricSegmentation
