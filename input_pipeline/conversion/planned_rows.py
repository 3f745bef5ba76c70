"""Rows on their way from a source, through the plan of a corpus, to its shards."""

import contextlib
import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

from input_pipeline.io.errors import UserError

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class SourceRow:
    """One image of a corpus before conversion.

    Attributes:
      row: number in the input, from 1.
      id: id of the sample.
      image: path of a file, relative to the root of the source.
      texts: written by people for this very image.
      labels: class names.
      modality, source, split, group: as in a record (`records.py`).
      released: captions that come with the source, but that no person wrote for this image.
      span: (offset, length) of the image in the file, in bytes; None: the whole file.
      notes: remarks for `conversion.json`, counted there if the sample is written.
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
    released: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PlannedRow(Generic[Row]):
    """A row with everything that planning needs.

    Attributes:
      row: the input of ``make_sample``. Picklable; its ``repr`` must show everything that
        determines the sample, because the plan's hash is made of it.
      split: a word of letters, digits and underscores.
      id: id of the sample; the first row of an id is kept.
      number: number of the row in the input, from 1; None if rows have no numbers.
      image: location of the image, for messages.
      group: must not occur in two splits; None if unknown. Messages show its last element.
      num_bytes: approximate size of the sample, for the number of shards.
    """

    row: Row
    split: str
    id: str
    number: int | None = None
    image: str = ""
    group: tuple[Hashable, ...] | None = None
    num_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A row that was read but not written; `row` counts from 1 in the input, None if unnumbered."""

    reason: str
    row: int | None = None
    id: str = ""
    path: str = ""


class RejectedSample(Exception):
    """Raised by ``make_sample`` for a row that cannot become a sample."""

    def __init__(
        self, reason: str, *, row: int | None = None, id: str = "", path: str = ""
    ) -> None:
        super().__init__(reason)
        self.rejection = Rejection(reason, row, id, path)


@dataclasses.dataclass(frozen=True)
class SampleWithNotes:
    """A sample with notes on how it was made, which are counted over the corpus."""

    sample: Any
    notes: tuple[str, ...]


@contextlib.contextmanager
def rejecting_invalid(row: Any) -> Iterator[None]:
    """Turns a ValueError about a row into RejectedSample.

    A UserError passes through: a missing package, or a bucket that does not respond, is not the
    row's fault.

    Args:
      row: has ``row``, ``id`` and ``image``.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise RejectedSample(str(error), row=row.row, id=row.id, path=row.image) from error
