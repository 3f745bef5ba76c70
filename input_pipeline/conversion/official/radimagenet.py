"""RadImageNet's own lists: CSV files of `filename,label`, one per split."""

import itertools
import re
from collections.abc import Iterator, Sequence

from input_pipeline.conversion import image_places
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
from input_pipeline.io.files import AnyPath

FOLDERS = ("", "radimagenet", "radiology_ai", "radimagenet/radiology_ai")
PREFIXES = ("radimagenet/", "radiology_ai/")
_COLUMNS = ("filename", "label")
_LISTS = tuple(f"{folder}/*.csv".lstrip("/") for folder in FOLDERS)
_SPLIT = re.compile(r"train|val|test")


def open_radimagenet(options: PartOptions) -> OpenedAnnotations | None:
    """All lists of a folder; their names tell the split."""
    for pattern in _LISTS:
        found = files.sorted_glob(options.raw, pattern)
        lists = [path for path in found if table.has_columns(path, _COLUMNS)]
        if lists:
            break
    else:
        return None
    rows = _rows(lists)
    first = list(itertools.islice(rows, image_places.PROBED_ROWS))
    images = [row.cells["filename"] for _, row in first if isinstance(row, table.TableRow)]
    places = image_places.probe(options.raw, images, FOLDERS, PREFIXES)
    facts = {"image_folder": places.folder or "."}
    return OpenedAnnotations(tuple(lists), _read(itertools.chain(first, rows), places), facts)


def split_of(name: str) -> str:
    """The split that a file name tells: `RadiologyAI_val.csv`; empty if it tells none."""
    found = _SPLIT.search(name.lower())
    return found[0] if found else ""


def _rows(lists: Sequence[AnyPath]) -> Iterator[tuple[str, table.TableRow | Rejection]]:
    """(split, row) of all lists, numbered through."""
    number = 0
    for path in lists:
        for row in table.rows(path, _COLUMNS, offset=number):
            number += 1
            yield split_of(path.name), row


def _read(
    rows: Iterator[tuple[str, table.TableRow | Rejection]], places: Places
) -> Iterator[Annotation | Rejection]:
    for split, row in rows:
        if isinstance(row, Rejection):
            yield row
            continue
        path, label = row.cells["filename"], row.cells["label"]
        try:
            path = path_text(path)
            if not path or is_missing(label):
                raise ValueError("no label" if path else "no image")
            image = places.path(path)
            yield Annotation(
                row.number, places.canonical(path), image, labels=(label,), split=split
            )
        except ValueError as error:
            yield Rejection(str(error), row.number, path=path)


LAYOUT = Layout(OFFICIAL, _LISTS, open_radimagenet)
