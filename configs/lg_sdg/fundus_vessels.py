"""Vessels in fundus images, trained on DRIVE and tested on CHASE, or the reverse.

    unimed-jax train --config=configs/lg_sdg/fundus_vessels.py:source=drive,target=chase \\
        --workdir=runs/drive_chase --config.data.root=SEG2D

SEG2D holds fundus_vessels/DOMAIN/{images,masks}. A small run: an hour on 2 cores; results are in
docs/guides/segmentation.md.

``source=DOMAIN`` and ``target=DOMAIN`` choose the domains (all others are targets without
``target``), ``network=vit`` takes a dual encoder's image tower, with ``--config.init.visual`` for
its weights, and ``smoke`` shrinks network and run to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, parse_variant
from unimed_jax.tasks import presets

CLASSES = ("vessel",)
MODALITY = "fundus"  # key of the descriptions
DOMAINS = ("drive", "chase")


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(
        variant,
        **presets.domain_choices(DOMAINS),
        network=("resnet34", "efficientnet_b2", "vit"),
        smoke=("off", "on"),
    )
    config = base_config("text_guided_segmentation")
    config.classes = CLASSES
    config.guidance.modality = MODALITY
    presets.small_unet(config)
    if chosen["smoke"] == "on":
        presets.smoke_unet(config)
    config.model.network = chosen["network"]
    raw = presets.mask_folders("fundus_vessels", DOMAINS, MODALITY, CLASSES)
    presets.image_domains(config, DOMAINS, chosen, raw=raw)
    return config
