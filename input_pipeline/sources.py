"""What corpora can be converted: each source is one entry of `SOURCES`.

An entry names a dataclass of options (every field becomes a flag of `tools/convert_corpus.py`, with
the text in its annotation as help) and a generator that turns the options into rows. Rows hold
paths, not pixels: images are read when the shards are written, in many processes.
"""

import ast
import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

from input_pipeline.errors import CorpusError
from input_pipeline.write_shards import Rejection

_MAX_FIELD = 1 << 24  # characters of one CSV field; the csv module's own limit is 131,072


@dataclasses.dataclass(frozen=True)
class SourceRow:
    """One image of a corpus before conversion.

    `row` counts from 1; `image` is a path relative to the root of the source's options; `texts`
    were written by people for this image.
    """

    row: int
    id: str
    image: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    modality: str
    source: str
    split: str
    group: str


class Options(Protocol):
    """What every options dataclass of a source offers beside its flags."""

    @property
    def root(self) -> Path:
        """The folder that image paths are relative to."""

    @property
    def default_name(self) -> str:
        """Name of the corpus if the user gives none."""


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Flags of the `csv` and `jsonl` sources."""

    input: Annotated[Path, "the table: CSV with a header line, or JSON Lines; UTF-8"]
    image_root: Annotated[Path | None, "folder that image paths are relative to (of --input)"] = (
        None
    )
    image_column: Annotated[str, "image paths (image)"] = "image"
    label_column: Annotated[str | None, "class names (label, if there)"] = None
    text_column: Annotated[str | None, "texts about the very image (text, if there)"] = None
    modality_column: Annotated[str | None, "xray, ct, mri, ... (modality)"] = None
    source_column: Annotated[str | None, "collection that the image is from (source)"] = None
    split_column: Annotated[str | None, "train, val, ... (split, if there)"] = None
    group_column: Annotated[str | None, "patient or study (group, if there)"] = None
    id_column: Annotated[str | None, "unique sample id (none: it is SOURCE/IMAGE_PATH)"] = None
    label_separator: Annotated[str | None, "text between labels in one cell (one label each)"] = (
        None
    )
    modality: Annotated[str | None, "modality of all rows, in place of a column"] = None
    source: Annotated[str | None, "source of all rows, in place of a column"] = None
    split: Annotated[str, "split of the rows that name none (train)"] = "train"

    @property
    def root(self) -> Path:
        return self.image_root or self.input.parent

    @property
    def default_name(self) -> str:
        return re.sub(r"\W", "_", self.input.resolve().parent.name) or "corpus"


def csv_rows(options: TableOptions) -> Iterator[SourceRow | Rejection]:
    """Rows of a CSV file with a header line; `row` 1 is the first after the header."""
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader((line for _, line in _lines(options.input)), strict=True)
    try:
        header = next(reader, [])
        columns = _columns(options, header)

        def records() -> Iterator[tuple[int, Mapping[str, Any]]]:
            for number, cells in enumerate(filter(None, reader), 1):
                if len(cells) != len(header):
                    raise CorpusError(
                        f"{options.input}, line {reader.line_num}: {len(cells)} fields, but the "
                        f"header has {len(header)}"
                    )
                yield number, dict(zip(header, cells, strict=True))

        yield from _table_rows(options, columns, records())
    except csv.Error as error:
        raise CorpusError(f"{options.input}, line {reader.line_num}: {error}") from error


def jsonl_rows(options: TableOptions) -> Iterator[SourceRow | Rejection]:
    """Rows of a JSON Lines file, one object each; `row` is the line number.

    A value may be a text, a number or null; of text and label columns also a list of texts.
    """

    def records() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for number, line in _lines(options.input):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise CorpusError(f"{options.input}, line {number}: {error}") from error
            if not isinstance(record, dict):
                raise CorpusError(f"{options.input}, line {number}: not a JSON object")
            yield number, record

    # Keys may be absent from some lines: what columns there are is known after reading them all.
    found = dict.fromkeys(key for _, record in records() for key in record)
    yield from _table_rows(options, _columns(options, found), records())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file with their line ends, without a byte order mark."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(
                        f"{path}, line {number}: not UTF-8 ({error.reason})"
                    ) from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error


def _columns(options: TableOptions, found: Iterable[str]) -> Mapping[str, str | None]:
    """Maps the fields of a row to columns; None where there is neither column nor need."""
    found = list(found)
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
            columns[field] = field if field in found and field != "id" else None
    if columns["label"] is None and columns["text"] is None:
        columns["label"] = "label"  # one of the two is needed: reported as missing below
    missing = {field: name for field, name in columns.items() if name and name not in found}
    if missing:
        field, name = next(iter(missing.items()))
        remedy = f"--{field}_column=NAME"
        if field in ("modality", "source"):
            remedy += f" or --{field}=VALUE"
        if field == "label" and not options.label_column:
            remedy += " or --text_column=NAME"
        raise CorpusError(f"{options.input} has no column {name!r}; found {found}; give {remedy}")
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
        single = {
            field: found[0] if found else constants.get(field) or ""
            for field, found in cells.items()
        }
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
        )


def _texts(cell: Any, where: str) -> tuple[str, ...]:
    """The non-empty texts of a CSV cell or JSON value."""
    items = cell if isinstance(cell, list) else [cell]
    if any(isinstance(item, dict | list) for item in items):
        raise CorpusError(f"{where}: expected a text or a list of texts: {json.dumps(cell)[:60]}")
    texts = ("" if item is None else str(item).strip() for item in items)
    return tuple(filter(None, texts))


def clean_texts(cell: str) -> tuple[str, ...]:
    """The captions in a cell, white space collapsed and empty ones dropped.

    A cell that is a Python list of texts, as some published tables have it, holds several.
    """
    texts = [cell]
    if cell.startswith("[") and cell.endswith("]"):
        try:
            parsed = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parsed = None  # a caption in brackets
        if isinstance(parsed, list) and all(isinstance(text, str) for text in parsed):
            texts = parsed
    return tuple(clean for text in texts if (clean := " ".join(text.split())))


@dataclasses.dataclass(frozen=True)
class Source:
    """How a corpus is read: its flags, and the generator of its rows."""

    help: str
    options: type[Options]
    rows: Callable[[Any], Iterator[SourceRow | Rejection]]


SOURCES: Mapping[str, Source] = {
    "csv": Source("a CSV of image paths, labels and texts", TableOptions, csv_rows),
    "jsonl": Source("JSON Lines of image paths, labels and texts", TableOptions, jsonl_rows),
}
