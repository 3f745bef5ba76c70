"""Segmentation of volumes: Dice and cross-entropy at every resolution of the network's outputs.

A run may start from the weights of ``volumetric_init`` (``config.init.network``); see
docs/guides/volumetric.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from unimed_jax import config as config_lib
from unimed_jax.evals import registry as evaluator_registry
from unimed_jax.losses import registry as loss_registry
from unimed_jax.losses.segmentation import Exclusive
from unimed_jax.models.functional import Params
from unimed_jax.tasks import volumetric_base
from unimed_jax.tasks.volumetric_base import VolumetricTask

RENAMED_KEYS = {**volumetric_base.RENAMED_KEYS, "window": "inference.intensity_window"}
"""Keys of configs written by older versions -> their names now; see ``config.from_json``."""


def default_config() -> dict[str, Any]:
    """The keys of this task."""
    return {
        **volumetric_base.shared_config(),
        "loss": {
            "dice": "foreground",  # as published for UNETR++; "squared": for UNETR
            "outputs": (1.0, 0.5, 0.25),  # weight of each output, divided by their sum
        },
        "inference": {  # of whole volumes: evaluators and unimed_jax.segment
            "overlap": 0.5,  # overlap of adjacent windows, as a share of a window
            "batch_size": 2,  # windows on all devices together
            # values of NIfTI files that become 0 and 1 (input_pipeline/io/intensity_windows.py);
            # a corpus was windowed when it was converted
            "intensity_window": "minmax",
        },
    }


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming the first key of this task that is not possible."""
    volumetric_base.validate_shared(config, VolumetricSegmentation.evaluator_classes)
    config_lib.one_of(config, "loss.dice", tuple(loss_registry.DICE))
    outputs = tuple(config.loss.outputs)
    config_lib.require(
        len(outputs) > 0 and outputs[0] > 0 and min(outputs) >= 0,
        "loss.outputs",
        outputs,
        "0 or more each, the first above 0",
    )
    overlap = config.inference.overlap
    config_lib.require(0 <= overlap < 1, "inference.overlap", overlap, "in [0, 1)")
    batch_size = config.inference.batch_size
    config_lib.require(batch_size >= 1, "inference.batch_size", batch_size, "1 or more")


class VolumetricSegmentation(VolumetricTask):
    """The Task; see training/task.py for what each method does."""

    evaluator_classes = evaluator_registry.VOLUME_SEGMENTATION

    def __init__(self, config: ConfigDict, workdir: str) -> None:
        dice = loss_registry.DICE[config.loss.dice]
        self.head = Exclusive(len(config.classes), dice)
        super().__init__(config, workdir, num_outputs=self.head.num_outputs)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        images, labels, _ = self.augmented(batch)
        output, statistics = self.forward(params, images, rng)
        # a network with fewer outputs ignores the remaining weights
        weights = tuple(self.config.loss.outputs)[: len(output.logits)]
        total = jnp.asarray(0.0)
        terms: dict[str, jax.Array] = {}
        for number, (weight, logits) in enumerate(zip(weights, output.logits, strict=False), 1):
            if not weight:
                continue
            term = self.head.loss(logits, downsample_labels(labels, logits.shape[1:-1]))
            terms[f"segmentation_{number}"] = term
            total += weight / sum(weights) * term
        return total, {**terms, "statistics": statistics}

    def predict(self, params: Params, images: jax.Array) -> jax.Array:
        """float32 (B, D, H, W, C) in 0..1 -> probabilities (B, D, H, W, outputs)."""
        output, _ = self.model.apply(params, images, train=False)
        return self.head.probabilities(output.logits[0])


def downsample_labels(labels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Labels (B, D, H, W) at a lower resolution.

    Each voxel takes the label in the middle of the voxels it covers; of two middle ones, the later.
    """
    strides = [n // m for n, m in zip(labels.shape[1:], shape, strict=True)]
    return labels[(slice(None), *(slice(s // 2, None, s) for s in strides))]


TASK = VolumetricSegmentation
