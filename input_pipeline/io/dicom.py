"""DICOM files -> 8-bit pixels. No patient tag leaves this module.

Grey values go through the pipeline of the standard (`dicom_grey`); a file that does not say how, or
says it badly, is shown as any other image of more than 8 bits. Colour becomes RGB. Of several
frames the middle one is taken, because a row has one image. Overlays are not drawn.
"""

import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline.io import dicom_decoder, dicom_grey, dicom_tags
from input_pipeline.io.errors import UserError
from input_pipeline.io.image_size import MAX_PIXELS, check_size

if TYPE_CHECKING:
    import pydicom

MIDDLE_FRAME = "middle of several frames"
IDENTITY_NOTE = "DICOM with identifying tags (not copied)"
BURNED_IN_NOTE = "DICOM that declares burned-in annotation"
ASSUMED_NOTE = "DICOM without some tags of its pixels, which were assumed"

_IDENTIFYING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientAddress",
    "OtherPatientIDs",
    "AccessionNumber",
    "InstitutionName",
    "ReferringPhysicianName",
)
_GREY, _PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
_PARTIAL = ("YBR_PARTIAL_422", "YBR_PARTIAL_420")  # retired; pydicom does not convert them
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", *_PARTIAL)
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # transfer syntax
_META = 144  # where the length of the file's meta information ends
_MOST_UNPACKED = 4 * MAX_PIXELS
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file, by its preamble."""
    return data[128:132] == b"DICM"


def read(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decodes the middle frame.

    Returns:
      Pixels, uint8 (H, W) or (H, W, 3); notes.

    Raises:
      ValueError: not decodable, without pixels, or too large.
      UserError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UserError("DICOM files need pydicom: pip install 'unimed_jax[dicom]'") from error

    try:
        _check_unpacked_size(data)
        dataset = pydicom.dcmread(io.BytesIO(data))
        if not any(keyword in dataset for keyword in _PIXELS):
            raise ValueError("there are no pixels in it")
        check_size(*(dicom_tags.integer(dataset, side, 0) for side in ("Columns", "Rows")))
        notes = _complete(dataset)
        frames = max(1, dicom_tags.integer(dataset, "NumberOfFrames", 1))
        if dicom_tags.photometric(dataset) in (*_GREY, _PALETTE):
            stored = _stored(dataset, frames // 2)
        else:
            stored = _colour(dataset, frames // 2)
        if dicom_tags.photometric(dataset) in _GREY:
            transform = dicom_tags.grey_transform(dataset, frames // 2)
            pixels, more = dicom_grey.to_grey(stored, transform)
            notes += more
        elif dicom_tags.photometric(dataset) == _PALETTE:
            pixels = _through_palette(stored, dataset)
        else:
            pixels = stored
    except Exception as error:  # pydicom and its decoders raise nearly anything on damaged data
        raise ValueError(f"the DICOM file cannot be decoded: {error}") from error
    return pixels, (*notes, *_notes(dataset, frames))


def _check_unpacked_size(data: bytes) -> None:
    """Raises ValueError for a deflated file that unpacks to more than any image has."""
    if _DEFLATED not in data[:4096]:
        return
    rest = data[_META + int.from_bytes(data[_META - 4 : _META], "little") :]
    unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while rest and size <= _MOST_UNPACKED:
        size += len(unpacker.decompress(rest, 1 << 24))
        rest = unpacker.unconsumed_tail
    if size > _MOST_UNPACKED:
        raise ValueError(f"it unpacks to more than {_MOST_UNPACKED:,} bytes")


def _complete(dataset: "pydicom.Dataset") -> tuple[str, ...]:
    """Sets what a decoder needs and the file lacks, as most files have it."""
    integer, photometric = dicom_tags.integer, dicom_tags.photometric(dataset)
    samples = integer(dataset, "SamplesPerPixel", 3 if photometric in _COLOUR else 1)
    known = (*_GREY, _PALETTE) if samples == 1 else _COLOUR
    if photometric not in known:
        if samples not in (1, 3) or (samples == 3 and photometric not in ("", *_GREY)):
            raise ValueError(f"{samples} samples per pixel of {photometric or 'unknown'} colour")
        photometric = "MONOCHROME2" if samples == 1 else "RGB"
    wanted = {
        "SamplesPerPixel": samples,
        "PhotometricInterpretation": photometric,
        "BitsAllocated": dicom_tags.bits_allocated(dataset),
        "BitsStored": dicom_tags.bits_stored(dataset),
        "PixelRepresentation": int(dicom_tags.is_signed(dataset)),
        "NumberOfFrames": max(1, integer(dataset, "NumberOfFrames", 1)),
    }
    if samples == 3:
        wanted["PlanarConfiguration"] = int(integer(dataset, "PlanarConfiguration", 0) == 1)
    assumed = [k for k, v in wanted.items() if str(dicom_tags.value(dataset, k)) != str(v)]
    for keyword in assumed:
        setattr(dataset, keyword, wanted[keyword])
    return (ASSUMED_NOTE,) if set(assumed) - {"NumberOfFrames"} else ()


def _pixel_array(dataset: "pydicom.Dataset", frame: int, **options: Any) -> np.ndarray:
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return dicom_decoder.pixel_array(dataset, frame, **options)
    from pydicom import pixels

    return pixels.pixel_array(dataset, index=frame, **options)


def _stored(dataset: "pydicom.Dataset", frame: int) -> np.ndarray:
    """The stored values of a frame (H, W), as integers or, if the file has these, floats."""
    is_native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    values = _pixel_array(dataset, frame, correct_unused_bits=not is_native)
    if values.dtype.kind == "f" or not is_native:
        return values
    stored, allocated = dicom_tags.bits_stored(dataset), dicom_tags.bits_allocated(dataset)
    if stored == allocated:
        return values
    signed = dicom_tags.is_signed(dataset)
    wide = values.astype(np.int64)
    shift = dicom_tags.integer(dataset, "HighBit", stored - 1) + 1 - stored
    # Some files name a high bit although their values are in the low bits.
    if 0 < shift <= allocated - stored and np.any(dicom_tags.wrapped(wide, stored, signed) != wide):
        wide >>= shift
    return dicom_tags.wrapped(wide, stored, signed).astype(values.dtype)


def _colour(dataset: "pydicom.Dataset", frame: int) -> np.ndarray:
    """RGB of a frame, uint8 (H, W, 3)."""
    _correct_length(dataset)
    values = _pixel_array(dataset, frame)  # YBR becomes RGB
    if dicom_tags.photometric(dataset) in _PARTIAL:
        values = _from_partial_range(values)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"pixels of the shape {values.shape}")
    if values.dtype == np.uint8 and dicom_tags.bits_stored(dataset) == 8:
        return values
    white = 2.0 ** dicom_tags.bits_stored(dataset) - 1
    return np.clip(np.round(values / white * 255), 0, 255).astype(np.uint8)


def _correct_length(dataset: "pydicom.Dataset") -> None:
    """Three whole samples per pixel are not halved ones, whatever the file calls them."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    whole = dataset.Rows * dataset.Columns * 3 * dataset.NumberOfFrames
    halved = dicom_tags.photometric(dataset) == "YBR_FULL_422"
    if halved and len(dataset.PixelData) >= whole:
        dataset.PhotometricInterpretation = "YBR_FULL"


