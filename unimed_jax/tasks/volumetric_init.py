"""Self-supervised initialization: a volumetric network is pretrained on the volumes of the run.

Sub-volumes of a crop are shuffled and cubes of it masked; the network restores the masked voxels,
and linear heads on its encoder predict the permutation (learnable weight initialization, arXiv
2306.09320). The next stage is ``volumetric_segmentation``; docs/guides/volumetric.md lists the
differences from the published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from unimed_jax import config as config_lib
from unimed_jax.models.functional import Params
from unimed_jax.models.volumetric import GROUPINGS
from unimed_jax.tasks import pretext, volumetric_base
from unimed_jax.tasks.segmentation_base import RngStream
from unimed_jax.tasks.volumetric_base import VolumetricTask

RENAMED_KEYS = {
    **volumetric_base.RENAMED_KEYS,
    "sub_volumes": "pretext.num_sub_volumes",
    "mask.cube": "pretext.mask_cube",
    "mask.ratio": "pretext.mask_ratio",
    "weights.reconstruction": "pretext.loss_weights.reconstruction",
    "weights.order": "pretext.loss_weights.permutation",
    "order_grouping": "pretext.permutation_grouping",
}
"""Keys of configs written by older versions -> their names now; see ``config.from_json``."""


def default_config() -> dict[str, Any]:
    """The keys of this task."""
    return {
        **volumetric_base.shared_config(),
        "pretext": {
            "num_sub_volumes": 4,  # slabs that a crop is cut into along the depth
            "mask_cube": (4, 4, 4),  # voxels
            "mask_ratio": 0.4,  # share of the cubes that are masked
            "loss_weights": {"reconstruction": 1.0, "permutation": 1.0},
            # "depth"; as released: "width" (UNETR), "modulo" (UNETR++)
            "permutation_grouping": "depth",
        },
    }


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming the first key of this task that is not possible."""
    volumetric_base.validate_shared(config, VolumetricInit.evaluator_classes)
    require, settings = config_lib.require, config.pretext
    config_lib.one_of(config, "pretext.permutation_grouping", GROUPINGS)
    crop, count = tuple(config.data.crop_size), settings.num_sub_volumes
    # every stage of the encoder has the same number of positions in each sub-volume
    deepest = volumetric_base.deepest_grid(config)
    axis = 2 if settings.permutation_grouping == "width" else 0
    require(
        count >= 1 and deepest[0] % count == 0 and deepest[axis] % count == 0,
        "pretext.num_sub_volumes",
        count,
        f"a divisor of the {deepest[axis]} positions of the deepest features along the "
        f"{('depth', 'height', 'width')[axis]}",
    )
    cube = tuple(settings.mask_cube)
    require(
        len(cube) == 3 and all(c > 0 and n % c == 0 for n, c in zip(crop, cube, strict=False)),
        "pretext.mask_cube",
        cube,
        f"divisors of data.crop_size={crop}",
    )
    require(0 <= settings.mask_ratio < 1, "pretext.mask_ratio", settings.mask_ratio, "in [0, 1)")
    weights = settings.loss_weights
    require(
        min(weights.values()) >= 0 and max(weights.values()) > 0,
        "pretext.loss_weights",
        weights.to_dict(),
        "0 or more, not all 0",
    )


class VolumetricInit(VolumetricTask):
    """The Task; see training/task.py for what each method does.

    It has no evaluators: the stage that starts from its weights shows their value.
    """

    def __init__(self, config: ConfigDict, workdir: str) -> None:
        super().__init__(
            config,
            workdir,
            num_outputs=1,
            num_sub_volumes=config.pretext.num_sub_volumes,
            permutation_grouping=config.pretext.permutation_grouping,
        )

    def corrupt(self, images: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Shuffles and masks crops.

        Args:
          images: (B, D, H, W, C).
          keys: a key per crop (B,).

        Returns:
          the shuffled crops, the shuffled and masked crops, and the permutations int32 (B, T).
        """
        settings = self.config.pretext
        grid = tuple(n // c for n, c in zip(self.crop_size, settings.mask_cube, strict=True))

        def one(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            permutation = pretext.draw_permutation(
                jax.random.fold_in(key, RngStream.PERMUTATION), settings.num_sub_volumes
            )
            shuffled = pretext.shuffle(image, permutation)
            masked = pretext.draw_mask(
                jax.random.fold_in(key, RngStream.MASK), grid, settings.mask_ratio
            )
            return shuffled, pretext.mask_cubes(shuffled, masked), permutation

        return jax.vmap(one)(keys, images)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        images, _, keys = self.augmented(batch)
        shuffled, corrupted, permutation = self.corrupt(images, keys)
        output, statistics = self.forward(params, corrupted, rng)
        terms = {
            "reconstruction": pretext.reconstruction_loss(output.logits[0], shuffled),
            "permutation": pretext.permutation_loss(output.permutation, permutation),
        }
        weights = self.config.pretext.loss_weights
        total = sum(weights[name] * term for name, term in terms.items())
        accuracy = pretext.permutation_accuracy(output.permutation, permutation)
        return total, {**terms, "permutation_accuracy": accuracy, "statistics": statistics}


TASK = VolumetricInit
