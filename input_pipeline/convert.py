"""A row of a source -> a sample: its image read and checked, its captions put together."""

import dataclasses
import pathlib

from input_pipeline import images
from input_pipeline.caption_templates import Caption, CaptionTemplates, Provenance
from input_pipeline.errors import UserError
from input_pipeline.records import Sample
from input_pipeline.rows import Noted, RejectedSample
from input_pipeline.sources.base import SourceRow


@dataclasses.dataclass(frozen=True)
class MakeSample:
    """Turns a row into a sample.

    `root` is no part of the identity, so that a corpus is the same wherever its images lie.
    `short_side` bounds the size of images, in pixels; None keeps it.
    """

    root: pathlib.Path = dataclasses.field(repr=False)
    templates: CaptionTemplates
    short_side: int | None = None

    def __call__(self, row: SourceRow) -> Noted:
        """Raises RejectedSample, with the reason, for a row that cannot be used."""
        try:
            generated = [
                *(Caption(text, Provenance("released")) for text in row.released),
                *self.templates.captions_of(row.source, row.modality, row.labels),
            ]
            if not row.texts and not generated:
                raise ValueError(self._why_no_caption(row))
            # Nothing twice: a generated text that a person wrote as well counts as original.
            provenance = dict.fromkeys(row.texts, "")
            for caption in generated:
                provenance.setdefault(caption.text, caption.provenance.as_json)
            image, notes = images.normalise(_read(self.root / row.image, row.span), self.short_side)
            sample = Sample(
                id=row.id,
                image=image,
                captions=tuple(provenance),
                num_original_captions=len(set(row.texts)),
                labels=row.labels,
                modality=row.modality,
                source=row.source,
                group=row.group,
                caption_provenance=tuple(provenance.values()),
            )
        except UserError:
            raise  # a package is missing: not the row's fault
        except ValueError as error:
            raise RejectedSample(str(error), row=row.row, id=row.id, path=row.image) from error
        return Noted(sample, (*row.notes, *notes))

    def _why_no_caption(self, row: SourceRow) -> str:
        if not row.labels:
            return "neither text nor label"
        how = self.templates.how_to_add(row.source, row.modality, row.labels[0])
        return f"no text, and no caption for label {row.labels[0]!r}: {how}"


def _read(path: pathlib.Path, span: tuple[int, int] | None) -> bytes:
    """The bytes of a file, or the span (offset, length) of them."""
    try:
        if span is None:
            return path.read_bytes()
        with path.open("rb") as file:
            file.seek(span[0])
            data = file.read(span[1])
    except OSError as error:
        raise ValueError(f"cannot read the image: {error.strerror}") from error
    if len(data) < span[1]:
        raise ValueError("the image is cut off: its file ends before it")
    return data
