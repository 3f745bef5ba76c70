"""Thirteen abdominal organs in CT (Synapse, BTCV): the published settings.

    unimed-jax train --config=configs/lwi_vms/synapse.py --workdir=runs/synapse \\
        --config.data.root=CORPORA

CORPORA/synapse is a corpus that `unimed-jax convert` wrote (docs/guides/volumetric.md). Not
trained here.

``init=learned`` (the default) runs two stages: the first, in WORKDIR/stages/init, predicts the
permutation of shuffled sub-volumes and restores masked cubes; the second starts from its weights.
``init=random`` segments only; ``only=init`` runs the first stage alone. ``network=unetr`` takes the
other network, ``smoke`` shrinks everything to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, parse_variant
from unimed_jax.tasks import presets

WINDOW = "-175,250"  # Hounsfield units that become 0 and 1


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(variant, **presets.VOLUMETRIC_CHOICES)
    config = base_config(presets.task_of(chosen))
    config.classes = (
        "spleen",
        "right kidney",
        "left kidney",
        "gallbladder",
        "oesophagus",
        "liver",
        "stomach",
        "aorta",
        "inferior vena cava",
        "portal and splenic vein",
        "pancreas",
        "right adrenal",
        "left adrenal",
    )
    config.data.spacing = (2.0, 1.5, 1.5)
    presets.published_volumetric(config, chosen["network"])
    if chosen["smoke"] == "on":
        presets.smoke_volumetric(config)
    presets.volumetric_run(config, "synapse", chosen, WINDOW)
    return config
