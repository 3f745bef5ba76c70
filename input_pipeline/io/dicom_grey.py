"""The grey-scale pipeline of DICOM as functions of numbers: stored values -> 8-bit grey.

The order is that of PS3.4 N.2: modality transform, VOI transform, presentation. Every transform is
a hint. One that cannot be used (it is not finite, or turns an image into one grey value) never
costs the pixels: the next one is tried, and in the end the range of the values is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.io.grey_levels import grey_to_8_bit

LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"

UNUSABLE_MODALITY_NOTE = "DICOM rescale or modality LUT that cannot be used left out"
UNUSABLE_VIEW_NOTE = "DICOM window or VOI LUT that cannot be used left out"
NO_VIEW_NOTE = "DICOM without window scaled to 8 bit"
PADDING_NOTE = "DICOM padding made black"

_FLAT = 2  # grey levels; an image of more than _FEW values that spans no more is lost
_FEW = 16


@dataclass(frozen=True)
class Rescale:
    """PS3.3 C.11.1.1.2: slope * value + intercept."""

    slope: float
    intercept: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if (self.slope, self.intercept) == (1.0, 0.0):
            return values
        with np.errstate(over="ignore", invalid="ignore"):
            return self.slope * values.astype(np.float64) + self.intercept


@dataclass(frozen=True)
class LookupTable:
    """PS3.3 C.11.1.1, C.11.2.1.1: entries for ``first`` and the values after it.

    Values before and after them get the first and last entry.

    Attributes:
      first: the value of the first entry.
      entries: unsigned integers (n,).
      bits: of an entry; the largest is 2**bits - 1.
    """

    first: int
    entries: np.ndarray
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The entries, float64."""
        last = len(self.entries) - 1
        index = np.clip(np.rint(np.nan_to_num(values.astype(np.float64))) - self.first, 0, last)
        return self.entries[index.astype(np.int64)].astype(np.float64)

    def unit(self, values: np.ndarray) -> np.ndarray:
        """The entries as grey, 0..1."""
        return self(values) / (2**self.bits - 1)


@dataclass(frozen=True)
class Window:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""

    center: float
    width: float
    function: str = LINEAR

    @property
    def is_usable(self) -> bool:
        """Whether the standard allows it."""
        finite = np.isfinite(self.center) and np.isfinite(self.width)
        return bool(finite and (self.width >= 1 if self.function == LINEAR else self.width > 0))

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Grey, 0..1."""
        values = values.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.function == SIGMOID:
                return 1 / (1 + np.exp(-4 * (values - self.center) / self.width))
            center, width = self.center, self.width
            if self.function == LINEAR:
                center, width = center - 0.5, width - 1
            if width == 0:
                return np.where(values > center, 1.0, 0.0)
            return np.clip((values - center) / width + 0.5, 0, 1)


@dataclass(frozen=True)
class GreyTransform:
    """What a file says about its grey values.

    Attributes:
      modality: transforms of which the first usable one is applied.
      views: VOI LUTs and windows of which the first usable one is applied.
      full_range: the values that are black and white without a view, if nothing is rescaled; None:
        percentiles of the image.
      presentation: applied last; its entries are for black (the first) to white (the last).
      is_inverted: small values are bright.
      padding: smallest and largest stored value of pixels that are not part of the image; black.
      notes: of what was left out before.
    """

    modality: Sequence[Rescale | LookupTable] = ()
    views: Sequence[LookupTable | Window] = ()
    full_range: tuple[float, float] | None = None
    presentation: LookupTable | None = None
    is_inverted: bool = False
    padding: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def to_grey(stored: np.ndarray, transform: GreyTransform) -> tuple[np.ndarray, tuple[str, ...]]:
    """Stored values (H, W) -> uint8 (H, W), and notes on what could not be used.

    Raises ValueError if no value is a finite number.
    """
    notes = dict.fromkeys(transform.notes)  # an ordered set
    image = np.isfinite(stored)
    if not image.any():
        raise ValueError("no pixel is a finite number")
    padding = _padding(stored, image, transform.padding)
    if padding.any():
        notes[PADDING_NOTE] = None
    image &= ~padding

    values = stored
    for rescale in transform.modality:
        rescaled = rescale(stored)
        if _keeps(rescaled[image], stored[image]):
            values = rescaled
            break
        notes[UNUSABLE_MODALITY_NOTE] = None

    unit = None
    for view in transform.views:
        seen = view.unit(values) if _is_usable(view) else None
        if seen is not None and _shows(_levels(seen)[image], values[image]):
            unit = seen
            break
        notes[UNUSABLE_VIEW_NOTE] = None
    if unit is None and transform.full_range and values is stored:
        low, high = transform.full_range
        unit = (stored.astype(np.float64) - low) / (high - low)
    elif unit is None:
        unit = grey_to_8_bit(values, padding) / 255
        notes[NO_VIEW_NOTE] = None

    if transform.presentation:
        last = len(transform.presentation.entries) - 1
        unit = transform.presentation.unit(np.nan_to_num(unit) * last)
    grey = _levels(unit)
    if transform.is_inverted:
        grey = 255 - grey
    grey[padding] = 0
    return grey, tuple(notes)


def _padding(
    stored: np.ndarray, finite: np.ndarray, limits: tuple[float, float] | None
) -> np.ndarray:
    """The pixels that are padding; none if all were."""
    if limits is None:
        return np.zeros(stored.shape, bool)
    padding = (stored >= limits[0]) & (stored <= limits[1])
    return padding if (finite & ~padding).any() else np.zeros(stored.shape, bool)


def _is_usable(view: LookupTable | Window) -> bool:
    return view.is_usable if isinstance(view, Window) else True


def _levels(unit: np.ndarray) -> np.ndarray:
    """Grey 0..1 -> uint8."""
    return np.clip(np.round(np.nan_to_num(unit) * 255), 0, 255).astype(np.uint8)


def _keeps(after: np.ndarray, before: np.ndarray) -> bool:
    """Whether a modality transform leaves numbers, and several where there were several."""
    return bool(np.isfinite(after).all()) and (_span(after) > 0 or _span(before) == 0)


def _shows(grey: np.ndarray, values: np.ndarray) -> bool:
    """Whether a view shows anything of an image; one that clips all but an edge does."""
    if _span(values) == 0:
        return True
    if _span(grey) > _FLAT:
        return True
    return _span(grey) > 0 and len(np.unique(values)) <= _FEW


def _span(values: np.ndarray) -> float:
    return float(values.max()) - float(values.min())
