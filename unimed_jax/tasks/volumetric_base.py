"""What the two volumetric tasks share: crops of volumes, augmentation, the network, its start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import segmentation_records, volume_grid
from input_pipeline.io.files import to_path, write_text_atomically
from unimed_jax import augmentation
from unimed_jax import config as config_lib
from unimed_jax.augmentation import volumes as volume_augmentation
from unimed_jax.distributed import process
from unimed_jax.evals.registry import Registry
from unimed_jax.models import registry
from unimed_jax.models.functional import Params
from unimed_jax.models.volumetric import VolumetricConfig, VolumetricModel, VolumetricOutput
from unimed_jax.reporting.html_report import Chart
from unimed_jax.tasks import segmentation_base
from unimed_jax.tasks.segmentation_base import SegmentationTask
from unimed_jax.training.data_location import locate
from unimed_jax.weights import loader

if TYPE_CHECKING:
    import tensorflow as tf

TRANSFER_FILE = "transfer.json"

RENAMED_KEYS = {
    "crop": "data.crop_size",
    "crops": "data.crops_per_volume",
    "foreground": "data.foreground_probability",
    "spacing": "data.spacing",
    "augmentation.turn": "augmentation.rot90",
}
"""Keys of configs written by older versions -> their names now; see ``config.from_json``."""


def shared_config() -> dict[str, Any]:
    """The keys of both tasks."""
    sizes = {
        name: dataclasses.asdict(network.config_class())
        for name, network in registry.NETWORKS_3D.items()
    }
    return {
        "classes": ("lung", "infection"),  # names of the label values 1, 2, ...
        "data": {
            "crop_size": (64, 128, 128),  # voxels (depth, height, width) of the network's input
            "crops_per_volume": 1,  # crops of every volume in a batch
            "foreground_probability": 0.5,  # probability of a crop centered on a voxel of a class
            "spacing": (0.0, 0.0, 0.0),  # mm, grid that crops are cut from; 0: the volume's own
        },
        "model": {"network": "unetr_pp", **sizes},
        "augmentation": {  # see augmentation/volumes.py
            "flip": 0.2,
            "rot90": 0.2,
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
        "optimizer": segmentation_base.optimizer_defaults(
            no_decay=r"/(bias|scale|gamma|positional_embedding|temperature_\w+)$"
        ),
        "init": {
            "network": "",  # a run or checkpoint of ours, or stage:NAME, to start from
            # regular expressions: parameters that it may lack, or have in another shape
            "expected": (r"^network/out\d/", r"^order_heads/"),
        },
    }


def validate_shared(config: ConfigDict, evaluators: Registry) -> None:
    """Raises ConfigError naming the first shared key that is not possible."""
    segmentation_base.validate_shared(config, evaluators)
    require = config_lib.require
    multiple = _sizes(config).crop_multiple
    data, crop = config.data, tuple(config.data.crop_size)
    fits = len(crop) == 3 and all(n > 0 and n % m == 0 for n, m in zip(crop, multiple, strict=True))
    require(fits, "data.crop_size", crop, f"multiples of {multiple} for this network")
    require(len(data.spacing) == 3 and min(data.spacing) >= 0, "data.spacing", data.spacing,
            "three numbers, mm or 0")  # fmt: skip
    require(data.crops_per_volume >= 1, "data.crops_per_volume", data.crops_per_volume, "1 or more")
    require(0 <= data.foreground_probability <= 1, "data.foreground_probability",
            data.foreground_probability, "a probability")  # fmt: skip
    rot90 = config.augmentation.rot90
    require(rot90 == 0 or crop[1] == crop[2], "augmentation.rot90", rot90,
            "0 where height and width of the crop differ")  # fmt: skip


def _sizes(config: ConfigDict) -> Any:
    """The sizes of the network that a config names, an instance of its ``config_class``."""
    name = config.model.network
    network = registry.lookup(registry.NETWORKS_3D, name, "model.network")
    return network.config_class(
        **{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in config.model[name].items()}
    )


def deepest_grid(config: ConfigDict) -> tuple[int, ...]:
    """Positions (d, h, w) of the deepest features of a crop."""
    multiple = _sizes(config).crop_multiple
    return tuple(n // m for n, m in zip(config.data.crop_size, multiple, strict=True))


class VolumetricTask(SegmentationTask):
    """A volumetric Task without its loss; see training/task.py."""

    charts = (
        Chart("Dice", "segmentation/*/dice", (0.0, 1.0)),
        Chart("Segmentation loss", "segmentation_*"),
    )

    model: VolumetricModel

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        num_outputs: int,
        num_sub_volumes: int = 0,
        permutation_grouping: str = "depth",
    ) -> None:
        """Creates the task.

        Args:
          config: the whole config.
          workdir: work directory of the run.
          num_outputs: channels of the logits.
          num_sub_volumes: see ``VolumetricConfig``.
          permutation_grouping: see ``VolumetricConfig``.
        """
        self.crop_size = tuple(config.data.crop_size)
        model = VolumetricModel(
            VolumetricConfig(
                network=config.model.network,
                sizes=_sizes(config),
                crop=self.crop_size,
                num_outputs=num_outputs,
                num_sub_volumes=num_sub_volumes,
                permutation_grouping=permutation_grouping,
            )
        )
        super().__init__(config, workdir, model)

    def pretrained(self, abstract_params: Params) -> Params:
        """The parameters of ``config.init.network`` that fit; logs and lists them by name."""
        init = self.config.init
        if not init.network:
            return {}
        restore = loader.restore_matching(
            locate(init.network, self.config, self.workdir), abstract_params, tuple(init.expected)
        )
        process.log(
            f"{len(restore.restored)} parameters from {restore.source}; initialized at random: "
            f"{', '.join(restore.initialized) or 'none'}; "
            f"unused: {', '.join(restore.unused) or 'none'}"
        )
        if jax.process_index() == 0:
            names = {
                "from": restore.source,
                "transferred": restore.restored,
                "new": restore.initialized,
                "left": restore.unused,
            }
            text = json.dumps(names, indent=2) + "\n"
            write_text_atomically(to_path(self.workdir) / TRANSFER_FILE, text)
        return restore.params

    # --- data -------------------------------------------------------------------------------------

    def decode_one(
        self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        del source
        data = self.config.data
        sample = segmentation_records.parse(record)
        mask = tf.ensure_shape(sample["mask"], (None, None, None))
        image = tf.ensure_shape(sample["image"], (None, None, None, 1))
        shape = volume_grid.grid_shape(
            tf.shape(mask, tf.int64), sample["spacing"], tuple(data.spacing)
        )
        crops = []
        for number in range(data.crops_per_volume):
            crop_seed = tf.random.fold_in(seed, number)
            start = volume_grid.draw_start(
                mask, shape, self.crop_size, data.foreground_probability, crop_seed
            )
            crops.append(volume_grid.crop(image, mask, shape, start, self.crop_size))
        images, labels = zip(*crops, strict=True)
        return {
            "id": sample["id"],
            "image": tf.ensure_shape(tf.stack(images), (data.crops_per_volume, *self.crop_size, 1)),
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
        shape = (batch_size, self.config.data.crops_per_volume, *self.crop_size)
        return {
            "image": jax.ShapeDtypeStruct((*shape, 1), jnp.float32),
            "label": jax.ShapeDtypeStruct(shape, jnp.uint8),
            "seed": jax.ShapeDtypeStruct((batch_size, 3), jnp.uint32),
        }

    # --- training ---------------------------------------------------------------------------------

    def augmented(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The augmented crops of all volumes.

        Returns:
          images float32 (B, D, H, W, 1), labels int32 (B, D, H, W), and a key for each crop (B,).
          B counts the crops, those of a volume next to each other.
        """
        rows = augmentation.row_keys(batch["seed"])
        keys = jax.vmap(
            lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(
                jnp.arange(self.config.data.crops_per_volume)
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
    ) -> tuple[VolumetricOutput, Params]:
        """A pass in training, and the statistics after it."""
        return self.model.apply(params, images, train=True, key=rng)
