"""Volumetric segmentation of generated volumes; needs no data.

    unimed-jax train --config=configs/lwi_vms/phantoms.py:smoke --workdir=runs/lwi_smoke

``init=learned`` (the default) runs two stages: the first, in WORKDIR/stages/init, predicts the
permutation of shuffled sub-volumes and restores masked cubes; the second starts from its weights.
``init=random`` segments only; ``only=init`` runs the first stage alone. ``network=unetr`` takes the
other network, ``smoke`` shrinks everything to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, edit, parse_variant
from unimed_jax.tasks import presets

WINDOW = "minmax"  # intensities that become 0 and 1
VARIANTS = ("", "smoke", "smoke,network=unetr", "smoke,only=init")


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(
        variant,
        **presets.VOLUMETRIC_CHOICES,
    )
    config = base_config(presets.task_of(chosen))
    config.classes = ("lung", "lesion")
    presets.small_volumetric(config, chosen["network"])
    if chosen["smoke"] == "on":
        presets.smoke_volumetric(config)
    with edit(config):
        config.data.raw.phantoms = ConfigDict({"kind": "volume_phantoms", "voxels": 48})
    presets.volumetric_run(config, "phantoms", chosen, WINDOW)
    return config
