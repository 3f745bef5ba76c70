"""Groups of keys that several segmentation recipes of ``configs/`` share.

A preset sets keys of a config; a recipe states what differs after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.io.errors import ConfigError
from unimed_jax.config import edit, evaluator, source

PRETEXT_SHARE = 1 / 3  # share of the steps that the pretext stage of a small run takes


# --- text-guided segmentation ---------------------------------------------------------------------


def small_unet(config: ConfigDict) -> None:
    """A quarter of ResNet-34's width at 192 pixels, 400 steps of 8: an hour on 2 cores."""
    config.batch_size = 8
    config.num_train_steps = 400
    config.log_every_steps = 20
    config.checkpoint.every_steps = 100
    config.model.image_size = 192
    config.model.width_factor = 0.25
    config.model.blocks = (2, 2, 2, 2)
    config.model.channel_prompts = False
    config.augmentation.warp.update({"zoom": 0.2, "shear": 10.0, "elastic": 5.0, "flip": 0.5})
    config.augmentation.intensity.noise = 0.05
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 1e-4


def smoke_unet(config: ConfigDict) -> None:
    """Shrinks a recipe to 64 pixels and 30 steps: minutes on 2 cores."""
    config.num_train_steps = 30
    config.num_epochs = 0.0
    config.log_every_steps = 5
    config.checkpoint.every_steps = 15
    config.model.image_size = 64
    config.model.width_factor = 0.125
    config.model.blocks = (1, 1, 1, 1)
    config.guidance.tower = "bag_of_words"  # needs no weights


def slaug(config: ConfigDict) -> None:
    """SLAug's published run: EfficientNet-B2 at 192 pixels, 2,000 epochs of batch 32.

    Two views of every image are fused by saliency.
    """
    config.batch_size = 32
    config.num_epochs = 2000.0
    config.log_every_steps = 20
    config.checkpoint.every_steps = 100
    config.model.network = "efficientnet_b2"
    config.model.image_size = 192
    config.model.in_channels = 1
    config.model.width_factor = 1.0
    config.model.channel_prompts = False
    config.model.blocks = (2, 2, 2, 2)  # unused by this network
    config.augmentation.location_scale = "global_local"
    config.augmentation.warp.update({"zoom": 0.5, "shear": 20.0, "elastic": 20.0, "flip": 0.0})
    config.augmentation.intensity.noise = 0.15
    config.guidance.weight = 1.125  # 36 patches over a batch of 32, as published
    config.optimizer.update(
        {
            "name": "adam",
            "learning_rate": 3e-4,
            "warmup_steps": 0,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 3e-5,
            "no_decay": (),
            "schedule": "polynomial",  # linear, after 50 of 2,000 epochs
            "hold_fraction": 0.025,
            "power": 1.0,
        }
    )


