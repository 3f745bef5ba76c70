"""Annotation files that a `UnimedPart` describes by columns: CSV, JSON Lines or arrays of JSON."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.conversion import image_places
from input_pipeline.conversion.annotations import (
    Annotation,
    OpenedAnnotations,
    PartOptions,
    first_file,
)
from input_pipeline.conversion.image_places import Places
from input_pipeline.conversion.official import table
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.conversion.unimed_parts import Column, UnimedPart
from input_pipeline.io import files, tabular_files
from input_pipeline.io.cell_text import literal_texts, value_texts
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath

_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|tiff?|ppm|bmp|gif|webp|dcm)$", re.IGNORECASE)


def open_described(part: UnimedPart, options: PartOptions) -> OpenedAnnotations | None:
    """The annotations of a part; None if its files are not below --raw.

    Raises CorpusError for a file that lacks a column, or whose image column holds no paths.
    """
    annotations = _files(part, options)
    if not annotations:
        return None
    records = _records(part, annotations, options.encoding)
    first = list(itertools.islice(records, image_places.PROBED_ROWS))
    readable = (record for record in first if isinstance(record, _Record))
    images = [image for record in readable if (image := _image(part, record))]
    if images and not any(map(_IMAGE_SUFFIX.search, images)):
        raise CorpusError(
            f"{annotations[0]}: column {part.image!r} holds no image paths, for example "
            f"{images[0]!r}"
        )
    places = image_places.probe(options.raw, images, part.image_folders, part.path_prefixes)
    rows = _read(part, options, places, itertools.chain(first, records))
    facts = {
        "annotations_left_out": dict(part.left_out),
        "image_folder": places.folder or ".",
    }
    return OpenedAnnotations(tuple(annotations), rows, facts)


def _files(part: UnimedPart, options: PartOptions) -> list[AnyPath]:
    """The annotation files, sorted, without excluded ones."""
    for pattern in part.annotations:
        matching = files.sorted_glob(options.raw, pattern)
        included = [path for path in matching if path.name not in part.left_out]
        if part.told_by:
            told_by, encoding = (part.told_by,), options.encoding
            included = [path for path in included if table.has_columns(path, told_by, encoding)]
        if included:
            return included
    return []


def _read(
    part: UnimedPart,
    options: PartOptions,
    places: Places,
    records: Iterator["_Record | Rejection"],
) -> Iterator[Annotation | Rejection]:
    """One annotation or rejection per record."""
    for record, released in _with_released(part, options, records):
        if isinstance(record, Rejection):
            yield record
            continue
        image = _image(part, record)
        try:
            if not image:
                raise ValueError("no image")
            yield _annotation(part, places, record, image, released)
        except ValueError as error:
            yield Rejection(str(error), record.number, path=image)


def _annotation(
    part: UnimedPart, places: Places, record: "_Record", image: str, released: Any
) -> Annotation:
    """Raises ValueError for cells that hold no texts."""
    values, split = record.values, ""
    if part.split_column is not None:
        split = str(values[part.split_column]).strip() or "none"
    return Annotation(
        number=record.number,
        path=places.canonical(image),
        image=places.path(image),
        texts=tuple(dict.fromkeys(t for c in part.texts for t in value_texts(values[c]))),
        labels=value_texts(values.get(part.labels)) if part.labels is not None else (),
        released=_sentences(released),
        split=split,
        modality=part.modality_by_key.get(record.key, ""),
        notes=tuple(
            note for column, note in part.note_by_column.items() if _is_true(values.get(column))
        ),
    )


def _is_true(cell: Any) -> bool:
    return str(cell).strip().lower() in ("1", "1.0", "true")


def _with_released(
    part: UnimedPart, options: PartOptions, records: Iterator["_Record | Rejection"]
) -> Iterator[tuple["_Record | Rejection", Any]]:
    """Every record with its published generated captions, if they are requested."""
    column = part.released
    if options.takes_released_captions and part.released_file is not None:
        yield from _joined_by_position(options.raw, records, *part.released_file)
        return
    for record in records:
        if column is None or isinstance(record, Rejection) or not options.takes_released_captions:
            yield record, None
        else:
            yield record, record.values.get(column)


def _joined_by_position(
    raw: AnyPath, records: Iterator["_Record | Rejection"], paths: tuple[str, ...], array_key: str
) -> Iterator[tuple["_Record | Rejection", Any]]:
    path = first_file(raw, paths) or raw / paths[0]
    captions = tabular_files.json_items(path, array_key)
    for record, item in itertools.zip_longest(records, captions):
        if record is None or item is None:
            what = "more" if record is None else "fewer"
            raise CorpusError(
                f"{path} has {what} entries under {array_key!r} than there are images: they "
                "belong together by position, so none can be trusted"
            )
        yield record, item[1]


@dataclasses.dataclass(frozen=True)
class _Record:
    number: int
    key: str  # of the JSON array that it is in
    values: Mapping[Column, Any]


def _records(
    part: UnimedPart, annotations: Sequence[AnyPath], encoding: str
) -> Iterator[_Record | Rejection]:
    """The rows of all annotation files, numbered through; rejections of what is no row."""
    needed = [part.image, *part.texts]
    needed += [part.split_column] if part.split_column is not None else []
    optional = [column for column in (part.labels, part.released) if column is not None]
    optional += part.note_by_column
    offset = number = 0
    for path in annotations:
        if part.format == "csv":
            header, rows = table.read(path, encoding)
            positions = _positions(path, header, needed, optional)
            for number, cells in enumerate(rows, offset + 1):
                if isinstance(cells, str):
                    yield Rejection(cells, number)
                else:
                    yield _Record(number, "", {c: cells[i] for c, i in positions.items()})
        elif part.format == "jsonl":
            for number, record in tabular_files.jsonl_values(path, encoding):
                if isinstance(record, str):
                    yield Rejection(f"no row of JSON: {record}", number)
                else:
                    yield _Record(number, "", {c: _lookup(record, c) for c in (*needed, *optional)})
        else:
            array_key = part.format.removeprefix("json:")
            for number, (key, record) in enumerate(tabular_files.json_items(path, array_key), 1):
                yield _Record(number, key, {c: _lookup(record, c) for c in (*needed, *optional)})
        offset = number


def _positions(
    path: AnyPath, header: Sequence[str], needed: Sequence[Column], optional: Sequence[Column]
) -> dict[Column, int]:
    """Column -> position in the CSV file. Names that are optional may be missing."""
    if twice := [name for name in (*needed, *optional) if header.count(str(name)) > 1]:
        raise CorpusError(f"{path} has more than one column {twice[0]!r}: rename all but one")
    positions: dict[Column, int] = {}
    for column in (*needed, *optional):
        if isinstance(column, int) and column < len(header):
            positions[column] = column
        elif column in header:
            positions[column] = header.index(column)
        elif column in needed or isinstance(column, int):
            raise CorpusError(f"{path} has no column {column!r}; found {header}")
    return positions


def _lookup(record: Any, path: Column) -> Any:
    """The value under a path like `answers|replies.1.value`; None where there is none."""
    for step in str(path).split("."):
        if isinstance(record, list):
            record = record[int(step)] if step.isdigit() and int(step) < len(record) else None
        elif isinstance(record, dict):
            record = next((record[name] for name in step.split("|") if name in record), None)
        else:
            record = None
    return record


def _image(part: UnimedPart, record: _Record) -> str:
    """The image path of a record as its annotation has it; empty if there is none."""
    value = record.values[part.image]
    names = literal_texts(value.strip()) if isinstance(value, str) else ()
    name = names[0].strip().replace("\\", "/") if names else ""  # also as Windows writes it
    return part.image_path.format(name) if name else ""


def _sentences(value: Any) -> tuple[str, ...]:
    """Texts with exactly one full stop at the end; the published ones have none, one or two."""
    return tuple(f"{bare}." for text in value_texts(value) if (bare := text.strip(" .")))
