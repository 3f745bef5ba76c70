"""Image bytes of many formats -> the JPEG or PNG bytes that a record holds.

The format is recognized by the bytes, not by the file name.

- JPEG and PNG of 8 bits are kept as they are, byte for byte.
- TIFF, WebP, BMP, GIF, PPM, JPEG 2000 and DICOM become PNG, without loss for 8 bits.
- Greyscale of more than 8 bits: the 0.5th and 99.5th percentile of the image become 0 and 255, what
  lies between is scaled linearly. (Dropping the low byte would make 12-bit images in 16-bit files
  black; the extremes would let one bright marker darken all else.)
- Of several frames, the middle one of those as large as the first is stored (the smaller levels of
  a pyramid are not frames).
- With a bound, an image whose short side is longer is shrunk to it (Lanczos) and stored as JPEG of
  quality 95 without chroma subsampling.
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline.io import dicom

JPEG_QUALITY = 95

_KEPT = ("JPEG", "MPO", "PNG")  # MPO: JPEG with more images after the first
_CONVERTED = ("TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_PERCENTILES = (0.5, 99.5)


def normalise(data: bytes, short_side: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """Decodes an image fully and returns the bytes to store, and notes on what was done.

    Args:
      data: an image file.
      short_side: largest length of the short side in pixels; None keeps the size.

    Raises:
      ValueError: the data is empty, not an image, damaged or truncated, or of another format.
      UserError: a package for the format is not installed.
    """
    image, notes = decode(data)
    if short_side and min(image.size) > short_side:
        return _shrunk(image, short_side), (*notes, f"short side bounded to {short_side}")
    return (_png(image) if notes else data), notes


def decode(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """The pixels of an image file, 8 bits per channel, and notes on what was done to them.

    No notes: the file can be kept as it is. Raises as `normalise` does.
    """
    if not data:
        raise ValueError("the image file is empty")
    return _from_dicom(data) if dicom.is_dicom(data) else _from_pillow(data)


def grey_to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Numbers (H, W) of any range -> uint8 by the rule of the module docstring."""
    pixels = np.nan_to_num(pixels.astype(np.float64))
    low, high = np.percentile(pixels, _PERCENTILES)
    if high <= low:  # nearly all one value
        low, high = pixels.min(), max(pixels.max(), pixels.min() + 1)
    return np.clip(np.round((pixels - low) / (high - low) * 255), 0, 255).astype(np.uint8)


def _from_dicom(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    pixels, inverted, notes = dicom.read(data)
    notes = ("DICOM stored as PNG", *notes)
    if pixels.dtype != np.uint8:
        pixels = grey_to_8_bit(pixels)
        notes += ("DICOM without window scaled to 8 bit",)
    return Image.fromarray(255 - pixels if inverted else pixels), notes


def _from_pillow(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """The pixels, and notes on what they were; none if the bytes can be kept."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
            if kind in (*_KEPT, *_CONVERTED):
                return _decoded(image)
    except UnidentifiedImageError:
        raise ValueError("not an image, or of an unknown format") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ValueError(f"the image cannot be decoded: {error}") from error
    known = ", ".join((*_KEPT, *_CONVERTED))
    raise ValueError(f"image format {kind} is not supported ({known} and DICOM are)")


def _decoded(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if image.format in _CONVERTED:
        notes = (f"{image.format} stored as PNG",)
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > 1 and _seek_middle(image, num_frames):
            notes += ("middle of several frames",)
    image.load()
    if image.mode in _DEEP_MODES:
        grey = grey_to_8_bit(np.asarray(image))
        return Image.fromarray(grey), (*notes, "16-bit grey scaled to 8 bit")
    return image, notes


def _seek_middle(image: Image.Image, num_frames: int) -> bool:
    """Goes to the middle frame of those as large as the first; False if there is only one."""
    size, same = image.size, []
    for frame in range(num_frames):
        image.seek(frame)
        if image.size == size:
            same.append(frame)
    image.seek(same[len(same) // 2])
    return len(same) > 1


def _plain(image: Image.Image) -> Image.Image:
    """Greyscale or RGB, without palette and alpha, as TensorFlow decodes the originals."""
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    _plain(image).save(buffer, "PNG")
    return buffer.getvalue()


def _shrunk(image: Image.Image, short_side: int) -> bytes:
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(length * scale)) for length in image.size)
    buffer = io.BytesIO()
    shrunk = _plain(image).resize((width, height), Image.Resampling.LANCZOS)
    shrunk.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
