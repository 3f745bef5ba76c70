"""Image bytes of many formats -> the JPEG or PNG bytes that a record holds.

The format is recognized by the bytes, not by the file name.

- JPEG and PNG of 8 bits are kept as they are, byte for byte, if training decodes them to the pixels
  that are verified here. What it reads otherwise (CMYK, say) becomes PNG.
- TIFF, WebP, BMP, GIF, PPM, JPEG 2000 and DICOM become PNG, without loss for 8 bits.
- Pictures that their EXIF data turn are stored upright, as PNG.
- More than 8 bits: the 0.5th and 99.5th percentile of a grey image become 0 and 255, what lies
  between is scaled linearly. (Dropping the low byte would make 12-bit images in 16-bit files black;
  the extremes would let one bright marker darken all else.) Colour that uses 16 bits keeps its high
  bytes; colour that uses fewer is scaled to them.
- Of several frames, the middle one of those as large as the first is stored (the smaller levels of
  a pyramid are not frames).
- With a bound, an image whose short side is longer is shrunk to it (Lanczos) and stored as JPEG of
  quality 95 without chroma subsampling.
- No file makes its reader allocate more than `image_size` allows.
"""

import dataclasses
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline.io import dicom, exif, training_decoder
from input_pipeline.io.grey_levels import grey_to_8_bit
from input_pipeline.io.image_size import check_size

JPEG_QUALITY = 95
NOT_FINITE = "values that are no numbers stored as black or white"  # a note

_TURNED = "turned upright as its EXIF data say"  # a note

