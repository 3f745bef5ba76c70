"""CheXpert as Stanford distributes it: `train.csv` and `valid.csv`, a column per finding."""

from collections.abc import Iterator

from input_pipeline.conversion.annotations import (
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
    first_file,
)
from input_pipeline.conversion.image_places import Places
from input_pipeline.conversion.official import attributes, findings, table
from input_pipeline.conversion.official.findings import FindingOptions
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io.cell_text import path_text

FOLDERS = ("CheXpert-v1.0-small", "CheXpert-v1.0")
_TRAIN = tuple(f"{folder}train.csv" for folder in ("", *(f"{name}/" for name in FOLDERS)))
_VIEW = "Frontal/Lateral"
_ATTRIBUTES = ("view", "age_group", "sex")


def open_chexpert(options: FindingOptions) -> OpenedAnnotations | None:
    """The frontal images of `train.csv` and, where it is present, `valid.csv`."""
    findings.check(options)
    wanted = attributes.requested(options, _ATTRIBUTES)
    train = first_file(options.raw, _TRAIN)
    if train is None:
        return None
    valid = train.with_name("valid.csv")
    files = (train, valid) if valid.is_file() else (train,)
    columns = ("Path", _VIEW, *findings.FINDINGS)
    places, rows = table.with_places(
        options.raw,
        table.rows(files, columns, ("Sex", "Age")),
        "Path",
        ("", *FOLDERS),
        tuple(f"{name}/" for name in FOLDERS),
    )
    facts = {
        "image_folder": places.folder or ".",
        "cells_of_findings": findings.policy(options),
        "views": "frontal, by the column Frontal/Lateral",
    }
    return OpenedAnnotations(files, _read(rows, places, options, wanted), facts)


def _read(
    rows: Iterator[table.TableRow | Rejection],
    places: Places,
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
            yield Annotation(row.number, places.canonical(path), places.path(path), labels=labels)
        except ValueError as error:
            yield Rejection(str(error), row.number, path=path)


LAYOUT = Layout(OFFICIAL, _TRAIN, open_chexpert)
