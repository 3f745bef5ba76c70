"""A source -> a corpus directory: checks what can be checked and counts what cannot be used."""

import collections
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image, UnidentifiedImageError

from input_pipeline.caption_templates import CaptionTemplates
from input_pipeline.errors import CorpusError
from input_pipeline.records import Sample
from input_pipeline.sources import SourceRow
from input_pipeline.write_shards import RejectedSample, Rejection

_MAX_SHARD_BYTES = 128 << 20
_MIN_SHARDS = {"train": 8}  # of other splits: 2
# A worker takes seconds to start (it imports TensorFlow), in which another reads this many images.
_MIN_IMAGES_PER_WORKER = 4000

_KEPT_FORMATS = ("JPEG", "MPO", "PNG")  # MPO: JPEG with further pictures behind the first
_PNG_FORMATS = ("BMP", "GIF")  # stored as PNG, without loss: TFDS cannot decode them


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a source by split, those refused before their images are read, and the groups
    that occur in more than one split.

    Groups are compared within a source and label, because some collections number the patients or
    clusters of each class anew; a patient with other labels on the other side is not noticed.
    """

    splits: Mapping[str, Sequence[SourceRow]]
    rejected: Sequence[Rejection]
    shared_groups: Sequence[str]


def collect(rows: Iterable[SourceRow | Rejection]) -> Rows:
    """Sorts rows by split, keeping the first of equal ids.

    Raises CorpusError for a split name that is no word, and when no row is left.
    """
    splits = collections.defaultdict(list)
    rejected, first_row = [], {}
    group_splits = collections.defaultdict(set)
    for row in rows:
        if isinstance(row, Rejection):
            rejected.append(row)
        elif row.id in first_row:
            reason = f"duplicate id, first in row {first_row[row.id]}"
            rejected.append(Rejection(reason, row.row, row.id, row.image))
        elif not re.fullmatch(r"\w+", row.split):
            raise CorpusError(f"row {row.row}: split {row.split!r} is not letters, digits and _")
        else:
            first_row[row.id] = row.row
            splits[row.split].append(row)
            if row.group:
                group_splits[row.source, row.labels, row.group].add(row.split)
    if not splits:
        why = "no input rows"
        if rejected:
            why = f"all {len(rejected)} were rejected, the first: {rejected[0].reason}"
        raise CorpusError(f"there are no rows to convert: {why}")
    shared = [group for (*_, group), found in group_splits.items() if len(found) > 1]
    return Rows(dict(sorted(splits.items())), rejected, shared)


def default_num_shards(split: str, num_rows: int, num_bytes: int) -> int:
    """The smallest power of two that keeps shards at most 128 MiB.

    It is at least 8 for `train` and 2 for other splits, but never more than there are rows.
    """
    num_shards = _MIN_SHARDS.get(split, 2)
    while num_shards * _MAX_SHARD_BYTES < num_bytes:
        num_shards *= 2
    while num_shards > num_rows:
        num_shards //= 2
    return num_shards


def num_shards(rows: Rows, root: pathlib.Path) -> dict[str, int]:
    """`default_num_shards` of every split; a file that cannot be looked up counts as empty."""

    def num_bytes(row: SourceRow) -> int:
        try:
            return (root / row.image).stat().st_size
        except OSError:
            return 0

    return {
        split: default_num_shards(split, len(part), sum(map(num_bytes, part)))
        for split, part in rows.splits.items()
    }


def default_workers(rows: Rows) -> int:
    """One process per core, but no more than are worth their start."""
    images = sum(map(len, rows.splits.values()))
    return max(1, min(os.cpu_count() or 1, images // _MIN_IMAGES_PER_WORKER))


@dataclasses.dataclass(frozen=True)
class MakeSample:
    """Turns a row into a sample: reads and checks its image, puts its captions together.

    `root` is no part of the identity, so that a corpus is the same wherever its images lie.
    """

    root: pathlib.Path = dataclasses.field(repr=False)
    templates: CaptionTemplates

    def __call__(self, row: SourceRow) -> Sample:
        """Raises RejectedSample, with the reason, for a row that cannot be used."""
        try:
            generated = self.templates.captions_of(row.source, row.modality, row.labels)
            if not row.texts and not generated:
                raise ValueError(self._why_no_caption(row))
            # Nothing twice: a generated text that a person wrote as well counts as original.
            provenance = dict.fromkeys(row.texts, "")
            for caption in generated:
                provenance.setdefault(caption.text, caption.provenance.as_json)
            return Sample(
                id=row.id,
                image=check_image(_read(self.root / row.image)),
                captions=tuple(provenance),
                num_original_captions=len(set(row.texts)),
                labels=row.labels,
                modality=row.modality,
                source=row.source,
                group=row.group,
                caption_provenance=tuple(provenance.values()),
            )
        except ValueError as error:
            raise RejectedSample(str(error), row=row.row, id=row.id, path=row.image) from error

    def _why_no_caption(self, row: SourceRow) -> str:
        if not row.labels:
            return "neither text nor label"
        how = self.templates.how_to_add(row.source, row.modality, row.labels[0])
        return f"no text, and no caption for label {row.labels[0]!r}: {how}"


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the image: {error.strerror}") from error


def check_image(data: bytes) -> bytes:
    """Decodes an image fully and returns the bytes to store.

    JPEG and PNG are returned as they are, GIF and BMP as PNG. What the bytes are is told by the
    bytes; the file name plays no part.

    Raises:
      ValueError: the data is empty, not an image, damaged or truncated, animated, or of a format
        that the input pipeline does not decode.
    """
    if not data:
        raise ValueError("the image file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
            if kind in _KEPT_FORMATS:
                image.load()
                return data
            if kind in _PNG_FORMATS and getattr(image, "n_frames", 1) == 1:
                png = io.BytesIO()
                image.convert("RGB").save(png, "PNG")
                return png.getvalue()
    except UnidentifiedImageError:
        raise ValueError("not an image, or of an unknown format") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ValueError(f"the image cannot be decoded: {error}") from error
    raise ValueError(f"image format {kind} is not supported (JPEG, PNG; still GIF and BMP are)")
