"""The spleen in one CT volume, which is trained on and scored: there is none to hold out.

    unimed-jax train --config=configs/lwi_vms/spleen_ct.py --workdir=runs/spleen_ct \\
        --config.data.root=SEG3D

SEG3D holds spleen_ct/NAME_image.nii.gz and NAME_label.nii.gz.

``init=learned`` (the default) runs two stages: the first, in WORKDIR/stages/init, predicts the
permutation of shuffled sub-volumes and restores masked cubes; the second starts from its weights.
``init=random`` segments only; ``only=init`` runs the first stage alone. ``network=unetr`` takes the
other network, ``smoke`` shrinks everything to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, parse_variant
from unimed_jax.tasks import presets

WINDOW = "-175,250"  # intensities that become 0 and 1


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(
        variant,
        **presets.VOLUMETRIC_CHOICES,
    )
    config = base_config(presets.task_of(chosen))
    config.classes = ("spleen",)
    config.data.spacing = (0.0, 2.4, 2.4)
    presets.small_volumetric(config, chosen["network"])
    if chosen["smoke"] == "on":
        presets.smoke_volumetric(config)
    presets.raw_volumes(config, "spleen_ct", "ct", WINDOW, held_out=())
    presets.volumetric_run(config, "spleen_ct", chosen, WINDOW, has_val=False)
    return config
