"""Learnable weight initialisation: a volumetric network learns its first weights from the volumes
that it is trained on afterwards.

Sub-volumes of a crop are put out of order and cubes of it masked; the network restores what was
masked, and linear heads on its encoder tell the order (arXiv 2306.09320). The next stage is
`volumetric_segmentation`; docs/guides/volumetric.md lists the differences from the published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.io.files import AnyPath
from unimed_jax import config as config_lib
from unimed_jax.models.volumetric import GROUPINGS
from unimed_jax.tasks import sub_volumes
from unimed_jax.tasks.volumetric_base import (
    VolumeTask,
    shared_config,
    smallest_crop,
    validate_shared,
)
from unimed_jax.training.task import Evaluator, Params

_ORDER, _MASK = 1000, 1001  # random domains of a crop, beside those of augmentation


def default_config() -> dict[str, Any]:
    """The keys of this task."""
    return {
        **shared_config(),
        "sub_volumes": 4,  # that a crop is cut into along the depth
        "mask": {"cube": (4, 4, 4), "ratio": 0.4},  # voxels; share of the cubes that are masked
        "weights": {"reconstruction": 1.0, "order": 1.0},  # of the terms of the loss
        # "depth"; as released: "width" (UNETR), "modulo" (UNETR++)
        "order_grouping": "depth",
    }


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming the first key of this task that is not possible."""
    validate_shared(config)
    require = config_lib.require
    config_lib.one_of(config, "order_grouping", GROUPINGS)
    crop, slots = tuple(config.crop), config.sub_volumes
    # every stage of the encoder has the same number of positions in each sub-volume
    deepest = tuple(n // s for n, s in zip(crop, smallest_crop(config), strict=True))
    axis = 2 if config.order_grouping == "width" else 0
    require(slots >= 1 and deepest[0] % slots == 0 and deepest[axis] % slots == 0,
            "sub_volumes", slots, f"a divisor of the {deepest[axis]} positions along the depth of "
            "the deepest features")  # fmt: skip
    cube = tuple(config.mask.cube)
    require(len(cube) == 3 and all(c > 0 and n % c == 0 for n, c in zip(crop, cube, strict=False)),
            "mask.cube", cube, f"divisors of the crop {crop}")  # fmt: skip
    require(0 <= config.mask.ratio < 1, "mask.ratio", config.mask.ratio, "in [0, 1)")
    weights = config.weights
    require(min(weights.values()) >= 0 and max(weights.values()) > 0, "weights",
            weights.to_dict(), "0 or more, not all 0")  # fmt: skip


class VolumetricInit(VolumeTask):
    """The Task; see tasks/base.py for what each method is."""

    def __init__(self, config: ConfigDict, workdir: str) -> None:
        super().__init__(
            config,
            workdir,
            num_outputs=1,
            order_slots=config.sub_volumes,
            order_grouping=config.order_grouping,
        )

    def disturbed(
        self, images: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Crops (B, D, H, W, C) -> shuffled, shuffled and masked, and the orders (B, T)."""
        mask = self.config.mask
        cubes = tuple(n // c for n, c in zip(self.crop, mask.cube, strict=True))

        def one(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            order = sub_volumes.draw_order(jax.random.fold_in(key, _ORDER), self.config.sub_volumes)
            shuffled = sub_volumes.shuffle(image, order)
            masked = sub_volumes.draw_mask(jax.random.fold_in(key, _MASK), cubes, mask.ratio)
            return shuffled, sub_volumes.mask_cubes(shuffled, masked), order

        return jax.vmap(one)(keys, images)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        images, _, keys = self.augmented(batch)
        shuffled, seen, order = self.disturbed(images, keys)
        output, statistics = self.forward(params, seen, rng)
        terms = {
            "reconstruction": sub_volumes.reconstruction_loss(output.logits[0], shuffled),
            "order": sub_volumes.order_loss(output.order, order),
        }
        total = sum(self.config.weights[name] * term for name, term in terms.items())
        accuracy = sub_volumes.order_accuracy(output.order, order)
        return total, {**terms, "order_accuracy": accuracy, "statistics": statistics}

    def evaluators(self, mesh: Mesh, cache: AnyPath | None = None) -> dict[str, Evaluator]:
        """None: what the weights are worth is told by the stage that starts from them."""
        del mesh, cache
        return {}


TASK = VolumetricInit
