"""The sources `csv` and `jsonl`: a table with an image, labels and texts per row."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from input_pipeline.conversion.planned_rows import Rejection, SourceRow
from input_pipeline.conversion.sources.base import OpenedSource, corpus_name
from input_pipeline.io import tabular_files
from input_pipeline.io.cell_text import clean_texts, is_missing, path_text
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath
from input_pipeline.manifest import file_sha256

_NO_LABEL = "labels that say nothing (nan, N/A, ...) left out"


@dataclass(frozen=True)
class TableOptions:
    """Flags of the `csv` and `jsonl` sources."""

    input: Annotated[AnyPath, "the table: CSV with a header line, or JSON Lines"]
    image_root: Annotated[
        AnyPath | None, "folder that image paths are relative to (folder of --input)"
    ] = None
    image_column: Annotated[str, "image paths (image)"] = "image"
    label_column: Annotated[str | None, "class names (label, if present)"] = None
    text_column: Annotated[str | None, "original texts about the image (text, if present)"] = None
    modality_column: Annotated[str | None, "xray, ct, mri, ... (modality)"] = None
    source_column: Annotated[str | None, "collection that the image is from (source)"] = None
    split_column: Annotated[str | None, "train, val, ... (split, if present)"] = None
    group_column: Annotated[str | None, "patient or study (group, if present)"] = None
    id_column: Annotated[str | None, "unique sample id (default id: SOURCE/IMAGE_PATH)"] = None
    label_separator: Annotated[
        str | None, "separator of labels in one cell (one label per cell)"
    ] = None
    modality: Annotated[str | None, "modality of all rows, instead of a column"] = None
    source: Annotated[str | None, "source of all rows, instead of a column"] = None
    split: Annotated[str, "split of rows without one (train)"] = "train"
    encoding: Annotated[str, "of the table: cp1252, ... (UTF-8, or as its mark says)"] = ""


def open_csv(options: TableOptions) -> OpenedSource:
    """A CSV file with a header line; `row` 1 is the first after the header."""
    header = tabular_files.csv_header(options.input, options.encoding)
    columns = _columns(options, header)
    records = (
        (number, dict(zip(header, cells, strict=True)))
        for number, cells in tabular_files.csv_records(options.input, options.encoding)
    )
    return _reading(options, columns, header, records)


def open_jsonl(options: TableOptions) -> OpenedSource:
    """A JSON Lines file, one object each; `row` is the line number.

    A value may be a text, a number or null; in text and label columns also a list of texts.
    """
    # Keys may be absent from some lines: the columns are known after reading all of them.
    records = tabular_files.jsonl_records(options.input, options.encoding)
    keys = dict.fromkeys(key for _, record in records for key in record)
    records = tabular_files.jsonl_records(options.input, options.encoding)
    return _reading(options, _columns(options, keys), keys, records)


def _reading(
    options: TableOptions,
    columns: Mapping[str, str | None],
    names: Iterable[str],
    records: Iterable[tuple[int, Mapping[str, Any]]],
) -> OpenedSource:
    name = corpus_name(options.input.resolve().parent.name)
    root = options.image_root or options.input.parent
    file: dict[str, Any] = {"file": options.input.name, "sha256": file_sha256(options.input)}
    if unused := [name for name in names if name and name not in columns.values()]:
        file["columns_not_used"] = unused
    metadata = {"input": file}
    return OpenedSource(root, name, _table_rows(options, columns, records), metadata)


def _columns(options: TableOptions, names: Iterable[str]) -> Mapping[str, str | None]:
    """Maps the fields of a row to columns; None for an optional field without a column."""
    names = list(names)
    columns: dict[str, str | None] = {"image": options.image_column}
    for field in ("label", "text", "modality", "source", "split", "group", "id"):
        named = getattr(options, f"{field}_column")
        if field in ("modality", "source") and getattr(options, field):
            if named:
                raise CorpusError(f"give --{field} or --{field}_column, not both")
            columns[field] = None
        elif named:
            columns[field] = named
        elif field in ("modality", "source"):
            columns[field] = field
        else:
            columns[field] = field if field in names and field != "id" else None
    if columns["label"] is None and columns["text"] is None:
        columns["label"] = "label"  # one of the two is needed: reported as missing below
    missing = {field: name for field, name in columns.items() if name and name not in names}
    if missing:
        field, name = next(iter(missing.items()))
        remedy = f"--{field}_column=NAME"
        if field in ("modality", "source"):
            remedy += f" or --{field}=VALUE"
        if field == "label" and not options.label_column:
            remedy += " or --text_column=NAME"
        raise CorpusError(f"{options.input} has no column {name!r}; found {names}; give {remedy}")
    return columns


def _table_rows(
    options: TableOptions,
    columns: Mapping[str, str | None],
    records: Iterable[tuple[int, Mapping[str, Any]]],
) -> Iterator[SourceRow | Rejection]:
    constants = {"modality": options.modality, "source": options.source, "split": options.split}
    for number, record in records:
        where = f"{options.input}, line {number}"
        cells = {
            field: _texts(record.get(column), where) if column else ()
            for field, column in columns.items()
        }
        given = cells["label"]
        cells |= {
            field: tuple(text for text in texts if not is_missing(text))
            for field, texts in cells.items()
            if field != "text"  # whether a text is a caption is decided where all are
        }
        single = {
            field: texts[0] if texts else constants.get(field) or ""
            for field, texts in cells.items()
        }
        try:
            single["image"] = path_text(single["image"])
        except ValueError as error:
            yield Rejection(str(error), number, path=single["image"])
            continue
        row_id = single["id"] or f"{single['source']}/{single['image']}"
        empty = [field for field in ("image", "modality", "source") if not single[field]]
        if empty:
            yield Rejection(f"no {empty[0]}", number, path=single["image"])
            continue
        labels = cells["label"]
        if options.label_separator:
            parts = (
                part.strip() for text in labels for part in text.split(options.label_separator)
            )
            labels = tuple(filter(None, parts))
        yield SourceRow(
            row=number,
            id=row_id,
            image=single["image"],
            texts=tuple(text for cell in cells["text"] for text in clean_texts(cell)),
            labels=labels,
            modality=single["modality"],
            source=single["source"],
            split=single["split"],
            group=single["group"],
            notes=(_NO_LABEL,) if cells["label"] != given else (),
        )


def _texts(cell: Any, where: str) -> tuple[str, ...]:
    """The non-empty texts of a CSV cell or JSON value."""
    items = cell if isinstance(cell, list) else [cell]
    if any(isinstance(item, dict | list) for item in items):
        raise CorpusError(f"{where}: expected a text or a list of texts: {json.dumps(cell)[:60]}")
    texts = ("" if item is None else str(item).strip() for item in items)
    return tuple(filter(None, texts))
