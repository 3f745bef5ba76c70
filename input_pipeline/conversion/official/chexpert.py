"""CheXpert as Stanford distributes it: `train.csv` and `valid.csv`, a column per finding.

The small version is one folder. The full one is four archives, `CheXpert-v1.0 batch 1 (validate &
csv)` to `batch 4 (train 3)`: tables and `valid` are in the first, and the patients of `train` stand
without a folder of this name in the others.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from input_pipeline.conversion.annotations import (
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
)
from input_pipeline.conversion.official import attributes, findings, table
from input_pipeline.conversion.official.findings import FindingOptions
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io import files
from input_pipeline.io.cell_text import path_text
from input_pipeline.io.files import AnyPath

FOLDERS = ("CheXpert-v1.0-small", "CheXpert-v1.0")
_BATCHES = tuple(
    f"{top}CheXpert-v1.0 batch *" for top in ("", "CheXpert-v1.0/", "chexpertchestxrays-u20210408/")
)
_TRAIN = tuple(
    f"{folder}train.csv"
    for folder in ("", *(f"{name}/" for name in FOLDERS), *(f"{name}/" for name in _BATCHES))
)
_PATIENT = re.compile(r"patient\d+(?=/)")
_VIEW = "Frontal/Lateral"
_ATTRIBUTES = ("view", "age_group", "sex")


def open_chexpert(options: FindingOptions) -> OpenedAnnotations | None:
    """The frontal images of `train.csv` and, where it is present, `valid.csv`."""
    findings.check(options)
    wanted = attributes.requested(options, _ATTRIBUTES)
    train = next((path for name in _TRAIN for path in files.sorted_glob(options.raw, name)), None)
    if train is None:
        return None
    valid = train.with_name("valid.csv")
    tables = (train, valid) if valid.is_file() else (train,)
    columns = ("Path", _VIEW, *findings.FINDINGS)
    places, rows = table.with_places(
        options.raw,
        table.rows(tables, columns, ("Sex", "Age"), options.encoding),
        "Path",
        ("", *FOLDERS),
        tuple(f"{name}/" for name in FOLDERS),
    )
    patients = _patients(options.raw)

    def image(path: str) -> str:
        patient = _PATIENT.search(path)
        if patient is None or patient[0] not in patients:
            return places.path(path)
        return f"{patients[patient[0]]}/{path[patient.start() :]}"

    facts = {
        "image_folder": sorted(set(patients.values())) or places.folder or ".",
        "cells_of_findings": findings.policy(options),
        "views": "frontal, by the column Frontal/Lateral",
    }
    annotations = _read(rows, places.canonical, image, options, wanted)
    return OpenedAnnotations(tables, annotations, facts)


def _patients(raw: AnyPath) -> Mapping[str, str]:
    """Patient -> the folder of batches below --raw that has it; empty without batches."""
    batches = [folder for pattern in _BATCHES for folder in files.sorted_glob(raw, pattern)]
    folders = [folder / name if name else folder for folder in batches for name in ("", "valid")]
    return {
        patient.name: files.relative_name(folder, raw)
        for folder in folders
        for patient in files.sorted_glob(folder, "patient*")
    }


def _read(
    rows: Iterator[table.TableRow | Rejection],
    canonical: Callable[[str], str],
    image: Callable[[str], str],
    options: FindingOptions,
    wanted: frozenset[str],
) -> Iterator[Annotation | Rejection]:
    for row in rows:
        if isinstance(row, Rejection):
            yield row
            continue
        path = row.cells["Path"]
        try:
            path = path_text(path)
            if not path:
                raise ValueError("no image")
            if row.cells[_VIEW].lower() != "frontal":
                raise ValueError(f"not a frontal view: {row.cells[_VIEW]!r}")
            labels = findings.require(findings.labels(row.cells, options))
            labels += attributes.labels(wanted, "frontal", row.cells["Age"], row.cells["Sex"])
            yield Annotation(row.number, canonical(path), image(path), labels=labels)
        except ValueError as error:
            yield Rejection(str(error), row.number, path=path)


LAYOUT = Layout(OFFICIAL, _TRAIN, open_chexpert)
