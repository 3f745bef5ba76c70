"""Volumetric segmentation from weights that the same volumes have taught, or from random ones.

    python -m unimed_jax.train --workdir=runs/covid --config.data.root=SEG3D \\
        --config=configs/lwi_vms.py:data=covid_ct,network=unetr_pp,init=learned
    python -m unimed_jax.train --config=configs/lwi_vms.py:smoke --workdir=runs/lwi_smoke

With ``init=learned`` the run has two stages (unimed_jax/stages.py): the first puts shuffled
sub-volumes in order and restores masked cubes for a third of the steps, in WORKDIR/stages/init;
the second starts from its weights and segments. With ``init=random`` it segments for all of the
steps. ``only=init`` is the first stage alone; the second alone is ``init=random`` with
--config.init.network=RUN. SEG3D holds DATA/NAME_image.nii.gz and NAME_label.nii.gz; ``fold=1``
holds other patients out. ``smoke`` shrinks everything to minutes on 2 cores; alone it takes
generated volumes. ``data=synapse`` and ``data=lung`` are the published settings, on corpora that
tools/convert_corpus.py wrote (docs/guides/volumetric.md); they have not been trained here.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from unimed_jax.config import base_config, choose_variant, edit, source

# data -> its classes, modality and intensity window, mm of the grid (0: the volumes' own), and
# which volumes are held out in each fold
DATA: Mapping[str, Mapping[str, Any]] = {
    "phantoms": {"classes": ("lung", "lesion"), "modality": "ct", "window": "minmax"},
    "covid_ct": {
        "classes": ("lung", "infection"),
        "modality": "ct",
        "window": "0,4095",  # values of the scanner, not Hounsfield units
        "spacing": (0.0, 7.876, 7.876),  # half the resolution in the plane
        "folds": (("patient3", "patient5"), ("patient1", "patient2"), ("patient4", "patient7")),
    },
    # one volume, trained on and looked at: there is nobody to hold out
    "brain_tissue": {
        "classes": ("csf", "grey matter", "white matter"),
        "modality": "mri",
        "window": "minmax",
        "spacing": (3.0, 3.0, 3.0),
    },
    "spleen_ct": {"classes": ("spleen",), "modality": "ct", "window": "-175,250",
                  "spacing": (0.0, 2.4, 2.4)},
    # one subject, three contrasts: one of them held out
    "spinal_cord": {
        "classes": ("cord",),
        "modality": "mri",
        "window": "percentiles:0.5,99.5",
        "folds": (("T2star",), ("T1w",), ("T2w",)),
    },
    "synapse": {
        "classes": ("spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver",
                    "stomach", "aorta", "inferior vena cava", "portal and splenic vein",
                    "pancreas", "right adrenal", "left adrenal"),
        "modality": "ct",
        "window": "-175,250",
        "spacing": (2.0, 1.5, 1.5),
    },
    "lung": {"classes": ("cancer",), "modality": "ct", "window": "-1000,400"},
}  # fmt: skip
CONVERTED = ("synapse", "lung")  # by the user; the others by the run itself
LEARNED_SHARE = 1 / 3  # of the steps, in the first stage


def get_config(variant: str = "") -> ConfigDict:
    words = [word for word in variant.split(",") if word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for word in words:
        if "=" in word:
            choose_variant(word.split("=")[0], ("data", "network", "init", "fold", "only"))
        else:
            choose_variant(word, ("smoke",))
    smoke = "smoke" in words
    name = given.get("data", "phantoms" if smoke else "covid_ct")
    choose_variant(name, tuple(DATA))
    network = choose_variant(given.get("network", "unetr_pp"), ("unetr", "unetr_pp"))
    init = choose_variant(given.get("init", "learned"), ("learned", "random"))
    only = choose_variant(given.get("only", ""), ("", "init"))
    folds = DATA[name].get("folds", ((),))
    fold = int(choose_variant(given.get("fold", "0"), tuple(map(str, range(len(folds))))))

    config = base_config("volumetric_init" if only else "volumetric_segmentation")
    config.classes = DATA[name]["classes"]
    config.spacing = DATA[name].get("spacing", (0.0, 0.0, 0.0))
    if not only:
        config.window = DATA[name]["window"]
        config.loss.dice = "squared" if network == "unetr" else "foreground"
    config.model.network = network
    if name in CONVERTED:
        _published(config, network, name)
    else:
        _small(config, network)
    if smoke:
        _smoke(config)
    with edit(config):
        if name == "phantoms":
            config.data.raw[name] = ConfigDict({"kind": "volume_phantoms", "voxels": 48})
        elif name not in CONVERTED:
            config.data.raw[name] = ConfigDict(
                {
                    "kind": "nifti_volumes",
                    "raw": name,
                    "layout": "names",
                    "modality": DATA[name]["modality"],
                    "classes": ",".join(DATA[name]["classes"]),
                    "window": DATA[name]["window"],
                    "val": ",".join(folds[fold]),
                    "held_out": 0.0,
                }
            )
        config.data.sources[name] = source(path=name)
        first = _first_stage(config, network)
        if only:
            for key in ("sub_volumes", "mask"):
                config[key] = first[key]
            return config
        has_val = folds != ((),) or name in ("phantoms", *CONVERTED)
        config.evals.segmentation = ConfigDict(
            {
                "kind": "volumes",
                "path": name,
                "splits": ("val",) if has_val else ("train",),
                "overlap": 0.5,
                "batch_size": 2,
            }
        )
        if init == "learned":
            config.stages.init = first
            config.init.network = "stage:init"
            config.num_train_steps -= first.get("num_train_steps", 0)
    return config


def _first_stage(config: ConfigDict, network: str) -> ConfigDict:
    depth = config.crop[0]
    cube = (4, 4, 4)
    slots = 4
    if network == "unetr":
        cube, slots = (16, 16, 16), depth // 16
    stage = {"task": "volumetric_init", "sub_volumes": slots, "mask": {"cube": cube, "ratio": 0.4},
             "weights": {"reconstruction": 1.0, "order": 1.0}}  # fmt: skip
    if config.num_train_steps:
        stage["num_train_steps"] = round(config.num_train_steps * LEARNED_SHARE)
    elif network == "unetr":
        stage["num_epochs"] = 800.0
    else:
        stage |= {"num_epochs": 200.0, "optimizer": {"learning_rate": 1e-4}}
    return ConfigDict(stage)


def _small(config: ConfigDict, network: str) -> None:
    """An eighth of the published width, for 2 cores."""
    config.batch_size = 2
    config.num_train_steps = 600
    config.log_every_steps = 10
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 1
    config.data.num_streams = 1
    config.data.shuffle_block = 16
    config.crop = (32, 64, 64)
    config.model.unetr.update({"width": 96, "layers": 8, "heads": 4, "mlp_width": 192,
                               "features": 8})  # fmt: skip
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


def _smoke(config: ConfigDict) -> None:
    config.num_train_steps = 45
    config.num_epochs = 0.0
    config.batch_size = 2
    config.crops = 1
    config.log_every_steps = 5
    config.checkpoint.every_steps = 15
    config.data.num_streams = 1
    config.crop = (32, 32, 32)
    config.model.unetr.update({"width": 48, "layers": 4, "heads": 2, "mlp_width": 96,
                               "features": 4})  # fmt: skip
    config.model.unetr_pp.update(
        {
            "stem": (1, 2, 2),
            "widths": (8, 8, 16, 16),
            "blocks": (1, 1, 1, 1),
            "projections": (16, 16, 16, 8),
            "features": 4,
        }
    )


def _published(config: ConfigDict, network: str, name: str) -> None:
    """Crops, widths, lengths and optimisers as published."""
    config.num_train_steps = 0
    config.data.num_streams = 1
    config.optimizer.b2 = 0.999
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 50
    if network == "unetr":
        config.batch_size, config.crops = 1, 4
        config.num_epochs = 5000.0
        config.crop = (96, 96, 96)
        config.optimizer.weight_decay = 1e-5
        return
    config.batch_size, config.num_epochs = 2, 1000.0
    config.foreground = 0.33
    config.optimizer.update(
        {"name": "sgd", "schedule": "polynomial", "learning_rate": 1e-2, "warmup_steps": 0,
         "weight_decay": 3e-5, "clip_norm": 12.0}
    )  # fmt: skip
    config.augmentation.update({"flip": 0.5, "turn": 0.0})
    config.augmentation.warp.probability = 0.2
    config.augmentation.blur.probability = 0.2
    config.augmentation.intensity.update(
        {"probability": 0.15, "contrast": 0.25, "gamma": 0.3, "noise": 0.05}
    )
    config.crop = (64, 128, 128)
    if name == "lung":
        config.crop = (32, 192, 192)
        config.model.unetr_pp.update({"stem": (1, 4, 4), "shared_projection": False,
                                      "residual_blocks": 2, "attention_dropout": 0.1})  # fmt: skip