_KEPT = ("JPEG", "MPO", "PNG")  # MPO: JPEG with more images after the first
_CONVERTED = ("TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
_FILMS = ("GIF", "WEBP")  # all frames are equally large; each is drawn over those before it
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_USUAL_DEPTHS = (8, 10, 12, 14)  # of colour in files of 16 bits
_DARK = 64  # high bytes of colour that uses 14 bits of 16, or fewer
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def normalise(data: bytes, short_side: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """Decodes an image fully and returns the bytes to store, and notes on what was done.

    Args:
      data: an image file.
      short_side: largest length of the short side in pixels; None keeps the size.

    Raises:
      ValueError: the data is empty, not an image, damaged or truncated, too large, or of another
        format.
      UserError: a package for the format is not installed.
    """
    picture = _read(data)
    image, notes = picture.image, picture.notes
    if not _training_sees(data, picture):
        notes += ("stored as PNG because training would read other pixels",)
    if short_side and min(image.size) > short_side:
        return _shrunk(image, short_side), (*notes, f"short side bounded to {short_side}")
    return (_png(image) if notes else data), notes


def decode(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """The pixels of an image file, 8 bits per channel, and notes on what was done to them.

    No notes: the file can be kept as it is, if training reads it. Raises as `normalise` does.
    """
    picture = _read(data)
    return picture.image, picture.notes


def decode_as_stored(data: bytes) -> Image.Image:
    """Like `decode`, but of several frames the first, and not turned as EXIF data say.

    DICOM, and grey of more than 8 bits, are as from `decode`.
    """
    image, notes = decode(data)
    if dicom.is_dicom(data) or not {_TURNED, dicom.MIDDLE_FRAME}.intersection(notes):
        return image
    with Image.open(io.BytesIO(data)) as first:
        first.load()
        return image if first.mode in _DEEP_MODES else first


@dataclasses.dataclass(frozen=True)
class _Picture:
    """What a file shows.

    Attributes:
      image: of 8 bits per channel.
      notes: on what was done to the pixels.
      kind: format and mode of a JPEG or PNG of 8 bits; empty for others.
      as_stored: uint8 (H, W) or (H, W, 3) of a JPEG or PNG of 8 bits, not turned.
    """

    image: Image.Image
    notes: tuple[str, ...]
    kind: tuple[str, ...] = ()
    as_stored: np.ndarray | None = None


def _training_sees(data: bytes, picture: _Picture) -> bool:
    """Whether training decodes a JPEG or PNG of 8 bits to the same pixels; True for other files.

    Raises ValueError if it does not because the file is damaged: of intact JPEGs, the decoders read
    only CMYK differently. The checksums of PNGs are right if they come here.
    """
    if picture.as_stored is None:
        return True
    is_jpeg = picture.kind[0] != "PNG"
    try:
        seen = training_decoder.decoded(data)
    except ValueError as error:
        if is_jpeg:
            raise ValueError(f"the image is damaged: training {error}") from error
        return False
    if np.array_equal(seen, np.broadcast_to(np.atleast_3d(picture.as_stored), seen.shape)):
        return True
    if is_jpeg and picture.kind[1] != "CMYK":
        raise ValueError("the image is damaged: two decoders read different pixels")
    return False


def _read(data: bytes) -> _Picture:
    if not data:
        raise ValueError("the image file is empty")
    if dicom.is_dicom(data):
        pixels, notes = dicom.read(data)
        return _Picture(Image.fromarray(pixels), ("DICOM stored as PNG", *notes))
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
            if kind in (*_KEPT, *_CONVERTED):
                check_size(*image.size)
                return _decoded(image, data)
    except UnidentifiedImageError:
        raise ValueError("not an image, or of an unknown format") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, the same by default
        raise ValueError(f"the image is too large, more than can be decoded: {error}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ValueError(f"the image cannot be decoded: {error}") from error
    known = ", ".join((*_KEPT, *_CONVERTED))
    raise ValueError(f"image format {kind} is not supported ({known} and DICOM are)")


def _decoded(image: Image.Image, data: bytes) -> _Picture:
    notes: tuple[str, ...] = ()
    kind, as_stored = (str(image.format), image.mode), None
    if image.format in _CONVERTED:
        notes = (f"{image.format} stored as PNG",)
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > 1 and _seek_middle(image, num_frames):
            notes += (dicom.MIDDLE_FRAME,)
    elif image.format == "PNG":
        with Image.open(io.BytesIO(data)) as other:
            other.verify()  # the checksums, which decoding does not look at
    image.load()
    orientation = exif.orientation(image)
    if image.mode in _DEEP_MODES:
        values = np.asarray(image)
        if not np.isfinite(values).all():
            notes += (NOT_FINITE,)
        grey = grey_to_8_bit(values)
        image = Image.fromarray(255 - grey if _is_white_zero(image) else grey)
        notes += ("16-bit grey scaled to 8 bit",)
    elif data.startswith(_PNG) and data[24] == 16:
        image, deep = _from_deep_png(image, data)
        notes += deep
        as_stored = None if deep else np.asarray(_plain(image))
    elif _bits_per_sample(image) > 8 and np.asarray(image).max() < _DARK:
        raise ValueError("16-bit colour that uses few of its bits: store it as 8 bits, or as PNG")
    elif image.format in _KEPT:
        as_stored = np.asarray(_plain(image))
    if orientation > 1:
        turned = exif.upright(np.asarray(_plain(image)), orientation)
        image = Image.fromarray(np.ascontiguousarray(turned))
        notes += (_TURNED,)
    return _Picture(image, notes, kind, as_stored)


def _seek_middle(image: Image.Image, num_frames: int) -> bool:
    """Goes to the middle frame of those as large as the first; False if there is only one."""
    if image.format in _FILMS:
        check_size(*image.size, frames=num_frames // 2)
        image.seek(num_frames // 2)
        return True
    size, same = image.size, []
    for frame in range(num_frames):
        image.seek(frame)
        if image.size == size:
            same.append(frame)
    image.seek(same[len(same) // 2])
    return len(same) > 1


def _from_deep_png(image: Image.Image, data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """A PNG of 16 bits with colour or alpha, of which Pillow has the high bytes only."""
    deep = training_decoder.deep_png(data)
    colour = deep if deep.shape[-1] < 3 else deep[..., :3]
    if colour.shape[-1] < 3 or np.all(colour == colour[..., :1]):
        return Image.fromarray(grey_to_8_bit(colour[..., 0])), ("16-bit grey scaled to 8 bit",)
    bits = next((bits for bits in _USUAL_DEPTHS if colour.max() < 1 << bits), 16)
    if bits == 16:
        return image, ()
    scaled = np.round(colour / ((1 << bits) - 1) * 255).astype(np.uint8)
    return Image.fromarray(scaled), (f"colour of {bits} bits in 16 scaled to 8 bit",)


def _is_white_zero(image: Image.Image) -> bool:
    """Whether small values are bright in a TIFF, which Pillow turns round for 8 bits only."""
    return getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO


def _bits_per_sample(image: Image.Image) -> int:
    """Of a TIFF, of which Pillow keeps the high bytes; 8 for other formats."""
    stated = getattr(image, "tag_v2", {}).get(_TIFF_BITS, 8)
    return max(stated) if isinstance(stated, tuple) else stated


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
