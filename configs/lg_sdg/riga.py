"""Optic disc and cup on RIGA+: the published settings of CCSDG with text guidance (LG-SDG).

    unimed-jax train --config=configs/lg_sdg/riga.py:source=binrushed --workdir=runs/riga \\
        --config.data.root=CORPORA

CORPORA holds a corpus per domain that `unimed-jax convert` wrote (docs/guides/segmentation.md).
ResNet-34 at 512 pixels with channel prompts, three views, nested disc and cup, batch 8. Not trained
here.

``source=DOMAIN`` and ``target=DOMAIN`` choose the domains, ``network`` another network, and
``smoke`` shrinks network and run to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, parse_variant
from unimed_jax.tasks import presets

DOMAINS = ("binrushed", "magrabia", "messidor_base1", "messidor_base2", "messidor_base3")


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(
        variant,
        **presets.domain_choices(DOMAINS),
        network=("resnet34", "efficientnet_b2", "vit"),
        smoke=("off", "on"),
    )
    config = base_config("text_guided_segmentation")
    config.classes = ("disc", "cup")
    config.head = "nested"
    config.guidance.modality = "fundus"

    # --- schedule
    config.batch_size = 8
    config.num_epochs = 100.0
    config.log_every_steps = 20
    config.checkpoint.every_steps = 100

    # --- model
    config.model.network = "resnet34"
    config.model.image_size = 512
    config.model.width_factor = 1.0
    config.model.blocks = (3, 4, 6, 3)
    config.model.channel_prompts = True
    config.content_style_weight = 1.0

    # --- augmentation
    config.augmentation.update({"location_scale": "global", "fourier": True, "plain": True})
    config.augmentation.warp.update({"zoom": 0.2, "shear": 10.0, "elastic": 5.0, "flip": 0.5})
    config.augmentation.intensity.noise = 0.05

    # --- optimizer
    config.optimizer.update(
        {
            "name": "sgd",
            "learning_rate": 0.01,
            "warmup_steps": 0,
            "momentum": 0.99,
            "b2": 0.999,  # unused by SGD
            "weight_decay": 0.0,
            "schedule": "polynomial",
            "power": 0.9,
        }
    )

    if chosen["smoke"] == "on":
        presets.smoke_unet(config)
    config.model.network = chosen["network"]
    presets.image_domains(config, DOMAINS, chosen)
    return config
