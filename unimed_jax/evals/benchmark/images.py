"""Reads the files of an evaluation set: its images with their labels."""

import collections
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.io.cell_text import literal_texts
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.tabular_files import csv_rows
from unimed_jax.evals.benchmark.spec import (
    CsvLayout,
    FilesLayout,
    FindingsLayout,
    Layout,
    SetSpec,
    TfdsLayout,
)


@dataclass(frozen=True)
class LabelledImages:
    """The N distinct images of a set, in the order of its files.

    Attributes:
      ids: paths relative to the data root, or DATASET/SPLIT/NUMBER of TFDS.
      labels: (N,) int32, the class of each image.
      counts: (N,) int32, how often each image is listed.
      groups: the patient or exam of each image; the id of the image if unknown.
      places: the file and row of each image, for messages.
      ignored: label -> number of rows that are in the files but not in the set.
      num_left_out: number of rows of the set that count in no score: the published reader loses
        them, or their finding is uncertain.
      notes: how the files were read where that is not evident.
      source: the file or folder that was read.
      read: (begin, end) -> the encoded images with these indices, in order.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    counts: np.ndarray
    groups: tuple[str, ...]
    places: tuple[str, ...]
    ignored: Mapping[str, int]
    num_left_out: int
    notes: tuple[str, ...]
    source: str
    read: Callable[[int, int], Iterator[bytes]]

    def select(self, rows: np.ndarray, labels: np.ndarray) -> "LabelledImages":
        """Some of the images, with other labels.

        Args:
          rows: (M,) indices.
          labels: (M,) int32.
        """

        def read(begin: int, end: int) -> Iterator[bytes]:
            return (data for row in rows[begin:end] for data in self.read(row, row + 1))

        return dataclasses.replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            labels=labels,
            counts=self.counts[rows],
            groups=tuple(self.groups[row] for row in rows),
            places=tuple(self.places[row] for row in rows),
            num_left_out=self.num_left_out + len(self.ids) - len(rows),
            read=read,
        )


@dataclass(frozen=True)
class _Row:
    path: Path
    label: str
    place: str
    group: str = ""


@dataclass(frozen=True)
class _Table:
    """An opened table: its rows, the position of each wanted column, and fields per row."""

    rows: Iterator[tuple[int, list[str]]]
    columns: Mapping[str | int, int]
    num_fields: int | None
    num_left_out: int
    notes: tuple[str, ...]


def missing(spec: SetSpec, root: Path) -> str:
    """The files of a set that are missing below `root`; '' if none are."""
    if find(spec.layout, root) or (spec.tfds and _find_tfds(spec.tfds, root)):
        return ""
    wanted = " or ".join(spec.layout.path)
    return wanted + (f", or {spec.tfds.dataset} as TFDS prepares it" if spec.tfds else "")


def open_set(spec: SetSpec, root: Path, *, as_published: bool = False) -> LabelledImages:
    """Reads the list of a set's images; the archive's layout comes before TFDS.

    Args:
      spec: the set.
      root: the folder of the test sets.
      as_published: lose the row that the published reader loses.

    Raises:
      CorpusError: nothing was found, or a row, a label or an image file is invalid. The message
        names the file and the row.
    """
    root = Path(os.path.normpath(root))
    assert not isinstance(spec.layout, FindingsLayout), "see finding_tables"
    listing = find(spec.layout, root)
    if listing is None:
        prepared = _find_tfds(spec.tfds, root) if spec.tfds else None
        if spec.tfds is None or prepared is None:
            raise CorpusError(f"{spec.key}: {missing(spec, root)} is not in {root}")
        return _open_tfds(spec, spec.tfds, prepared)
    if isinstance(spec.layout, FilesLayout):
        return _collect(spec, root, listing, _file_rows(spec.layout, listing))
    table = _open_table(spec.layout, spec.file_labels, listing, as_published)
    rows = _csv_rows(spec.layout, table, listing, root)
    return _collect(spec, root, listing, rows, table.num_left_out, table.notes)


def find(layout: Layout, root: Path) -> Path | None:
    """The table or folder of a layout; None if it is not there."""
    paths = (root / path for path in layout.path)
    wanted = Path.is_dir if isinstance(layout, FilesLayout) else Path.is_file
    return next(filter(wanted, paths), None)


def _open_table(
    layout: CsvLayout, labels: tuple[str, ...], table: Path, as_published: bool
) -> _Table:
    rows = csv_rows(table)
    line, cells = next(rows, (0, []))
    names = [cell.strip() for cell in cells]
    notes: list[str] = []
    if layout.header == "maybe" and isinstance(layout.image, int) and isinstance(layout.label, int):
        positions: dict[str | int, int] = {i: i for i in (layout.image, layout.label)}
        if len(names) > layout.label and names[layout.label] in labels:
            if not as_published:
                rows = itertools.chain([(line, cells)], rows)
                return _Table(rows, positions, None, 0, ())
            note = f"{table.name} has no header; the published reader takes its first row for one"
            return _Table(rows, positions, None, 1, (note,))
        notes.append(f"the first row of {table.name} is a header: {', '.join(names)}")
    columns: dict[str | int, int] = {}
    for name in (layout.image, layout.label, *layout.one_hot, *layout.where):
        if name is not None:
            columns[name] = _column(layout, name, names, table)
            if isinstance(name, str) and name not in names:
                read = f"column {columns[name] + 1}, {names[columns[name]]!r}"
                notes.append(f"{table.name} has no column {name!r}; {read}, was read for it")
    if group := next((name for name in layout.group_columns if name in names), None):
        columns[group] = names.index(group)
    return _Table(rows, columns, len(names), 0, tuple(notes))


def _column(layout: CsvLayout, name: str | int, header: list[str], table: Path) -> int:
    if name in header:
        return header.index(name)
    position = name if isinstance(name, int) else layout.positions.get(name, len(header))
    if position < len(header):
        return position
    missing = f"column {name!r}" if isinstance(name, str) else f"column {name + 1}"
    raise CorpusError(f"{table} has no {missing}; found {', '.join(header)}")


def _csv_rows(layout: CsvLayout, table: _Table, listing: Path, root: Path) -> Iterator[_Row]:
    folder = listing.parent
    if layout.images:
        folder = root / layout.images[[root / path for path in layout.path].index(listing)]
    group = next((name for name in layout.group_columns if name in table.columns), None)
    for line, cells in table.rows:
        place = f"{listing}, line {line}"
        expected = table.num_fields or max(table.columns.values()) + 1
        if len(cells) < expected or (table.num_fields and len(cells) > expected):
            raise CorpusError(f"{place}: {len(cells)} fields, expected {expected}")
        row = {name: cells[column].strip() for name, column in table.columns.items()}
        if any(row[name] != value for name, value in layout.where.items()):
            continue
        label = _only_text(_label(layout, row, place), place)
        path = Path(str(folder).replace("{label}", label)) / _only_text(row[layout.image], place)
        # without '..', so that a file has one name and is below the data root
        yield _Row(Path(os.path.normpath(path)), label, place, row[group] if group else "")


def _label(layout: CsvLayout, row: Mapping[str | int, str], place: str) -> str:
    if layout.one_hot or layout.label is None:
        return _one_hot(layout, row, place)
    return row[layout.label]


def _one_hot(layout: CsvLayout, row: Mapping[str | int, str], place: str) -> str:
    """The class number of a row whose class columns hold one 1."""
    try:
        values = [float(row[name] or 0) for name in layout.one_hot]
    except ValueError as error:
        raise CorpusError(f"{place}: the class columns must hold numbers: {error}") from error
    if sorted(values) != [0.0] * (len(values) - 1) + [1.0]:
        ones = ", ".join(f"{n}={v:g}" for n, v in zip(layout.one_hot, values, strict=True) if v)
        raise CorpusError(f"{place}: exactly one class column must be 1; found {ones or 'none'}")
    return str(values.index(1.0))


def _only_text(cell: str, place: str) -> str:
    """The text of a cell, which some published tables write as a Python list of one."""
    texts = literal_texts(cell)
    if len(texts) != 1 or not texts[0]:
        raise CorpusError(f"{place}: expected one text, found {cell[:60]!r}")
    return texts[0]


def _file_rows(layout: FilesLayout, folder: Path) -> Iterator[_Row]:
    pattern = re.compile(layout.pattern)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") for part in name.parts):
            continue
        match = pattern.fullmatch(name.as_posix())
        if match is None:
            raise CorpusError(f"{path}: the path does not match {layout.pattern}")
        yield _Row(path, match["label"], str(path))


def _collect(
    spec: SetSpec,
    root: Path,
    source: Path,
    rows: Iterable[_Row],
    num_left_out: int = 0,
    notes: tuple[str, ...] = (),
) -> LabelledImages:
    layout, labels = spec.layout, spec.file_labels
    assert not isinstance(layout, FindingsLayout)
    index = {label: i for i, label in enumerate(labels)}
    first: dict[Path, _Row] = {}
    counts: collections.Counter[Path] = collections.Counter()
    ignored: collections.Counter[str] = collections.Counter()
    for row in rows:
        if row.label in layout.ignore:
            ignored[row.label] += 1
            continue
        if row.label not in index:
            raise CorpusError(
                f"{row.place}: label {row.label!r} is none of {spec.key}'s: "
                f"{', '.join(labels[:20])}{', ...' if len(labels) > 20 else ''}"
            )
        known = first.setdefault(row.path, row)
        if known.label != row.label:
            raise CorpusError(
                f"{row.place}: {row.path.name} has label {row.label!r}, but {known.label!r} in "
                f"{known.place}"
            )
        counts[row.path] += 1
    if not first:
        raise CorpusError(f"{source} holds no image of {spec.key}")
    for path, row in first.items():
        if not path.is_relative_to(root):
            raise CorpusError(f"{row.place}: image {path}: it is outside the data root")
        if not path.is_file():
            raise CorpusError(f"{row.place}: image {path}: no such file")
    paths = tuple(first)
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    matches = [re.search(layout.group, name) if layout.group else None for name in ids]
    return LabelledImages(
        ids=ids,
        labels=np.array([index[first[path].label] for path in paths], np.int32),
        counts=np.array([counts[path] for path in paths], np.int32),
        groups=tuple(
            row.group or (match[1] if match else name)
            for row, match, name in zip(first.values(), matches, ids, strict=True)
        ),
        places=tuple(row.place for row in first.values()),
        ignored=dict(ignored),
        num_left_out=num_left_out,
        notes=notes,
        source=source.relative_to(root).as_posix(),
        read=lambda begin, end: (path.read_bytes() for path in paths[begin:end]),
    )


def _find_tfds(layout: TfdsLayout, root: Path) -> Path | None:
    """The folder of the newest version that TFDS has prepared below `root`."""
    versions = sorted((root / layout.dataset).rglob("dataset_info.json"))
    return versions[-1].parent if versions else None


def _open_tfds(spec: SetSpec, layout: TfdsLayout, folder: Path) -> LabelledImages:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    if layout.split not in builder.info.splits:
        raise CorpusError(
            f"{folder} has no split {layout.split!r}; found {', '.join(builder.info.splits)}"
        )

    def samples(begin: int, end: int) -> Iterator[Mapping[str, Any]]:
        dataset = builder.as_dataset(
            split=f"{layout.split}[{begin}:{end}]",
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(interleave_cycle_length=1),  # the order of the files
        )
        return dataset.as_numpy_iterator()

    count = builder.info.splits[layout.split].num_examples
    if not count:
        raise CorpusError(f"{folder}: split {layout.split!r} is empty")
    labels = np.array([sample["label"] for sample in samples(0, count)], np.int32)
    if labels.min() < 0 or labels.max() >= len(spec.classes):
        raise CorpusError(
            f"{folder}: labels {labels.min()} to {labels.max()}, but {spec.key} has "
            f"{len(spec.classes)} classes, numbered from 0"
        )
    ids = tuple(f"{layout.dataset}/{layout.split}/{i:08d}" for i in range(len(labels)))
    return LabelledImages(
        ids=ids,
        labels=labels,
        counts=np.ones(len(ids), np.int32),
        groups=ids,
        places=tuple(f"{folder}, split {layout.split}, row {i}" for i in range(len(ids))),
        ignored={},
        num_left_out=0,
        notes=(),
        source=f"TFDS {builder.info.full_name}, split {layout.split}",
        read=lambda begin, end: (sample["image"] for sample in samples(begin, end)),
    )
