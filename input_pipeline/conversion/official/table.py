"""Rows of official tables, by the names of their columns."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io import tabular_files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table: its number from 1, and the cells, stripped, by column."""

    number: int
    cells: Mapping[str, str]


def rows(
    path: AnyPath, columns: Sequence[str], optional: Sequence[str] = (), offset: int = 0
) -> Iterator[TableRow | Rejection]:
    """The rows of a CSV file, plain or as .csv.gz.

    Columns may stand in any order, among others. Surplus empty cells at the end of a row are
    nothing; a row with another number of cells than the header is rejected.

    Args:
      path: the table.
      columns: columns that are needed.
      optional: columns that may be missing; their cells are then empty.
      offset: added to the numbers of rows.

    Raises CorpusError for a file that cannot be read, is no CSV, or lacks a column.
    """
    lines = tabular_files.csv_rows(path)
    header = [name.strip() for name in next(lines, (0, []))[1]]
    for name in columns:
        if header.count(name) != 1:
            what = "more than one column" if name in header else "no column"
            raise CorpusError(f"{path} has {what} {name!r}; found {header}")
    positions = {name: header.index(name) for name in (*columns, *optional) if name in header}
    empty = dict.fromkeys(optional, "")
    width = len(header)
    for number, (line, cells) in enumerate(lines, offset + 1):
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            yield Rejection(
                f"wrong number of fields: {len(cells)} in line {line} of {path.name}, but the "
                f"header has {width}",
                number,
            )
            continue
        yield TableRow(number, empty | {name: cells[at].strip() for name, at in positions.items()})


def has_columns(path: AnyPath, columns: Sequence[str]) -> bool:
    """Whether a file is a table with these columns."""
    try:
        header = next(tabular_files.csv_rows(path), (0, []))[1]
    except CorpusError:
        return False
    return set(columns) <= {name.strip() for name in header}
