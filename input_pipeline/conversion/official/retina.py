"""The lists of the FLAIR family of fundus sets: `,image,atributes,categories`, one per set.

Categories are Python lists as text, with several names in a row. `atributes` is spelt so.
"""

import ast
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
from input_pipeline.io.cell_text import path_text

FOLDERS = ("Retina-Datasets", "")
PREFIXES = ("Retina-Datasets/",)
_LISTS = ("Retina-Annotations/*.csv", "*.csv")
_COLUMNS = ("image", "categories")
_NO_CATEGORY = "unknown diagnosis"  # of 11_STARE
_LEFT_OUT = {  # file name -> reason
    r"06_DEN": "part retina_part2",
    r"39_MM_Retinal": "part retina_part3",
    r"FIVES|REFUGE|200x3": "test set of unimed21",
    r"_revised": "a second list of a set",
}


def open_retina(options: PartOptions) -> OpenedAnnotations | None:
    """The lists of a folder, in the order of their names, without those of `_LEFT_OUT`."""
    for pattern in _LISTS:
        found = files.sorted_glob(options.raw, pattern)
        why = {path.name: reason for path in found if (reason := left_out(path.name))}
        lists = [
            path
            for path in found
            if path.name not in why and table.has_columns(path, _COLUMNS, options.encoding)
        ]
        if lists:
            break
    else:
        return None
    places, rows = table.with_places(
        options.raw,
        table.rows(lists, _COLUMNS, encoding=options.encoding),
        "image",
        FOLDERS,
        PREFIXES,
    )
    facts = {"annotations_left_out": why, "image_folder": places.folder or "."}
    return OpenedAnnotations(tuple(lists), _read(rows, places), facts)


def left_out(name: str) -> str:
    """Why a list is not read; empty if it is."""
    reasons = (reason for regex, reason in _LEFT_OUT.items() if re.search(regex, name, re.I))
    return next(reasons, "")


def categories(cell: str) -> tuple[str, ...]:
    """The names in a Python list as text, each once, without `unknown diagnosis`.

    The text is parsed, never run. Raises ValueError for anything else.
    """
    try:
        parsed = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        parsed = None
    if not isinstance(parsed, list) or not all(isinstance(name, str) for name in parsed):
        raise ValueError(f"categories are no list of texts: {cell[:60]!r}")
    names = (" ".join(name.split()) for name in parsed)
    return tuple(dict.fromkeys(name for name in names if name.lower() not in ("", _NO_CATEGORY)))


def _read(
    rows: Iterator[table.TableRow | Rejection], places: Places
) -> Iterator[Annotation | Rejection]:
    for row in rows:
        if isinstance(row, Rejection):
            yield row
            continue
        path = row.cells["image"]
        try:
            path = path_text(path)
            labels = categories(row.cells["categories"])
            if not path or not labels:
                raise ValueError(f"no category: {row.cells['categories']}" if path else "no image")
            yield Annotation(row.number, places.canonical(path), places.path(path), labels=labels)
        except ValueError as error:
            yield Rejection(str(error), row.number, path=path)


LAYOUT = Layout(OFFICIAL, _LISTS, open_retina)
