"""Mask files -> label values, which are numbers of classes and never intensities.

Nothing is scaled, windowed or rounded by more than `LABEL_TOLERANCE`. A file may hold small numbers
behind a brightness (one bit, a palette of greys): both readings are given, as displayed and as
stored. A palette of colours is read as stored, except in GIF,
where programs reorder it. Where colours are all equal and the alpha channel is
not, the alpha channel is the mask; elsewhere, transparent pixels are background. What Pillow cannot
give exactly is refused.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline.io import dicom, exif
from input_pipeline.io.image_size import check_size

LABEL_TOLERANCE = 0.05  # of files that store labels as scaled or floating-point numbers

_MOST_TINT = 32  # difference of channels where a lossy format stores grey as colour
_TOO_LARGE = 2.0**31
_LOSSY = ("JPEG", "MPO", "JPEG2000")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_COLOURS = ("RGB", "RGBX", "RGBA", "RGBa")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_PNG = b"\x89PNG\r\n\x1a\n"
_PORTABLE = re.compile(rb"P[25](?:\s+#[^\n]*)*\s+\d+(?:\s+#[^\n]*)*\s+\d+(?:\s+#[^\n]*)*\s+(\d+)")


@dataclass(frozen=True)
class LabelPicture:
    """The content of a mask file; pixels are not turned.

    Attributes:
      readings: integers (H, W): the values as displayed and, where these differ, as stored; empty
        if the picture has colours and no palette.
      colours: uint8 (H, W, 3) where not all are grey; black where the picture is transparent.
      orientation: of the EXIF data, 1 to 8; 1 if upright or unknown.
      lossy: the format changes values.
    """

    readings: tuple[np.ndarray, ...]
    colours: np.ndarray | None = None
    orientation: int = 1
    lossy: bool = False


def rounded_labels(values: np.ndarray) -> np.ndarray:
    """Numbers of any dtype -> integers of the same shape, at least 0.

    Raises ValueError, which names values, if any are negative, not finite or far from an integer.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError("the labels have values that are no numbers (NaN or infinite)")
        whole = np.rint(values)
        far = np.abs(values - whole) > LABEL_TOLERANCE
        if far.any():
            raise ValueError(
                f"label values are not whole numbers: {_some(values[far])}; were the labels "
                "interpolated? Resample them by nearest neighbour"
            )
        if float(np.abs(whole).max(initial=0)) >= _TOO_LARGE:
            raise ValueError(f"label values are too large: {_some(values[whole >= _TOO_LARGE])}")
        values = whole.astype(np.int32)
    if values.size and values.min() < 0:
        raise ValueError(f"negative label values: {_some(values[values < 0])}")
    return values


def read_label_picture(data: bytes) -> LabelPicture:
    """Decodes a mask file. Raises ValueError for what holds no label values, with the remedy."""
    if not data:
        raise ValueError("the file is empty")
    if dicom.is_dicom(data):
        raise ValueError("DICOM is not read as a mask: save the label values as PNG or NIfTI")
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(*image.size)
            _check_frames(image)
            image.load()
            return _picture(image, data)
    except UnidentifiedImageError:
        raise ValueError("not an image, or of an unknown format") from None
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ValueError(f"the file cannot be decoded: {error}") from error


def _check_frames(image: Image.Image) -> None:
    """Levels of a pyramid are smaller than the first frame, and previews are JPEG."""
    if image.format in ("JPEG", "MPO"):
        return
    size, frames = image.size, getattr(image, "n_frames", 1)
    if image.format == "TIFF":
        sizes = []
        for frame in range(frames):
            image.seek(frame)
            sizes.append(image.size)
        image.seek(0)
        frames = sizes.count(size)
    if frames > 1:
        raise ValueError(f"the file has {frames} frames: write a file for each")


