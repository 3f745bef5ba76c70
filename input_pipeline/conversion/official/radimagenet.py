"""RadImageNet's own lists: CSV files of `filename,label`, one per split."""

import re
from collections.abc import Iterator

from input_pipeline.conversion.annotations import (
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
    PartOptions,
)
from input_pipeline.conversion.image_places import Places
from input_pipeline.conversion.official import table
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io import files
from input_pipeline.io.cell_text import is_missing, path_text

FOLDERS = ("", "radimagenet", "radiology_ai", "radimagenet/radiology_ai")
PREFIXES = ("radimagenet/", "radiology_ai/")
_COLUMNS = ("filename", "label")
_LISTS = tuple(f"{folder}/*.csv".lstrip("/") for folder in (*FOLDERS, "RadImageNet_split"))
_SPLIT = re.compile(r"train|val|test")
_ANATOMY = {  # second folder of a path -> value in the captions' vocabulary
    "abd": "abdomen",
    "af": "ankle",
    "brain": "brain",
    "hip": "hip",
    "knee": "knee",
    "lung": "chest",
    "shoulder": "shoulder",
    "spine": "spine",
}


def open_radimagenet(options: PartOptions) -> OpenedAnnotations | None:
    """All lists of a folder; their names tell the split."""
    for pattern in _LISTS:
        found = files.sorted_glob(options.raw, pattern)
        lists = [
            path
            for path in found
            if table.has_columns(path, _COLUMNS, options.encoding)
            and (split_of(path.name) in ("train", "") or not options.is_published)
        ]
        if lists:
            break
    else:
        return None
    places, rows = table.with_places(
        options.raw,
        table.rows(lists, _COLUMNS, encoding=options.encoding),
        "filename",
        FOLDERS,
        PREFIXES,
    )
    facts = {"image_folder": places.folder or "."}
    return OpenedAnnotations(tuple(lists), _read(rows, places), facts)


def split_of(name: str) -> str:
    """The split that a file name tells: `RadiologyAI_val.csv`; empty if it tells none."""
    found = _SPLIT.search(name.lower())
    return found[0] if found else ""


def anatomy(path: str) -> tuple[str, ...]:
    """The part of the body that a path such as `CT/abd/normal/1.png` tells, as `anatomy=VALUE`.

    Labels such as `normal` do not say it. The folders of ultrasound are organs, which are labels.
    """
    folders = path.split("/")
    found = _ANATOMY.get(folders[1]) if len(folders) > 2 else None
    return (f"anatomy={found}",) if found else ()


def _read(
    rows: Iterator[table.TableRow | Rejection], places: Places
) -> Iterator[Annotation | Rejection]:
    for row in rows:
        if isinstance(row, Rejection):
            yield row
            continue
        path, label = row.cells["filename"], row.cells["label"]
        try:
            path = path_text(path)
            if not path or is_missing(label):
                raise ValueError("no label" if path else "no image")
            yield Annotation(
                row.number,
                name := places.canonical(path),
                places.path(path),
                labels=(label, *anatomy(name)),
                split=split_of(row.file),
            )
        except ValueError as error:
            yield Rejection(str(error), row.number, path=path)


LAYOUT = Layout(OFFICIAL, _LISTS, open_radimagenet)
