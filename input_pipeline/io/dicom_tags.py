"""What a DICOM data set says about its grey values, whether it says it well, badly or not at all.

Presence is not a value: a tag may be there and be empty, not a number, or in the wrong place.
Tags are looked up for a frame in its functional group, in the shared one, then on the top level.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline.io.dicom_grey import (
    LINEAR,
    LINEAR_EXACT,
    SIGMOID,
    UNUSABLE_MODALITY_NOTE,
    UNUSABLE_VIEW_NOTE,
    GreyTransform,
    LookupTable,
    Rescale,
    Window,
)

if TYPE_CHECKING:
    import pydicom

_FUNCTIONS = (LINEAR, LINEAR_EXACT, SIGMOID)
_LUT_ENTRIES, _LUT_BITS = 1 << 16, 16  # at most
_PADDING = (
    ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
)


def grey_transform(dataset: "pydicom.Dataset", frame: int) -> GreyTransform:
    """The grey-scale pipeline of a frame (from 0), of whatever of it can be read."""
    modality: list[Rescale | LookupTable] = []
    views: list[LookupTable | Window] = []
    notes: list[str] = []
    for level in _levels(dataset, frame):
        stated, unusable = _modality(level, dataset)
        modality += stated
        notes += [UNUSABLE_MODALITY_NOTE] * unusable
        signed = is_signed(dataset) or any(r.intercept < 0 for r in _rescales(modality))
        luts, unusable = _lookup_tables(level, "VOILUTSequence", dataset, signed)
        views += luts
        notes += [UNUSABLE_VIEW_NOTE] * unusable
        windows, unusable = _windows(level)
        views += windows
        notes += [UNUSABLE_VIEW_NOTE] * unusable
    presentation, _ = _lookup_tables(dataset, "PresentationLUTSequence", dataset, False)
    is_inverted = photometric(dataset) == "MONOCHROME1" or _inverse_shape(dataset)
    return GreyTransform(
        modality=modality,
        views=views,
        full_range=_full_range(dataset),
        presentation=presentation[0] if presentation else None,
        is_inverted=is_inverted and not presentation,
        padding=_padding(dataset),
        notes=tuple(notes),
    )


def value(dataset: "pydicom.Dataset", keyword: str) -> Any:
    """The value of a tag; None if it is absent, empty or cannot be read."""
    try:
        found = dataset.get(keyword)
    except Exception:  # pydicom raises nearly anything on damaged values
        return None
    return None if found is None or found == "" else found


def text(dataset: "pydicom.Dataset", keyword: str) -> str:
    """The first value of a tag as text in upper case, without spaces around it."""
    found = value(dataset, keyword)
    if isinstance(found, list) or type(found).__name__ == "MultiValue":
        found = found[0] if len(found) else ""
    return str(found or "").strip(" \0").upper()


def numbers(dataset: "pydicom.Dataset", keyword: str) -> list[float]:
    """The values of a tag; NaN stands for one that is no number."""
    found = value(dataset, keyword)
    if found is None:
        return []
    many = [found] if isinstance(found, str | bytes) or not hasattr(found, "__iter__") else found
    return [_number(item) for item in many]


def integer(dataset: "pydicom.Dataset", keyword: str, default: int) -> int:
    """The first value of a tag; the default if there is none."""
    found = numbers(dataset, keyword)
    return int(found[0]) if found and math.isfinite(found[0]) else default


def items(dataset: "pydicom.Dataset", keyword: str) -> "list[pydicom.Dataset]":
    """The items of a sequence; none if it is absent, empty or no sequence."""
    found = value(dataset, keyword)
    is_sequence = hasattr(found, "__iter__") and not isinstance(found, str | bytes)
    return [item for item in found if hasattr(item, "get_item")] if is_sequence else []


def photometric(dataset: "pydicom.Dataset") -> str:
    """The photometric interpretation."""
    return text(dataset, "PhotometricInterpretation")


def bits_allocated(dataset: "pydicom.Dataset") -> int:
    """The bits of a stored value with those that are not used."""
    return integer(dataset, "BitsAllocated", 16)


def bits_stored(dataset: "pydicom.Dataset") -> int:
    """The bits of a stored value."""
    allocated = bits_allocated(dataset)
    stored = integer(dataset, "BitsStored", allocated)
    return stored if 0 < stored <= allocated else allocated


def is_signed(dataset: "pydicom.Dataset") -> bool:
    """Whether stored values are two's complements."""
    return integer(dataset, "PixelRepresentation", 0) == 1


def wrapped(values: Any, bits: int, signed: bool) -> Any:
    """The lowest bits of integers (an int or int64 array) as the number that they stand for."""
    low = values & ((1 << bits) - 1)
    return low - ((low >> (bits - 1)) << bits) if signed else low


