"""Segmentation that generalises: trained on one domain, guided by text, tested on the others.

    python -m unimed_jax.train --workdir=runs/drive_chase --config.data.root=SEG2D \\
        --config=configs/lg_sdg.py:data=fundus_vessels,source=drive,target=chase
    python -m unimed_jax.train --config=configs/lg_sdg.py:smoke --workdir=runs/lg_sdg_smoke

SEG2D holds DATA/DOMAIN/{images,masks}. Without ``target`` all other domains of DATA are targets.
``network=vit`` takes a dual encoder's image tower, ``--config.init.visual`` its weights.
``smoke`` shrinks the network and the run to a few minutes on 2 cores; alone it takes generated
images. The published settings are ``data=riga``, ``data=abdomen`` and ``data=cardiac``, on corpora
that tools/convert_corpus.py wrote (docs/guides/segmentation.md); they have not been trained here.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from unimed_jax.config import base_config, choose_variant, edit, source

# data -> its classes, the modality of its descriptions, its domains
DATA: Mapping[str, Mapping[str, Any]] = {
    "phantoms": {
        "classes": ("vessel", "lesion"),
        "modality": "fundus",
        "domains": ("warm", "cold"),
    },
    "fundus_vessels": {
        "classes": ("vessel",),
        "modality": "fundus",
        "domains": ("drive", "chase"),
    },
    "brain_tumor": {
        "classes": ("tumor",),
        "modality": "mri",
        "domains": ("brisc_t1", "brats_flair", "mets_t2"),
    },
    "riga": {
        "classes": ("disc", "cup"),
        "modality": "fundus",
        "domains": ("binrushed", "magrabia", "messidor_base1", "messidor_base2", "messidor_base3"),
    },
    "abdomen": {
        "classes": ("liver", "right kidney", "left kidney", "spleen"),
        "modality": "mri",
        "domains": ("chaos", "sabsct"),
    },
    "cardiac": {
        "classes": ("myocardium", "left ventricle", "right ventricle"),
        "modality": "mri",
        "domains": ("bssfp", "lge"),
    },
}
RAW = ("phantoms", "fundus_vessels", "brain_tumor")  # converted into the work directory by the run


def get_config(variant: str = "") -> ConfigDict:
    words = [word for word in variant.split(",") if word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for word in words:
        if "=" in word:
            choose_variant(word.split("=")[0], ("data", "source", "target", "network"))
        else:
            choose_variant(word, ("smoke",))
    smoke = "smoke" in words
    name = given.get("data", "phantoms" if smoke else "fundus_vessels")
    choose_variant(name, tuple(DATA))
    data = DATA[name]
    domain = choose_variant(given.get("source", data["domains"][0]), data["domains"])
    others = tuple(other for other in data["domains"] if other != domain)
    targets = (choose_variant(given["target"], others),) if "target" in given else others

    config = base_config("text_guided_segmentation")
    config.classes = data["classes"]
    config.guidance.modality = data["modality"]
    _small(config)
    if name == "riga":
        _ccsdg(config)
    elif name in ("abdomen", "cardiac"):
        _slaug(config, grid=3 if name == "abdomen" else 18)
    if smoke:
        _smoke(config)
    config.model.network = given.get("network", config.model.network)
    with edit(config):
        for each in (domain, *targets) if name in RAW else ():
            config.data.raw[each] = (
                ConfigDict({"kind": "mask_phantoms", "style": each})
                if name == "phantoms"
                else ConfigDict(
                    {
                        "kind": "masks",
                        "raw": f"{name}/{each}",
                        "modality": data["modality"],
                        "classes": ",".join(data["classes"]),
                    }
                )
            )
        config.data.sources[domain] = source(path=domain)
        config.evals.segmentation = ConfigDict(
            {
                "kind": "segmentation",
                "source": domain,
                "unit": "volume" if name in ("abdomen", "cardiac") else "image",
                "batch_size": 8,
                # of the source what was held out, of the others everything
                "targets": {
                    domain: {"path": domain, "splits": ("val",)},
                    **{t: {"path": t, "splits": ("train", "val")} for t in targets},
                },
            }
        )
    return config


def _small(config: ConfigDict) -> None:
    """A third of ResNet-34's width at 192 px: an hour on 2 cores."""
    config.batch_size = 8
    config.num_train_steps = 400
    config.log_every_steps = 20
    config.checkpoint.every_steps = 100
    config.data.num_streams = 4
    config.data.shuffle_block = 64
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


def _smoke(config: ConfigDict) -> None:
    config.num_train_steps = 30
    config.num_epochs = 0.0
    config.log_every_steps = 5
    config.checkpoint.every_steps = 15
    config.model.image_size = 64
    config.model.width_factor = 0.125
    config.model.blocks = (1, 1, 1, 1)
    config.guidance.tower = "bag_of_words"  # no weights to install


def _slaug(config: ConfigDict, grid: int) -> None:
    """EfficientNet-B2 at 192 px, two views joined by saliency; 2,000 epochs of batch 32."""
    config.batch_size = 32
    config.num_train_steps = 0
    config.num_epochs = 2000.0
    config.model.network = "efficientnet_b2"
    config.model.in_channels = 1
    config.model.width_factor = 1.0
    config.augmentation.update({"location_scale": "global_local", "fusion_grid": grid})
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


def _ccsdg(config: ConfigDict) -> None:
    """ResNet-34 at 512 px with channel prompts, three views, nested disc and cup; batch 8."""
    config.num_train_steps = 0
    config.num_epochs = 100.0
    config.head = "nested"
    config.model.image_size = 512
    config.model.width_factor = 1.0
    config.model.blocks = (3, 4, 6, 3)
    config.model.channel_prompts = True
    config.augmentation.update({"location_scale": "global", "fourier": True, "plain": True})
    config.content_style_weight = 1.0
    config.optimizer.update(
        {
            "name": "sgd",
            "learning_rate": 0.01,
            "warmup_steps": 0,
            "momentum": 0.99,
            "weight_decay": 0.0,
            "schedule": "polynomial",
            "power": 0.9,
        }
    )