def _from_partial_range(ybr: np.ndarray) -> np.ndarray:
    """Y of 16..235 and C of 16..240 (PS3.3 C.7.6.3.1.2) -> RGB, uint8."""
    y, cb, cr = np.moveaxis(ybr.astype(np.float64), -1, 0) - np.array([16, 128, 128])[:, None, None]
    y = y * 255 / 219
    cb, cr = cb * 255 / 224, cr * 255 / 224
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return np.clip(np.round(rgb), 0, 255).astype(np.uint8)


def _through_palette(index: np.ndarray, dataset: "pydicom.Dataset") -> np.ndarray:
    from pydicom import pixels

    colours = pixels.apply_color_lut(index, dataset)[..., :3]
    if colours.dtype == np.uint8 or colours.max() < 256:  # 8 bits in entries of 16
        return colours.astype(np.uint8)
    return (colours >> 8).astype(np.uint8)


def _notes(dataset: "pydicom.Dataset", frames: int) -> tuple[str, ...]:
    notes = []
    if any(str(dicom_tags.value(dataset, tag) or "").strip() for tag in _IDENTIFYING):
        notes.append(IDENTITY_NOTE)
    if dicom_tags.text(dataset, "BurnedInAnnotation") == "YES":
        notes.append(BURNED_IN_NOTE)
    if frames > 1:
        notes.append(MIDDLE_FRAME)
    return tuple(notes)
