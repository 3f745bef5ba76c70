"""Lung and infection in CT volumes of COVID-19 patients, at half the resolution in the plane.

    unimed-jax train --config=configs/lwi_vms/covid_ct.py --workdir=runs/covid \\
        --config.data.root=SEG3D

SEG3D holds covid_ct/NAME_image.nii.gz and NAME_label.nii.gz; ``fold=1`` holds out other patients.
Results are in docs/guides/volumetric.md.

``init=learned`` (the default) runs two stages: the first, in WORKDIR/stages/init, predicts the
permutation of shuffled sub-volumes and restores masked cubes; the second starts from its weights.
``init=random`` segments only; ``only=init`` runs the first stage alone. ``network=unetr`` takes the
other network, ``smoke`` shrinks everything to minutes on 2 cores.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, parse_variant
from unimed_jax.tasks import presets

WINDOW = "0,4095"  # values of the scanner, not Hounsfield units, that become 0 and 1
FOLDS = (
    ("patient3", "patient5"),
    ("patient1", "patient2"),
    ("patient4", "patient7"),
)  # volumes that are held out


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(
        variant,
        **presets.VOLUMETRIC_CHOICES,
        fold=tuple(map(str, range(len(FOLDS)))),
    )
    config = base_config(presets.task_of(chosen))
    config.classes = ("lung", "infection")
    config.data.spacing = (0.0, 7.876, 7.876)
    presets.small_volumetric(config, chosen["network"])
    if chosen["smoke"] == "on":
        presets.smoke_volumetric(config)
    presets.raw_volumes(config, "covid_ct", "ct", WINDOW, held_out=FOLDS[int(chosen["fold"])])
    presets.volumetric_run(config, "covid_ct", chosen, WINDOW)
    return config