def mask_folders(
    folder: str, domains: Sequence[str], modality: str, classes: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Entries of data.raw for FOLDER/DOMAIN/{images,masks}, by domain."""
    return {
        domain: {
            "kind": "masks",
            "raw": f"{folder}/{domain}",
            "modality": modality,
            "classes": ",".join(classes),
        }
        for domain in domains
    }


def image_domains(
    config: ConfigDict,
    domains: Sequence[str],
    chosen: Mapping[str, str],
    *,
    raw: Mapping[str, Mapping[str, Any]] | None = None,
    unit: str = "image",
) -> None:
    """Trains on one domain and tests on others.

    Scored are the validation split of the source domain and all images of the targets.

    Args:
      config: gets data.sources, data.raw and evals.
      domains: all domains of the data set.
      chosen: ``source``, and ``target`` or "all" for all other domains.
      raw: domain -> entry of data.raw; None: the user converts the corpora.
      unit: see the evaluator.

    Raises:
      ConfigError: source and target are the same domain.
    """
    origin, target = chosen["source"], chosen["target"]
    if target == origin:
        raise ConfigError(f"this recipe has no target={target} for source={origin}; take another")
    targets = [d for d in domains if d != origin] if target == "all" else [target]
    with edit(config):
        if raw:
            for domain in (origin, *targets):
                config.data.raw[domain] = ConfigDict(raw[domain])
        config.data.sources[origin] = source(path=origin)
        config.evals.segmentation = evaluator(
            "segmentation",
            source=origin,
            unit=unit,
            targets={
                origin: {"path": origin, "splits": ("val",)},
                **{t: {"path": t, "splits": ("train", "val")} for t in targets},
            },
        )


def domain_choices(domains: Sequence[str]) -> dict[str, Sequence[str]]:
    """The arguments ``source`` and ``target`` of a recipe, see ``config.parse_variant``."""
    return {"source": tuple(domains), "target": ("all", *domains)}


# --- volumetric segmentation ----------------------------------------------------------------------

VOLUMETRIC_CHOICES: Mapping[str, Sequence[str]] = {
    "network": ("unetr_pp", "unetr"),
    "init": ("learned", "random"),  # a pretext stage first, or random parameters
    "only": ("all", "init"),  # all stages, or the pretext stage alone
    "smoke": ("off", "on"),
}
"""Arguments of every volumetric recipe, see ``config.parse_variant``."""


def task_of(chosen: Mapping[str, str]) -> str:
    """The task of a volumetric recipe with these arguments."""
    return "volumetric_init" if chosen["only"] == "init" else "volumetric_segmentation"


def small_volumetric(config: ConfigDict, network: str) -> None:
    """An eighth of the published widths, 600 steps of 2, for 2 cores."""
    config.model.network = network
    config.batch_size = 2
    config.num_train_steps = 600
    config.log_every_steps = 10
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 1
    config.data.crop_size = (32, 64, 64)
    config.model.unetr.update(
        {"width": 96, "layers": 8, "heads": 4, "mlp_width": 192, "features": 8}
    )
    config.model.unetr_pp.update(
        {
            "stem": (1, 4, 4),
            "widths": (8, 16, 32, 64),
            "blocks": (1, 1, 1, 1),
            "projections": (32, 32, 32, 16),
            "features": 8,
        }
    )
    config.augmentation.flip = 0.5
    config.optimizer.learning_rate = 2e-3 if network == "unetr_pp" else 1e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 12.0


def smoke_volumetric(config: ConfigDict) -> None:
    """Shrinks a recipe to crops of 32 voxels and 45 steps: minutes on 2 cores."""
    config.num_train_steps = 45
    config.num_epochs = 0.0
    config.batch_size = 2
    config.log_every_steps = 5
    config.checkpoint.every_steps = 15
    config.data.crop_size = (32, 32, 32)
    config.data.crops_per_volume = 1
    config.model.unetr.update(
        {"width": 48, "layers": 4, "heads": 2, "mlp_width": 96, "features": 4}
    )
    config.model.unetr_pp.update(
        {
            "stem": (1, 2, 2),
            "widths": (8, 8, 16, 16),
            "blocks": (1, 1, 1, 1),
            "projections": (16, 16, 16, 8),
            "features": 4,
        }
    )


def published_volumetric(config: ConfigDict, network: str) -> None:
    """Crops, lengths and optimizers as published, for the full-size networks."""
    config.model.network = network
    config.optimizer.b2 = 0.999
    if network == "unetr":
        config.batch_size = 1
        config.num_epochs = 5000.0
        config.data.crop_size = (96, 96, 96)
        config.data.crops_per_volume = 4
        config.optimizer.learning_rate = 1e-4
        config.optimizer.warmup_steps = 50
        config.optimizer.weight_decay = 1e-5
        return
    config.batch_size = 2
    config.num_epochs = 1000.0
    config.data.crop_size = (64, 128, 128)
    config.data.foreground_probability = 0.33
    config.optimizer.update(
        {
            "name": "sgd",
            "schedule": "polynomial",
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "weight_decay": 3e-5,
            "clip_norm": 12.0,
        }
    )
    config.augmentation.update({"flip": 0.5, "rot90": 0.0})
    config.augmentation.warp.probability = 0.2
    config.augmentation.blur.probability = 0.2
    config.augmentation.intensity.update(
        {"probability": 0.15, "contrast": 0.25, "gamma": 0.3, "noise": 0.05}
    )


def raw_volumes(
    config: ConfigDict, name: str, modality: str, intensity_window: str, held_out: Sequence[str]
) -> None:
    """The run converts SEG3D/NAME; the volumes ``held_out`` are its validation split."""
    with edit(config):
        config.data.raw[name] = ConfigDict(
            {
                "kind": "nifti_volumes",
                "raw": name,
                "layout": "names",
                "modality": modality,
                "classes": ",".join(config.classes),
                "window": intensity_window,
                "val": ",".join(held_out),
                "held_out": 0.0,
            }
        )


def volumetric_run(
    config: ConfigDict,
    name: str,
    chosen: Mapping[str, str],
    intensity_window: str,
    *,
    has_val: bool = True,
) -> None:
    """Source, evaluator and stages of a volumetric recipe; called after all other keys are set.

    Args:
      config: of the task ``task_of`` (``chosen``).
      name: corpus directory.
      chosen: the arguments of the recipe.
      intensity_window: values of NIfTI files that become 0 and 1.
      has_val: volumes are held out; else the training split is scored.
    """
    pretext_stage = _pretext_stage(config, chosen["network"])
    with edit(config):
        config.data.sources[name] = source(path=name)
        if chosen["only"] == "init":
            config.pretext.update(pretext_stage.pretext)
            return
        config.loss.dice = "squared" if chosen["network"] == "unetr" else "foreground"
        config.inference.intensity_window = intensity_window
        config.evals.segmentation = evaluator(
            "volumes", path=name, splits=("val",) if has_val else ("train",)
        )
        if chosen["init"] == "learned":
            config.stages.init = pretext_stage
            config.init.network = "stage:init"
            config.num_train_steps -= pretext_stage.get("num_train_steps", 0)


def _pretext_stage(config: ConfigDict, network: str) -> ConfigDict:
    """Entry of ``config.stages`` for ``volumetric_init``."""
    count, cube = 4, (4, 4, 4)
    if network == "unetr":
        count, cube = config.data.crop_size[0] // 16, (16, 16, 16)
    stage: dict[str, Any] = {
        "task": "volumetric_init",
        "pretext": {
            "num_sub_volumes": count,
            "mask_cube": cube,
            "mask_ratio": 0.4,
            "loss_weights": {"reconstruction": 1.0, "permutation": 1.0},
        },
    }
    if config.num_train_steps:
        stage["num_train_steps"] = round(config.num_train_steps * PRETEXT_SHARE)
    elif network == "unetr":
        stage["num_epochs"] = 800.0
    else:
        stage |= {"num_epochs": 200.0, "optimizer": {"learning_rate": 1e-4}}
    return ConfigDict(stage)
