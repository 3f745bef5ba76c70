"""What passes between reading a source, planning a corpus and writing its shards."""

import dataclasses
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class Planned(Generic[Row]):
    """A row that a source found, with all that planning needs to know of it.

    Attributes:
      row: what `make_sample` turns into a sample. Picklable, and its `repr` says all that
        determines the sample, as it identifies the plan.
      split: a word of letters, digits and underscores.
      id: of the sample; the first row of an id is kept.
      number: of the row in the input, from 1; None if rows have no numbers.
      image: where the image is, for messages.
      group: what may not be on both sides of a split; None if nothing is known. Its last element is
        named in the message.
      num_bytes: about the size of the sample, to choose the number of shards.
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
    """A row that was read and not written; `row` counts from 1 in the input, None if unnumbered."""

    reason: str
    row: int | None = None
    id: str = ""
    path: str = ""


class RejectedSample(Exception):
    """Raised by a `make_sample` for a row that cannot become a sample."""

    def __init__(
        self, reason: str, *, row: int | None = None, id: str = "", path: str = ""
    ) -> None:
        super().__init__(reason)
        self.rejection = Rejection(reason, row, id, path)


@dataclasses.dataclass(frozen=True)
class Noted:
    """A sample and remarks on how it was made, which are counted over the corpus."""

    sample: Any
    notes: tuple[str, ...]