def _number(item: Any) -> float:
    try:
        return float(item)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _levels(dataset: "pydicom.Dataset", frame: int) -> "Iterator[pydicom.Dataset]":
    """Where transforms of a frame may stand, the most specific first."""
    per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")
    shared = items(dataset, "SharedFunctionalGroupsSequence")
    for group in (*per_frame[frame : frame + 1], *shared[:1]):
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            yield from items(group, macro)[:1]
        yield group
    yield dataset


def _modality(
    level: "pydicom.Dataset", dataset: "pydicom.Dataset"
) -> tuple[list[Rescale | LookupTable], bool]:
    """The transforms of a level, in order of preference; whether some cannot be used."""
    luts, unusable = _lookup_tables(level, "ModalityLUTSequence", dataset, is_signed(dataset))
    slopes, intercepts = numbers(level, "RescaleSlope"), numbers(level, "RescaleIntercept")
    stated: list[Rescale | LookupTable] = list(luts)
    if slopes or intercepts:
        slope, intercept = slopes[0] if slopes else 1.0, intercepts[0] if intercepts else 0.0
        if not math.isfinite(slope) or slope == 0:
            slope, unusable = 1.0, True
        if not math.isfinite(intercept):
            intercept, unusable = 0.0, True
        stated.append(Rescale(slope, intercept))
    return stated, unusable


def _rescales(modality: "list[Rescale | LookupTable]") -> list[Rescale]:
    return [m for m in modality if isinstance(m, Rescale)]


def _windows(level: "pydicom.Dataset") -> tuple[list[Window], bool]:
    """The windows of a level; whether its function is unknown, so that linear ones are meant."""
    centers, widths = numbers(level, "WindowCenter"), numbers(level, "WindowWidth")
    function = text(level, "VOILUTFunction") or LINEAR
    known = function in _FUNCTIONS
    windows = [
        Window(center, width, function if known else LINEAR)
        for center, width in zip(centers, widths, strict=False)
    ]
    lonely = bool(centers) != bool(widths)
    return windows, lonely or (bool(windows) and not known)


def _lookup_tables(
    level: "pydicom.Dataset", keyword: str, dataset: "pydicom.Dataset", signed: bool
) -> tuple[list[LookupTable], bool]:
    """The tables of a sequence that can be used, and whether others cannot."""
    little = getattr(dataset, "original_encoding", (None, True))[1] is not False
    tables = [_lookup_table(item, little, signed) for item in items(level, keyword)]
    return [table for table in tables if table], None in tables


def _lookup_table(item: "pydicom.Dataset", little: bool, signed: bool) -> LookupTable | None:
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not all(map(math.isfinite, descriptor)):
        return None
    count, first, bits = map(int, descriptor)
    count = count % _LUT_ENTRIES or _LUT_ENTRIES  # 0 stands for 2**16
    if signed and first >= 1 << 15:
        first -= 1 << 16
    entries = _entries(value(item, "LUTData"), count, little)
    if entries is None:
        return None
    largest = int(entries.max())
    if not 0 < bits <= _LUT_BITS or largest >= 1 << bits:
        bits = max(8, largest.bit_length())
    return LookupTable(first, entries, bits)


def _entries(data: Any, count: int, little: bool) -> np.ndarray | None:
    """The entries of a LUT, of 16 or 8 bits each; None if there are too few."""
    order = "<" if little else ">"
    if isinstance(data, int):
        data = [data]
    if data is not None and not isinstance(data, bytes | str):
        data = np.asarray([int(entry) & 0xFFFF for entry in data], f"{order}u2").tobytes()
    if not isinstance(data, bytes) or len(data) < count:
        return None
    if len(data) >= 2 * count:
        return np.frombuffer(data, f"{order}u2", count).astype(np.int64)
    packed = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2").astype("<u2")
    return np.frombuffer(packed.tobytes(), np.uint8)[:count].astype(np.int64)


def _inverse_shape(dataset: "pydicom.Dataset") -> bool:
    return text(dataset, "PresentationLUTShape") == "INVERSE"


def _full_range(dataset: "pydicom.Dataset") -> tuple[float, float] | None:
    """Black and white of a picture of 8 bits or fewer, which is shown as it is."""
    if bits_allocated(dataset) > 8 or is_signed(dataset):
        return None
    return 0.0, 2.0 ** bits_stored(dataset) - 1


def _padding(dataset: "pydicom.Dataset") -> tuple[float, float] | None:
    for keyword, limit_keyword in _PADDING:
        found = numbers(dataset, keyword)
        if not found or math.isnan(found[0]):
            continue
        limit = numbers(dataset, limit_keyword)
        ends = [found[0], limit[0] if limit and not math.isnan(limit[0]) else found[0]]
        if keyword == "PixelPaddingValue":
            bits, signed = bits_stored(dataset), is_signed(dataset)
            ends = [float(wrapped(int(end), bits, signed)) for end in ends]
        return min(ends), max(ends)
    return None
