"""What is suspect about finished samples of any source: counted, reported, refused above a share.

A sample that could be made may still have lost its content on the way: an image that is black
although its file is not, a mask in which no class is left. Single ones occur in good data, many do
not. `write_corpus` asks for the findings of every sample, and publishes no corpus in which one of
them is more frequent than its limit.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline.conversion.planned_rows import SampleWithNotes
from input_pipeline.io import dicom, images
from input_pipeline.io.cell_text import says_nothing
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath
from input_pipeline.manifest import Manifest
from input_pipeline.segmentation_records import SegmentationSample

LOST = "images of nearly one value whose files are not"
FLAT = "images of nearly one value"
EMPTY = "masks without foreground"
FULL = "masks without background"
NOT_FINITE = "values that are no numbers"
NO_CAPTION = "texts that say nothing (nan, N/A, ...)"
LIMITS: Mapping[str, float] = {
    LOST: 0.05,
    FLAT: 1.0,
    NOT_FINITE: 0.05,
    EMPTY: 0.5,
    FULL: 0.5,
    NO_CAPTION: 0.5,
}

LEFT_OUT = "texts that say nothing left out"  # a note

_ENDS = (0.5, 99.5)  # percentiles that stand for the darkest and brightest of an image
_NEARLY = 2 / 255  # of the range of an image
_DENSE = {"PNG": 0.3, "JPEG": 0.1}  # bytes per pixel that nearly one value does not need
_HEADER = 4096  # bytes of one that need not be pixels
_MOST_SAMPLED = 1 << 20  # values of a volume that percentiles are taken of


class RefusedCorpus(CorpusError):
    """Too many rows were rejected, or too many samples are suspect: nothing is published."""


@dataclass(frozen=True)
class Suspect:
    """How often something was found.

    Attributes:
      samples: number of samples with the finding.
      share: of the samples of the corpus.
      limit: share above which the corpus is refused.
      first: id of one of the samples.
    """

    samples: int
    share: float
    limit: float
    first: str


def findings(made: SampleWithNotes) -> tuple[str, ...]:
    """What is suspect about a sample, in the words of `LIMITS`."""
    sample, found = made.sample, []
    if LEFT_OUT in made.notes or any(map(says_nothing, sample.captions)):
        found.append(NO_CAPTION)
    if images.NOT_FINITE in made.notes:
        found.append(NOT_FINITE)
    if isinstance(sample, SegmentationSample):
        if not sample.labels:
            found.append(EMPTY)
        elif sample.label_map().all():
            found.append(FULL)
    if _is_flat(sample):
        found.append(LOST if made.file_varies and made.file_varies() else FLAT)
    return tuple(found)


def suspects(
    counts: Mapping[str, int],
    first: Mapping[str, str],
    num_samples: int,
    limits: Mapping[str, float],
) -> dict[str, Suspect]:
    """Counts of findings, against their limits. ``limits`` are those that are not of `LIMITS`."""
    limits = {**LIMITS, **limits}
    return {
        finding: Suspect(n, float(f"{n / num_samples:.3g}"), limits[finding], first[finding])
        for finding, n in sorted(counts.items())
    }


def check_splits(manifest: Manifest, rejections: AnyPath) -> None:
    """Raises RefusedCorpus if no row of a split became a sample.

    ``rejections``: the file that says why, for the message.
    """
    for split, content in manifest.splits.items():
        if content.num_samples == 0:
            raise RefusedCorpus(
                f"every row of split {split!r} was rejected; {rejections} says why, the first: "
                f"{_first_reason(rejections)}"
            )


def check_rejected(manifest: Manifest, limit: float, rejections: AnyPath) -> None:
    """Raises RefusedCorpus if more than a share of the rows did not become samples.

    ``rejections``: the file that says why, for the message.
    """
    share = manifest.rejected / manifest.read
    if share > limit:
        raise RefusedCorpus(
            f"{share:.1%} of the rows were rejected, more than --max_rejected={limit:g}, and there "
            f"is no corpus; {rejections} says why, the first: {_first_reason(rejections)}. If the "
            f"others are right, the same command with --max_rejected={_above(share)} finishes the "
            "corpus"
        )


def check(found: Mapping[str, Suspect], report: AnyPath) -> None:
    """Raises RefusedCorpus for what was found more often than its limit allows.

    ``report``: the file that counts all findings, for the message.
    """
    for finding, suspect in found.items():
        if suspect.share > suspect.limit:
            raise RefusedCorpus(
                f"{suspect.samples} samples ({suspect.share:.1%}) have {finding}, for example "
                f"{suspect.first} (all findings: {report}). More than {suspect.limit:.0%} are "
                "refused: there is no corpus. If the samples are right, the same command with "
                f"--max_suspect={_above(suspect.share)} finishes it"
            )


def varies(values: np.ndarray, value_range: float | None = None) -> bool:
    """Whether numbers (H, W), (D, H, W) or (H, W, C) are more than nearly one value.

    ``value_range``: what differences are compared with; None: that of the values themselves.
    """
    step = max(1, round((values.size / _MOST_SAMPLED) ** (1 / values.ndim)))
    sampled = values[(slice(None, None, step),) * min(values.ndim, 2)].astype(np.float64)
    has_channels = sampled.ndim == 3 and sampled.shape[-1] in (2, 3, 4)
    for channel in np.moveaxis(sampled, -1, 0) if has_channels else (sampled,):
        finite = channel[np.isfinite(channel)]
        if not finite.size:
            continue
        low, high = np.percentile(finite, _ENDS)
        if high - low > _NEARLY * (np.ptp(finite) if value_range is None else value_range):
            return True
    return False


def file_varies(data: bytes) -> bool:
    """Whether the stored values of an image file are more than nearly one value."""
    if dicom.is_dicom(data):
        import pydicom

        return varies(pydicom.dcmread(io.BytesIO(data), force=True).pixel_array)
    with Image.open(io.BytesIO(data)) as image:
        return varies(np.asarray(image))


def _first_reason(rejections: AnyPath) -> str:
    with rejections.open(encoding="utf-8") as file:
        return json.loads(file.readline())["reason"]


def _is_flat(sample: Any) -> bool:
    if isinstance(sample, SegmentationSample) and sample.dtype:
        pixels = sample.pixels()
        full = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1.0
        return not varies(pixels, float(full))
    with _opened(sample.image) as image:
        if image is None:
            return False
        dense = _DENSE.get(image.format or "", 1.0) * image.width * image.height
        if len(sample.image) > _HEADER + dense:
            return False
        if image.format == "JPEG":  # an eighth of the size decodes at once, and shows most images
            with Image.open(io.BytesIO(sample.image)) as small:
                small.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
                if varies(np.asarray(small.convert("RGB")), 255.0):
                    return False
        return not varies(np.asarray(image.convert("RGB")), 255.0)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image | None]:
    """None for bytes that are no image, as schemas of other projects may have them."""
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        yield None
        return
    with image:
        yield image


def _above(share: float) -> str:
    """The share, rounded up."""
    return f"{np.ceil(share * 100) / 100:.2f}"
