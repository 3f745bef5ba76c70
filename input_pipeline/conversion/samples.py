"""A row of a source -> a sample: reads and checks the image, collects the captions."""

import dataclasses
import functools

from input_pipeline.captioning.grammar_captions import GrammarCaptions
from input_pipeline.captioning.templates import Caption, CaptionTemplates, Provenance
from input_pipeline.conversion import guard
from input_pipeline.conversion.planned_rows import SampleWithNotes, SourceRow
from input_pipeline.io import files, images
from input_pipeline.io.cell_text import says_nothing
from input_pipeline.io.files import AnyPath
from input_pipeline.records import Sample

UNREADABLE = "cannot read the image"


@dataclasses.dataclass(frozen=True)
class MakeSample:
    """Turns a row into a sample.

    `root` is not part of the `repr`, so that a corpus is the same wherever its images are.
    `short_side` bounds the size of images, in pixels; None keeps their size.
    """

    root: AnyPath = dataclasses.field(repr=False)
    templates: CaptionTemplates | GrammarCaptions
    short_side: int | None = None

    def __call__(self, row: SourceRow) -> SampleWithNotes:
        """Raises an error with the reason for a row that cannot be used."""
        texts, released = (
            tuple(text for text in given if not says_nothing(text))
            for given in (row.texts, row.released)
        )
        generated = [
            *(Caption(text, Provenance("released")) for text in released),
            *self.templates.captions_of(row.source, row.modality, row.labels),
        ]
        if not texts and not generated:
            raise ValueError(self._why_no_caption(row))
        # No duplicates: a generated text that equals an original one counts as original.
        provenance = dict.fromkeys(texts, "")
        for caption in generated:
            provenance.setdefault(caption.text, caption.provenance.as_json)
        data = _read(self.root, row)
        image, notes = images.normalise(data, self.short_side)
        sample = Sample(
            id=row.id,
            image=image,
            captions=tuple(provenance),
            num_original_captions=len(set(texts)),
            labels=row.labels,
            modality=row.modality,
            source=row.source,
            group=row.group,
            caption_provenance=tuple(provenance.values()),
        )
        complete = (texts, released) == (row.texts, row.released)
        notes = (*row.notes, *notes, *[guard.LEFT_OUT] * (not complete))
        changed = None if image == data else functools.partial(guard.file_varies, data)
        return SampleWithNotes(sample, notes, changed)

    def _why_no_caption(self, row: SourceRow) -> str:
        if row.texts and not row.labels:
            return f"no label, and the text says nothing: {row.texts[0]!r}"
        if not row.labels:
            return "neither text nor label"
        how = self.templates.how_to_add(row.source, row.modality, row.labels[0])
        return f"no text, and no caption for label {row.labels[0]!r}: {how}"


def _read(root: AnyPath, row: SourceRow) -> bytes:
    """The bytes of a row's image. Raises ValueError with the reason."""
    try:
        data = files.read_bytes(files.under(root, row.image), row.span)
    except OSError as error:
        raise ValueError(f"{UNREADABLE}: {files.reason(error)}") from error
    if row.span and len(data) < row.span[1]:
        raise ValueError("the image is cut off: its file ends before it")
    return data
