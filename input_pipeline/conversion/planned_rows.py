"""Rows on their way from a source, through the plan of a corpus, to its shards."""

import contextlib
import dataclasses
import errno
from collections.abc import Callable, Hashable, Iterator
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

    def merged(self, other: "SourceRow") -> "SourceRow | None":
        """This row with the texts of another one of its id; None if that has no other text.

        Raises ValueError, which says what differs, if the rows contradict each other.
        """
        names = (field.name for field in dataclasses.fields(self))
        fixed = [name for name in names if name not in ("row", "texts", "notes")]
        if differing := [name for name in fixed if getattr(self, name) != getattr(other, name)]:
            joined = ": all labels of an image go into one row" * (differing[0] == "labels")
            raise ValueError(f"which has another {differing[0].removesuffix('s')}{joined}")
        texts = tuple(dict.fromkeys((*self.texts, *other.texts)))
        return dataclasses.replace(self, texts=texts) if len(texts) > len(self.texts) else None


@dataclasses.dataclass(frozen=True)
class PlannedRow(Generic[Row]):
    """A row with everything that planning needs.

    Attributes:
      row: the input of ``make_sample``. Picklable; its ``repr`` must show everything that
        determines the sample, because the plan's hash is made of it. Rows of one id are joined if
        it has a method ``merged``, as ``SourceRow`` does.
      split: a word of letters, digits and underscores.
      id: id of the sample; the first row of an id is kept, with the texts of later ones.
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
    """A sample with notes on how it was made, which are counted over the corpus.

    `file_varies` says whether the file of the image holds more than nearly one value; None if the
    image is stored as it is in the file.
    """

    sample: Any
    notes: tuple[str, ...]
    file_varies: Callable[[], bool] | None = None


_MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}


@contextlib.contextmanager
def rejecting_invalid(row: Any) -> Iterator[None]:
    """Turns whatever goes wrong with a row into RejectedSample, so that it never ends the job.

    What is not the row's fault passes through: a UserError (a missing package, a bucket that does
    not respond) and an OSError of the machine (a full disk), also as the cause of another error.

    Args:
      row: its ``row``, ``id`` and ``image`` (or ``path``), if it has them, name it in the
        rejection.
    """
    try:
        yield
    except (UserError, RejectedSample):
        raise
    except Exception as error:
        if fault := _fault_of_machine(error):
            raise OSError(fault.errno, fault.strerror, fault.filename) from error
        raise RejectedSample(
            _reason(error),
            row=getattr(row, "row", None),
            id=getattr(row, "id", ""),
            path=_location(row),
        ) from error


def _fault_of_machine(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(error: Exception) -> str:
    """A ValueError's text says what is wrong with a row; others need their type."""
    text = " ".join(str(error).split())
    if type(error) is ValueError and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _location(row: Any) -> str:
    """The path of a row's image; "" where the row holds the image itself."""
    found = getattr(row, "image", getattr(row, "path", ""))
    return "" if isinstance(found, bytes) else str(found)
