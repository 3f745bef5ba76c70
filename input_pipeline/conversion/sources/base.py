"""What every source gives: rows, how they become samples, and facts about itself."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from input_pipeline.conversion.planned_rows import Planned, Rejection
from input_pipeline.io import files
from input_pipeline.io.files import AnyPath
from input_pipeline.io.threads import BUCKET_THREADS, map_ahead
from input_pipeline.records import Schema


@dataclass(frozen=True)
class SourceRow:
    """One image of a corpus before conversion.

    Attributes:
      row: number in the input, from 1.
      id: of the sample.
      image: path of a file, relative to the root of the reading.
      texts: written by people for this image.
      labels: class names.
      modality, source, split, group: as in a record (`records.py`).
      released: captions that the source brings and no person wrote for this image.
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


@dataclass(frozen=True)
class Conversion:
    """All that `write_corpus` needs to know of a source.

    Attributes:
      name: of the corpus, if the user gives none.
      rows: read once.
      make_sample: turns a row into a sample of `schema`.
      facts: for `conversion.json`; under `expected` a range of counts, if one is known.
      threads: how many samples are best made at a time.
    """

    name: str
    rows: Iterable[Planned[Any] | Rejection]
    make_sample: Callable[[Any], Any]
    schema: Schema
    facts: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1


@dataclass(frozen=True)
class Reading:
    """An opened source of images that are still to get captions.

    Attributes:
      root: the folder that image paths are relative to.
      name: of the corpus, if the user gives none.
      rows: read once.
      facts: for `conversion.json`; under `expected` a range of counts, if one is known.
    """

    root: AnyPath
    name: str
    rows: Iterator[SourceRow | Rejection]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """How many images are best looked up or read at a time."""
        return 1 if files.is_local(self.root) else BUCKET_THREADS

    def planned(self) -> Iterator[Planned[SourceRow] | Rejection]:
        """The rows as planning takes them.

        Groups are compared within a source and label, because some collections number the patients
        or clusters of each class anew; a patient with other labels on the other side is not
        noticed.
        """
        yield from map_ahead(self._planned, self.rows, self.threads)

    def _planned(self, row: SourceRow | Rejection) -> Planned[SourceRow] | Rejection:
        if isinstance(row, Rejection):
            return row
        group = (row.source, row.labels, row.group) if row.group else None
        num_bytes = row.span[1] if row.span else _num_bytes(files.under(self.root, row.image))
        return Planned(row, row.split, row.id, row.row, row.image, group, num_bytes)


@dataclass(frozen=True)
class Source:
    """How a corpus is read: its flags, and the function that opens it.

    `captioned`: whether it gives a `Reading`, whose rows need captions, or a `Conversion`. `open`
    raises CorpusError for an input that is missing or not as it should be; its rows may do so as
    well.
    """

    help: str
    options: type[Any]
    open: Callable[[Any], Any]
    description: str = ""
    captioned: bool = True


def corpus_name(text: str) -> str:
    """A name that TFDS takes, from a file or folder name."""
    return re.sub(r"\W", "_", text) or "corpus"


def _num_bytes(path: AnyPath) -> int:
    """0 for a file that cannot be looked up: it will be rejected when it is read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