def _picture(image: Image.Image, data: bytes) -> LabelPicture:
    facts: Mapping[str, Any] = {
        "orientation": exif.orientation(image),
        "lossy": _is_lossy(image, data),
    }
    bits = _bits(image, data)
    if image.mode in ("1", "L", *_DEEP):
        return LabelPicture(_grey_readings(image, data, bits), **facts)
    if image.mode == "P":
        return LabelPicture(*_palette_readings(image), **facts)
    if image.mode not in ("LA", *_COLOURS):
        raise ValueError(f"colours of the kind {image.mode} hold no labels: save it as grey PNG")
    if bits > 8:
        raise ValueError(
            f"{bits} bits per channel are not read exactly: save it as grey PNG, or with 8 bits"
        )
    colours = np.asarray(image.convert("RGB"))
    if image.mode in ("LA", "RGBA"):
        return _with_alpha(colours, np.asarray(image.getchannel("A")), facts)
    return _of_colours(colours, facts)


def _with_alpha(colours: np.ndarray, alpha: np.ndarray, facts: Mapping[str, Any]) -> LabelPicture:
    """A picture whose mask is in its colours, in its alpha channel, or in both."""
    values = np.unique(alpha)
    if len(values) == 1:
        drawn = (colours != colours[:1, :1]).any()
        if (values[0] == 0 and colours.any()) or not (values[0] in (0, 255) or drawn):
            raise ValueError(
                f"all pixels have the alpha value {values[0]}: save the mask without alpha channel"
            )
        return _of_colours(colours, facts)
    visible = np.where((alpha > 0)[..., None], colours, 0)
    first = colours[alpha > 0][0]
    if (colours[alpha > 0] == first).all() and (not first.any() or (colours == first).all()):
        return LabelPicture((alpha,), visible if first.any() else None, **facts)
    if len(values) > 2 or values[0] > 0:
        raise ValueError(
            "half-transparent pixels are neither of a class nor background: save the mask as grey "
            "PNG"
        )
    return _of_colours(visible, facts)


def _of_colours(colours: np.ndarray, facts: Mapping[str, Any]) -> LabelPicture:
    spread = np.ptp(colours.astype(np.int16), axis=-1).max(initial=0)
    if spread == 0 or (facts["lossy"] and spread <= _MOST_TINT):
        return LabelPicture((colours[..., 1],), **facts)
    return LabelPicture((), colours, **facts)


def _grey_readings(image: Image.Image, data: bytes, bits: int) -> tuple[np.ndarray, ...]:
    """Values as displayed and, if they differ, as stored."""
    shown = rounded_labels(np.asarray(image.convert("L") if image.mode == "1" else image))
    stored = shown
    if image.mode in ("1", "L") and bits < 8:
        stored = shown // (255 // ((1 << bits) - 1))
    elif image.format == "PPM" and (match := _PORTABLE.match(data)):
        full = int(match[1])  # what Pillow scales to 8 or 16 bits
        stored = np.rint(shown * (full / (255 if full < 256 else 65535))).astype(np.int64)
    if getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        stored = ((1 << bits) - 1) - stored
    return (shown,) if np.array_equal(shown, stored) else (shown, stored)


def _palette_readings(image: Image.Image) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
    """The readings and colours of a picture with a palette.

    The numbers of a GIF are no labels, because programs reorder its palette; nor are others if not
    0, but another one is black.
    """
    indices, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    if (colours == colours[..., :1]).all():
        shown = colours[..., 0]
        alone = image.format == "GIF" or np.array_equal(shown, indices)
        return ((shown,) if alone else (shown, indices)), None
    if image.format == "GIF":
        return (), colours
    black = ~colours.any(axis=-1)
    if any((image.getpalette() or [0])[:3]) and black.any():
        raise ValueError(
            f"black is number {_some(indices[black])} of the palette and not 0, so its numbers are "
            "no labels: save the mask as RGB and name its colours (--classes=NAME=#00ff00), or as "
            "grey PNG"
        )
    return (indices,), colours


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel in the file; 8 where the format has no others."""
    if image.mode == "1":
        return 1
    if data.startswith(_PNG):
        return data[24]
    stated = getattr(image, "tag_v2", {}).get(_TIFF_BITS, 8)
    return max(stated) if isinstance(stated, tuple) else stated


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    return image.format in _LOSSY or (image.format == "WEBP" and b"VP8 " in data[:4096])


def _some(values: np.ndarray) -> str:
    """A few of the distinct values, for a message."""
    distinct = np.unique(values)
    shown = ", ".join(f"{value:.6g}" for value in distinct[:5].tolist())
    return f"{shown}, ..." if len(distinct) > 5 else shown
