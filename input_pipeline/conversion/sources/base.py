"""Sources: what each one yields, and how it becomes a conversion."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from input_pipeline.captioning.grammar_captions import GrammarCaptions
from input_pipeline.captioning.templates import CaptionTemplates
from input_pipeline.conversion import exclude
from input_pipeline.conversion.held_out import HeldOut, WithoutPictures
from input_pipeline.conversion.planned_rows import (
    PlannedRow,
    RejectedSample,
    Rejection,
    SourceRow,
    rejecting_invalid,
)
from input_pipeline.conversion.samples import MakeSample
from input_pipeline.io import files
from input_pipeline.io.files import AnyPath
from input_pipeline.io.threads import BUCKET_THREADS, map_ahead
from input_pipeline.records import SCHEMA, Schema


@dataclass(frozen=True)
class Conversion:
    """A source that is ready to be written by ``write_corpus``.

    Attributes:
      name: name of the corpus, if the user gives none.
      rows: the rows, to be read once.
      make_sample: turns a row into a sample of ``schema``. It is called wherever the executor has
        its workers: it and the rows must be picklable. It may raise RejectedSample. A function, a
        ``functools.partial`` of one, or an object with a stable ``repr`` (a dataclass).
      schema: the schema of the samples.
      metadata: facts about the source for ``conversion.json``; under ``expected`` a range of
        counts, if one is known.
      threads: number of samples to make at a time; more than one where images are in a bucket.
      inputs: what the source has seen that is no row of its own, such as members of tars: numbers
        by what became of them, for ``conversion.json``. Complete when all rows are read.
      limits: of the share of samples with a finding, where they are not those of ``guard.LIMITS``.
    """

    name: str
    rows: Iterable[PlannedRow[Any] | Rejection]
    make_sample: Callable[[Any], Any]
    schema: Schema = SCHEMA
    metadata: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    inputs: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionOptions:
    """How the images of a captioned source become samples.

    Attributes:
      templates: captions for labels, from a file or by the grammar.
      short_side: bound of the short side of stored images, in pixels; None keeps their size.
      excluded: ids of rows to leave out, with the reasons.
      held_out: images of test sets; None: none are looked for.
    """

    templates: CaptionTemplates | GrammarCaptions = field(default_factory=CaptionTemplates)
    short_side: int | None = None
    excluded: Mapping[str, str] = field(default_factory=dict)
    held_out: HeldOut | None = None


@dataclass(frozen=True)
class OpenedSource:
    """An opened source of images without captions for their labels.

    Attributes:
      root: the folder that image paths are relative to.
      name: name of the corpus, if the user gives none.
      rows: the rows, to be read once.
      metadata, inputs: as of ``Conversion``.
    """

    root: AnyPath
    name: str
    rows: Iterator[SourceRow | Rejection]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)

    def conversion(self, captions: CaptionOptions) -> Conversion:
        """The source with captions."""
        threads = 1 if files.is_local(self.root) else BUCKET_THREADS
        rows = exclude.leave_out(self.rows, captions.excluded) if captions.excluded else self.rows
        make_sample: Callable[[Any], Any] = MakeSample(
            self.root, captions.templates, captions.short_side
        )
        metadata = self.metadata
        if captions.held_out is not None:
            rows = captions.held_out.names.leave_out(rows)
            make_sample = WithoutPictures(make_sample, captions.held_out.pictures)
            metadata = {**metadata, "test_sets": captions.held_out.facts}
        return Conversion(
            self.name,
            map_ahead(self._planned, rows, threads),
            make_sample,
            SCHEMA,
            metadata,
            threads,
            self.inputs,
        )

    def _planned(self, row: SourceRow | Rejection) -> PlannedRow[SourceRow] | Rejection:
        """A row as planning takes it.

        Groups are compared within a source and label, because some collections number the patients
        or clusters of each class anew; a patient with different labels in two splits is not
        noticed.
        """
        if isinstance(row, Rejection):
            return row
        try:
            with rejecting_invalid(row):
                return self._planned_row(row)
        except RejectedSample as error:
            return error.rejection

    def _planned_row(self, row: SourceRow) -> PlannedRow[SourceRow]:
        group = (row.source, row.labels, row.group) if row.group else None
        size = row.span[1] if row.span else num_bytes(files.under(self.root, row.image))
        return PlannedRow(row, row.split, row.id, row.row, row.image, group, size)


@dataclass(frozen=True)
class Source:
    """A corpus format that can be converted.

    Attributes:
      help: what it is, in a few words.
      options: dataclass of its flags.
      opener: takes the options; raises CorpusError for an input that is missing or invalid, and so
        may its rows.
      description: for ``--help``.
    """

    help: str
    options: type[Any]
    opener: Callable[[Any], Any]
    description: str = ""

    def open(self, options: Any) -> Conversion:
        """The conversion of the source. Raises CorpusError."""
        return self.opener(options)


@dataclass(frozen=True)
class CaptionedSource(Source):
    """A source of images whose labels are to be captioned; its ``opener`` gives OpenedSource."""

    def read(self, options: Any) -> OpenedSource:
        """The source without captions. Raises CorpusError."""
        return self.opener(options)

    def open(self, options: Any, captions: CaptionOptions = CaptionOptions()) -> Conversion:
        """The conversion of the source. Raises CorpusError."""
        return self.read(options).conversion(captions)


def corpus_name(text: str) -> str:
    """A name that TFDS takes, from a file or folder name."""
    return re.sub(r"\W", "_", text) or "corpus"


def num_bytes(*paths: AnyPath) -> int:
    """Of some files; 0 for one that cannot be looked up: it will be rejected when it is read."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            total += path.stat().st_size
    return total


def is_file(path: AnyPath) -> bool:
    """Whether there is a file; a name that the system refuses is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
