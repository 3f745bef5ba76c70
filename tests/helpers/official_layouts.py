"""Small folders as the owners of UniMed's parts distribute them, with invented images and texts."""

from helpers.unimed_layouts import put_csv, put_image

from input_pipeline.conversion.official.findings import FINDINGS

CHEXPERT_HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS]


def cells(**values):
    """Cells of the fourteen findings; names as keywords, with underscores."""
    return [values.get(finding.replace(" ", "_"), "") for finding in FINDINGS]


CHEXPERT_ROWS = {
    "train": [
        ("train/patient00001/study1/view1_frontal.jpg", "Frontal", "AP", cells(No_Finding="1.0")),
        (
            "train/patient00002/study1/view1_frontal.jpg",
            "Frontal",
            "PA",
            cells(Edema="1.0", Cardiomegaly="-1.0", Fracture="0.0"),
        ),
        ("train/patient00002/study1/view2_lateral.jpg", "Lateral", "", cells(Edema="1.0")),
        ("train/patient00003/study2/view1_frontal.jpg", "Frontal", "AP", cells(Edema="-1.0")),
    ],
    "valid": [
        (
            "valid/patient64541/study1/view1_frontal.jpg",
            "Frontal",
            "AP",
            ["0.0"] * 13 + ["1.0"],
        )
    ],
}


def chexpert(raw, folder="CheXpert-v1.0-small", stated="CheXpert-v1.0-small"):
    """`stated` is the folder in the paths of the table, which may not be that on the disk."""
    for split, rows in CHEXPERT_ROWS.items():
        table = [
            [f"{stated}/{path}", "Female", "68", view, side, *found]
            for path, view, side, found in rows
        ]
        put_csv(raw / folder / f"{split}.csv", CHEXPERT_HEADER, table)
        for n, (path, *_) in enumerate(rows):
            put_image(raw / folder / path, n)
