"""NIH ChestX-ray14 as its owner distributes it: `Data_Entry_2017[_v2020].csv`, twelve folders."""

import re
from collections.abc import Iterator, Mapping

from input_pipeline.conversion.annotations import (
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
    first_file,
)
from input_pipeline.conversion.official import attributes, table
from input_pipeline.conversion.official.attributes import AttributeOptions
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io import files
from input_pipeline.io.cell_text import path_text
from input_pipeline.io.files import AnyPath

FOLDERS = ("chest_xray8/", "CXR8/", "ChestX-ray14/")
_NAMES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_TABLES = tuple(f"{top}{name}" for name in _NAMES for top in ("", *FOLDERS))
_IMAGE_FOLDERS = ("images", "images/images", "images_*/images", "images_*", "images/images_*")
_IMAGE, _LABELS = "Image Index", "Finding Labels"
_AGE, _VIEW = "Patient Age", "View Position"
_SEX = ("Patient Gender", "Patient Sex")  # of one version or another
_ATTRIBUTES = ("view", "age_group", "sex")
_SUFFIX = re.compile(r"\.png$", re.IGNORECASE)
_PNG = "*.[pP][nN][gG]"


def open_nih(options: AttributeOptions) -> OpenedAnnotations | None:
    """The rows of the table, with their images from wherever they were unpacked."""
    path = first_file(options.raw, _TABLES)
    if path is None:
        return None
    wanted = attributes.requested(options, _ATTRIBUTES)
    folders, places = _places(options.raw, path)
    facts = {"image_folder": folders}
    rows = table.rows([path], (_IMAGE, _LABELS), (_AGE, *_SEX, _VIEW), options.encoding)
    return OpenedAnnotations((path,), _read(rows, places, folders[0], wanted), facts)


def _places(raw: AnyPath, table_path: AnyPath) -> tuple[list[str], Mapping[str, str]]:
    """The folders with images below --raw; and image, in lower case, -> its path there."""
    top = table_path.parent
    found: dict[str, str] = {}
    folders: list[str] = []
    for pattern in _IMAGE_FOLDERS:
        for folder in files.sorted_glob(top, pattern):
            name = "" if folder == raw else files.relative_name(folder, raw)
            images = [path.name for path in files.sorted_glob(folder, _PNG)]
            for image in images:
                found.setdefault(image.lower(), f"{name}/{image}")
            folders += [name] * bool(images)
    below = "" if top == raw else f"{files.relative_name(top, raw)}/"
    return folders or [f"{below}images"], found


def _read(
    rows: Iterator[table.TableRow | Rejection],
    places: Mapping[str, str],
    default: str,
    wanted: frozenset[str],
) -> Iterator[Annotation | Rejection]:
    for row in rows:
        if isinstance(row, Rejection):
            yield row
            continue
        name = row.cells[_IMAGE]
        try:
            name = path_text(name).rpartition("/")[2]
            if not _SUFFIX.search(name):
                raise ValueError(f"no image: {name!r} is no name of a PNG")
            labels = finding_labels(row.cells[_LABELS])
            if not labels:
                raise ValueError("no finding, not even `No Finding`")
            view = "frontal" if row.cells[_VIEW].upper() in ("AP", "PA") else ""
            sex = "".join(row.cells[name] for name in _SEX)
            labels += attributes.labels(wanted, view, row.cells[_AGE], sex)
            image = places.get(name.lower(), f"{default}/{name}")
            yield Annotation(row.number, name, image, labels=labels)
        except ValueError as error:
            yield Rejection(str(error), row.number, path=name)


def finding_labels(cell: str) -> tuple[str, ...]:
    """The findings of a cell such as `Effusion|Mass`, each once, in their order."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, cell.split("|")))))


LAYOUT = Layout(OFFICIAL, _TABLES, open_nih)
