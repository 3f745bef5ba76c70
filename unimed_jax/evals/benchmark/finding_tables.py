"""Reads tables that say of each image which of several findings are present."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.io.errors import CorpusError
from input_pipeline.io.tabular_files import csv_header, csv_records
from input_pipeline.io.text_lines import text_lines
from unimed_jax.evals.benchmark.images import LabelledImages
from unimed_jax.evals.benchmark.spec import FindingsLayout

_LEFT_OUT = -1
_MEANING = {"present": 1, "absent": 0, "left_out": _LEFT_OUT}


@dataclass(frozen=True)
class FindingTable:
    """The N images of a table, all labelled 0, and its cells.

    Attributes:
      images: the images.
      layout: how the table is laid out.
      columns: name of a column in lower case -> its N cells.
    """

    images: LabelledImages
    layout: FindingsLayout
    columns: Mapping[str, tuple[str, ...]]

    def of_finding(self, finding: str) -> tuple[np.ndarray, np.ndarray]:
        """(indices (M,), labels (M,) int32) of the images that count for a finding.

        Raises:
          CorpusError: there is no such column, a cell is neither 1, 0, -1 nor empty, or no image
            counts.
        """
        if self.layout.joined:
            joined = self.columns[self.layout.joined.lower()]
            wanted = finding.lower()
            labels = [wanted in map(str.strip, cell.lower().split("|")) for cell in joined]
            return np.arange(len(labels)), np.array(labels, np.int32)
        if finding.lower() not in self.columns:
            known = ", ".join(self.columns)
            raise CorpusError(f"{self.images.source} has no column {finding!r}; found {known}")
        cells = self.columns[finding.lower()]
        values = np.array(
            [
                self._value(cell, finding, place)
                for cell, place in zip(cells, self.images.places, strict=True)
            ],
            np.int32,
        )
        rows = np.flatnonzero(values != _LEFT_OUT)
        if not len(rows):
            raise CorpusError(
                f"{self.images.source}: {finding} is uncertain or empty in all {len(cells):,} rows "
                "of the set, so none can be scored"
            )
        return rows, values[rows]

    def _value(self, cell: str, finding: str, place: str) -> int:
        if not cell:
            return _MEANING[self.layout.empty]
        meaning = {"1": 1, "1.0": 1, "0": 0, "0.0": 0}
        meaning |= dict.fromkeys(("-1", "-1.0"), _MEANING[self.layout.uncertain])
        if cell not in meaning:
            raise CorpusError(f"{place}: {finding} is {cell!r}, must be 1, 0, -1 or empty")
        return meaning[cell]


def open_table(layout: FindingsLayout, root: Path, table: Path) -> FindingTable:
    """Reads a table of findings.

    Args:
      layout: how it is laid out.
      root: the folder of the test sets.
      table: the table, as `images.find` finds it.

    Raises:
      CorpusError: a column or image is missing, a cell is invalid, an image has two rows; the
        message names the file and the row.
    """
    root, table = Path(os.path.normpath(root)), Path(os.path.normpath(table))
    header = csv_header(table)
    needed = [layout.image, *layout.where, *([layout.joined] if layout.joined else [])]
    if absent := [name for name in needed if name not in header]:
        raise CorpusError(f"{table} has no column {absent[0]!r}; found {', '.join(header)}")
    group_column = next((name for name in layout.group_columns if name in header), None)
    locate = _locator(layout, root, table)
    listed = _listed(table.parent / layout.listed) if layout.listed else None
    paths: dict[Path, str] = {}  # image -> place
    groups: list[str] = []
    cells: list[tuple[str, ...]] = []
    for number, record in csv_records(table):
        row = {name: cell.strip() for name, cell in zip(header, record, strict=True)}
        name = row[layout.image]
        if any(row[key] != value for key, value in layout.where.items()):
            continue
        if listed is not None and name not in listed:
            continue
        place = f"{table}, row {number}"
        path = locate(name)
        if path is None:
            raise CorpusError(f"{place}: image {name}: no such file")
        if path in paths:
            raise CorpusError(f"{place}: image {name}: it is in {paths[path]}, too")
        paths[path] = place
        groups.append(row[group_column] if group_column else "")
        cells.append(tuple(row.values()))
    if listed is not None and len(paths) < len(listed):
        raise CorpusError(
            f"{table.parent / layout.listed} lists {len(listed):,} images, of which {table} has "
            f"{len(paths):,}"
        )
    if not paths:
        raise CorpusError(f"{table} holds no image of the set")
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    matches = [re.search(layout.group, name) if layout.group else None for name in ids]
    files = tuple(paths)
    images = LabelledImages(
        ids=ids,
        labels=np.zeros(len(ids), np.int32),
        counts=np.ones(len(ids), np.int32),
        groups=tuple(
            group or (match[1] if match else name)
            for group, match, name in zip(groups, matches, ids, strict=True)
        ),
        places=tuple(paths.values()),
        ignored={},
        num_left_out=0,
        notes=(),
        source=table.relative_to(root).as_posix(),
        read=lambda begin, end: (path.read_bytes() for path in files[begin:end]),
    )
    columns = dict(zip(map(str.lower, header), zip(*cells, strict=True), strict=True))
    return FindingTable(images, layout, columns)


def _locator(layout: FindingsLayout, root: Path, table: Path) -> Callable[[str], Path | None]:
    """Cell of an image -> its file, None if there is none."""
    place = [root / path for path in layout.path].index(table)
    folder = layout.images[place]
    if "*" not in folder:

        def in_folder(name: str) -> Path | None:
            paths = (
                Path(os.path.normpath(root / folder / f"{name}{suffix}"))
                for suffix in layout.suffixes
            )
            return next((p for p in paths if p.is_relative_to(root) and p.is_file()), None)

        return in_folder
    found: dict[str, Path] = {}
    for path in sorted(root.glob(folder)):
        if path.is_dir():
            for file in _files(path):
                found.setdefault(file.name, file)

    def anywhere(name: str) -> Path | None:
        names = (f"{name}{suffix}" for suffix in layout.suffixes)
        return next((found[name] for name in names if name in found), None)

    return anywhere


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file())


def _listed(file: Path) -> set[str]:
    return {line.strip() for _, line in text_lines(file) if line.strip()}
