"""The spinal cord of one person in three MR contrasts, one of them held out.

    unimed-jax train --config=configs/lwi_vms/spinal_cord.py --workdir=runs/spinal_cord \\
        --config.data.root=SEG3D

SEG3D holds spinal_cord/NAME_image.nii.gz and NAME_label.nii.gz; ``fold=1`` holds out another
contrast.

``init=learned`` (the default) runs two stages: the first, in WORKDIR/stages/init, predicts the
permutation of shuffled sub-volumes and restores masked cubes; the second starts from its weights.
``init=random`` segments only; ``only=init`` runs the first stage alone. ``network=unetr`` takes the
other network, ``smoke`` shrinks everything to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, parse_variant
from unimed_jax.tasks import presets

WINDOW = "percentiles:0.5,99.5"  # intensities that become 0 and 1
FOLDS = (("T2star",), ("T1w",), ("T2w",))  # volumes that are held out


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(
        variant,
        **presets.VOLUMETRIC_CHOICES,
        fold=tuple(map(str, range(len(FOLDS)))),
    )
    config = base_config(presets.task_of(chosen))
    config.classes = ("cord",)
    presets.small_volumetric(config, chosen["network"])
    if chosen["smoke"] == "on":
        presets.smoke_volumetric(config)
    presets.raw_volumes(config, "spinal_cord", "mri", WINDOW, held_out=FOLDS[int(chosen["fold"])])
    presets.volumetric_run(config, "spinal_cord", chosen, WINDOW)
    return config
