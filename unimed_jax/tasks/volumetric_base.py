"""What the two volumetric tasks share: crops of volumes, augmentation, the network, its start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from input_pipeline import segmentation_records, volume_grid
from input_pipeline.io.files import to_path, write_text_atomically
from unimed_jax import augmentation
from unimed_jax import config as config_lib
from unimed_jax.augmentation import volumes as volume_augmentation
from unimed_jax.distributed import process
from unimed_jax.models import volumetric
from unimed_jax.models.conv import STATISTICS
from unimed_jax.models.unetr import PATCH
from unimed_jax.models.unetr_pp import SPATIAL_LAYOUTS
from unimed_jax.reporting.html_report import Chart
from unimed_jax.training.data_location import locate
from unimed_jax.training.task import Params
from unimed_jax.weights import loader

TRANSFER_FILE = "transfer.json"


def shared_config() -> dict[str, Any]:
    """The keys of both tasks."""
    sizes = {name: dataclasses.asdict(kind()) for name, (kind, _) in volumetric.NETWORKS.items()}
    return {
        "classes": ("lung", "infection"),  # names of the label values 1, 2, ...
        "crop": (64, 128, 128),  # voxels (depth, height, width) that the network sees
        "crops": 1,  # of every volume in a batch
        "foreground": 0.5,  # probability that a crop is centred on a voxel of some class
        "spacing": (0.0, 0.0, 0.0),  # mm, of the grid that crops are cut from; 0: the volume's own
        "model": {"network": "unetr_pp", **sizes},
        "augmentation": {  # see augmentation/volumes.py
            "flip": 0.2,
            "turn": 0.2,
            "warp": {"probability": 0.0, "rotation": 30.0, "zoom": 0.3},
            "blur": {"probability": 0.0, "sigma": 1.0},
            "intensity": {
                "probability": 0.1,
                "contrast": 0.1,
                "brightness": 0.1,
                "gamma": 0.0,
                "noise": 0.0,
            },
        },
        # running statistics: no update comes from the optimiser, the loss replaces them
        "optimizer": {
            "frozen": (STATISTICS,),
            "no_decay": (r"/(bias|scale|gamma|positional_embedding|temperature_\w+)$",),
        },
        "init": {
            "network": "",  # a run or checkpoint of ours, or stage:NAME, whose weights are taken
            # regular expressions: parameters that it may not have, or have in another shape
            "expected": (r"^network/out\d/", r"^order_heads/"),
        },
    }


def validate_shared(config: ConfigDict) -> None:
    """Raises ConfigError naming the first key that is not possible."""
    require = config_lib.require
    config_lib.one_of(config, "model.network", tuple(volumetric.NETWORKS))
    config_lib.one_of(config, "model.unetr_pp.spatial_layout", SPATIAL_LAYOUTS)
    require(len(set(config.classes)) == len(config.classes) > 0, "classes", config.classes,
            "one or more different names")  # fmt: skip
    crop, smallest = tuple(config.crop), smallest_crop(config)
    fits = len(crop) == 3 and all(n > 0 and n % s == 0 for n, s in zip(crop, smallest, strict=True))
    require(fits, "crop", crop, f"multiples of {smallest} for this network")
    require(len(config.spacing) == 3 and min(config.spacing) >= 0, "spacing", config.spacing,
            "three numbers, mm or 0")  # fmt: skip
    require(config.crops >= 1, "crops", config.crops, "1 or more")
    require(0 <= config.foreground <= 1, "foreground", config.foreground, "a probability")
    turn = config.augmentation.turn
    require(turn == 0 or crop[1] == crop[2], "augmentation.turn", turn,
            "0 where height and width of the crop differ")  # fmt: skip
    require(STATISTICS in config.optimizer.frozen, "optimizer.frozen",
            config.optimizer.frozen, f"with {STATISTICS!r} among them")  # fmt: skip
    require(config.optimizer.accumulate_steps == 1, "optimizer.accumulate_steps",
            config.optimizer.accumulate_steps, "1, as statistics are of a batch")  # fmt: skip


def smallest_crop(config: ConfigDict) -> tuple[int, ...]:
    """What the sides of a crop are multiples of: voxels of one position of the deepest stage."""
    if config.model.network == "unetr":
        return (PATCH,) * 3
    return tuple(8 * n for n in config.model.unetr_pp.stem)


def sizes_of(config: ConfigDict) -> Any:
    """The sizes of the network that a config names."""
    kind, _ = volumetric.NETWORKS[config.model.network]
    settings = config.model[config.model.network]
    return kind(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in settings.items()})


class VolumeTask:
    """Everything of a volumetric Task but its loss and its evaluators; see tasks/base.py."""

    record_schema = segmentation_records.SCHEMA.name
    parameter_axes = volumetric.PARAMETER_AXES
    charts = (
        Chart("Dice", "segmentation/*/dice", (0.0, 1.0)),
        Chart("Segmentation loss", "segmentation_*"),
    )
    asset_fingerprints: Mapping[str, Any] = {}

    def __init__(
        self, config: ConfigDict, workdir: str, num_outputs: int, **order: int | str
    ) -> None:
        """``order``: ``order_slots`` and ``order_grouping`` of a model with order heads."""
        self.config, self.workdir = config, workdir
        self.crop = tuple(config.crop)
        self.model = volumetric.VolumetricModel(
            volumetric.VolumetricConfig(
                network=config.model.network,
                sizes=sizes_of(config),
                crop=self.crop,
                num_outputs=num_outputs,
                **order,
            )
        )

    def save_assets(self, workdir: str) -> None:
        """A run needs no more than its checkpoints."""

    # --- parameters -------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        return self.model.init(key)

    def constrain(self, params: Params) -> Params:
        return params

    def pretrained(self, abstract_params: Params) -> Params:
        """Of ``config.init.network`` what is there and fits; lists what that is, by name."""
        init = self.config.init
        if not init.network:
            return {}
        found = loader.restore_matching(
            locate(init.network, self.config, self.workdir), abstract_params, tuple(init.expected)
        )
        names = {"from": found.source, "transferred": found.restored, "new": found.initialized,
                 "left": found.unused}  # fmt: skip
        process.log(
            f"{len(found.restored)} parameters from {found.source}; initialized at random: "
            f"{', '.join(found.initialized) or 'none'}; unused: {', '.join(found.unused) or 'none'}"
        )
        if jax.process_index() == 0:
            text = json.dumps(names, indent=2) + "\n"
            write_text_atomically(to_path(self.workdir) / TRANSFER_FILE, text)
        return found.params

    # --- data -------------------------------------------------------------------------------------

    def decode(self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor) -> dict[str, tf.Tensor]:
        del source
        sample = segmentation_records.parse(record)
        mask = tf.ensure_shape(sample["mask"], (None, None, None))
        image = tf.ensure_shape(sample["image"], (None, None, None, 1))
        shape = volume_grid.grid_shape(
            tf.shape(mask, tf.int64), sample["spacing"], tuple(self.config.spacing)
        )
        crops = []
        for number in range(self.config.crops):
            own = tf.random.fold_in(seed, number)
            start = volume_grid.draw_start(mask, shape, self.crop, self.config.foreground, own)
            crops.append(volume_grid.crop(image, mask, shape, start, self.crop))
        images, labels = zip(*crops, strict=True)
        return {
            "id": sample["id"],
            "image": tf.ensure_shape(tf.stack(images), (self.config.crops, *self.crop, 1)),
            "label": tf.stack(labels),
            "seed": seed,
        }

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            "image": batch["image"],
            "label": batch["label"],
            "seed": augmentation.seed_words(batch["seed"]),
        }

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (batch_size, self.config.crops, *self.crop)
        return {
            "image": jax.ShapeDtypeStruct((*shape, 1), jnp.float32),
            "label": jax.ShapeDtypeStruct(shape, jnp.uint8),
            "seed": jax.ShapeDtypeStruct((batch_size, 3), jnp.uint32),
        }

    # --- training ---------------------------------------------------------------------------------

    def augmented(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Crops of all volumes one after the other: images, int32 labels, and a key for each."""
        rows = augmentation.row_keys(batch["seed"])
        keys = jax.vmap(
            lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(
                jnp.arange(self.config.crops)
            )
        )(rows).reshape(-1)
        images, labels = (
            batch[name].reshape(-1, *batch[name].shape[2:]) for name in ("image", "label")
        )
        images, labels = jax.vmap(
            lambda key, image, label: volume_augmentation.augment(
                key, image, label.astype(jnp.int32), self.config.augmentation
            )
        )(keys, images, labels)
        return images, labels, keys

    def forward(
        self, params: Params, images: jax.Array, rng: jax.Array
    ) -> tuple[volumetric.Output, Params]:
        """A pass in training, and the statistics after it."""
        return self.model.apply(params, images, train=True, key=rng)
