"""Rows of official tables, by the names of their columns."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from input_pipeline.conversion import image_places
from input_pipeline.conversion.image_places import Places
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io import tabular_files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row: its number from 1, the name of its file, and the cells, stripped, by column."""

    number: int
    file: str
    cells: Mapping[str, str]


def rows(
    paths: Sequence[AnyPath],
    columns: Sequence[str],
    optional: Sequence[str] = (),
    encoding: str = "",
) -> Iterator[TableRow | Rejection]:
    """The rows of CSV files, plain or as .csv.gz, one after the other, numbered through.

    Columns may stand in any order, among others. Surplus empty cells at the end of a row are
    nothing; a row with another number of cells than the header is rejected.

    Args:
      paths: the tables.
      columns: columns that are needed.
      optional: columns that may be missing; their cells are then empty.
      encoding: of files that are neither UTF-8 nor have a byte order mark.

    Raises CorpusError at once for a file that lacks a column; and, then or while its rows are read,
    for one that cannot be read or is no CSV.
    """
    opened = [(path, *read(path, encoding)) for path in paths]
    for path, header, _ in opened:
        for name in columns:
            if header.count(name) != 1:
                what = "more than one column" if name in header else "no column"
                raise CorpusError(f"{path} has {what} {name!r}; found {header}")
    return _rows(opened, (*columns, *optional))


def _rows(
    opened: Sequence[tuple[AnyPath, list[str], Iterator[list[str] | str]]], columns: Sequence[str]
) -> Iterator[TableRow | Rejection]:
    numbers = itertools.count(1)
    empty = dict.fromkeys(columns, "")
    for path, header, lines in opened:
        positions = {name: header.index(name) for name in columns if name in header}
        for cells in lines:
            number = next(numbers)
            if isinstance(cells, str):
                yield Rejection(cells, number)
                continue
            found = {name: cells[at].strip() for name, at in positions.items()}
            yield TableRow(number, path.name, empty | found)


def read(path: AnyPath, encoding: str = "") -> tuple[list[str], Iterator[list[str] | str]]:
    """The header of a CSV file, stripped; and the cells of every row, or what is wrong with it.

    Raises CorpusError for a file that cannot be read or is no CSV.
    """
    lines = tabular_files.csv_rows(path, encoding)
    header = [name.strip() for name in next(lines, (0, []))[1]]
    return header, _checked(lines, len(header), path.name)


def _checked(
    lines: Iterator[tuple[int, list[str]]], width: int, name: str
) -> Iterator[list[str] | str]:
    for line, cells in lines:
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            yield (
                f"wrong number of fields: {len(cells)} in line {line} of {name}, but the header "
                f"has {width}"
            )
        else:
            yield cells


def with_places(
    raw: AnyPath,
    rows: Iterator[TableRow | Rejection],
    column: str,
    folders: Sequence[str],
    prefixes: tuple[str, ...],
) -> tuple[Places, Iterator[TableRow | Rejection]]:
    """Where the images of a column are, by the first rows; and all rows. See `probe`."""
    first = list(itertools.islice(rows, image_places.PROBED_ROWS))
    images = [row.cells[column] for row in first if isinstance(row, TableRow)]
    places = image_places.probe(raw, images, folders, prefixes)
    return places, itertools.chain(first, rows)


def has_columns(path: AnyPath, columns: Sequence[str], encoding: str = "") -> bool:
    """Whether a file is a table with these columns.

    Raises CorpusError for a file that cannot be read, which might be one.
    """
    header = next(tabular_files.csv_rows(path, encoding), (0, []))[1]
    return set(columns) <= {name.strip() for name in header}
