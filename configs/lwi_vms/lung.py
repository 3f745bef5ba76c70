"""Lung cancer in CT (Medical Segmentation Decathlon): the published settings.

    unimed-jax train --config=configs/lwi_vms/lung.py --workdir=runs/lung \\
        --config.data.root=CORPORA

CORPORA/lung is a corpus that `unimed-jax convert` wrote (docs/guides/volumetric.md). Not
trained here.

``init=learned`` (the default) runs two stages: the first, in WORKDIR/stages/init, predicts the
permutation of shuffled sub-volumes and restores masked cubes; the second starts from its weights.
``init=random`` segments only; ``only=init`` runs the first stage alone. ``network=unetr`` takes the
other network, ``smoke`` shrinks everything to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, parse_variant
from unimed_jax.tasks import presets

WINDOW = "-1000,400"  # Hounsfield units that become 0 and 1


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(variant, **presets.VOLUMETRIC_CHOICES)
    config = base_config(presets.task_of(chosen))
    config.classes = ("cancer",)
    presets.published_volumetric(config, chosen["network"])
    if chosen["network"] == "unetr_pp":
        config.data.crop_size = (32, 192, 192)
        config.model.unetr_pp.update(
            {
                "stem": (1, 4, 4),
                "shared_projection": False,
                "residual_blocks": 2,
                "attention_dropout": 0.1,
            }
        )
    if chosen["smoke"] == "on":
        presets.smoke_volumetric(config)
    presets.volumetric_run(config, "lung", chosen, WINDOW)
    return config
