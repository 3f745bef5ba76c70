"""Abdominal organs in MR (CHAOS) and CT (SABSCT): published settings of SLAug, with text guidance.

    unimed-jax train --config=configs/lg_sdg/abdomen.py:source=chaos --workdir=runs/abdomen \\
        --config.data.root=CORPORA

CORPORA holds a corpus per domain that `unimed-jax convert` wrote (docs/guides/segmentation.md).
EfficientNet-B2 at 192 pixels, two views fused by saliency, 2,000 epochs of batch 32. Volumes are
scored in 3-D. Not trained here.

``source=DOMAIN`` and ``target=DOMAIN`` choose the domains, ``network`` another network, and
``smoke`` shrinks network and run to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, parse_variant
from unimed_jax.tasks import presets

DOMAINS = ("chaos", "sabsct")


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(
        variant,
        **presets.domain_choices(DOMAINS),
        network=("efficientnet_b2", "resnet34", "vit"),
        smoke=("off", "on"),
    )
    config = base_config("text_guided_segmentation")
    config.classes = ("liver", "right kidney", "left kidney", "spleen")
    config.guidance.modality = "mri"
    presets.slaug(config)
    config.augmentation.fusion_grid = 3
    if chosen["smoke"] == "on":
        presets.smoke_unet(config)
    config.model.network = chosen["network"]
    presets.image_domains(config, DOMAINS, chosen, unit="volume")
    return config
