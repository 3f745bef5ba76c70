"""DICOM files -> 8-bit pixels. No patient tag leaves this module.

The order is that of the standard: modality transform (rescale or LUT), VOI LUT or else the first
window, inversion of MONOCHROME1. Greyscale of more than 8 bits without window or VOI LUT is scaled
as any 16-bit image is (`images.grey_to_8_bit`). Of several frames the middle one is taken, because
a row has one image. Overlays are not drawn.
"""

import io
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.io.errors import UserError

if TYPE_CHECKING:
    import pydicom

IDENTITY_NOTE = "DICOM with identifying tags (not copied)"
BURNED_IN_NOTE = "DICOM that declares burned-in annotation"

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


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file, by its preamble."""
    return data[128:132] == b"DICM"


def read(data: bytes) -> tuple[np.ndarray, bool, tuple[str, ...]]:
    """Decodes the middle frame.

    Returns:
      Pixels, (H, W) or (H, W, 3): uint8, or numbers of any range that no window maps to 8 bits;
      whether they are inverted (MONOCHROME1); notes.

    Raises:
      ValueError: not decodable, or without pixels.
      UserError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom import pixels
    except ImportError as error:
        raise UserError("DICOM files need pydicom: pip install 'unimed_jax[dicom]'") from error

    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in dataset:
            raise ValueError("there are no pixels in it")
        frames = int(dataset.get("NumberOfFrames") or 1)
        array = pixels.pixel_array(dataset, index=frames // 2)  # YBR becomes RGB
        photometric = dataset.PhotometricInterpretation
        if photometric == "PALETTE COLOR":
            array = pixels.apply_color_lut(array, dataset)
            if array.dtype == np.uint16:
                array = (array >> 8).astype(np.uint8)
        elif array.ndim == 2:
            if _is_rescaled(dataset):
                array = pixels.apply_modality_lut(array, dataset)
            array = _through_window(array, dataset)
    except Exception as error:  # pydicom and its decoders raise nearly anything on damaged data
        raise ValueError(f"the DICOM file cannot be decoded: {error}") from error
    return array, photometric == "MONOCHROME1", _notes(dataset, frames)


def _is_rescaled(dataset: "pydicom.Dataset") -> bool:
    """Whether the modality transform changes values; if not, 8 bits need not become float."""
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    same = float(1 if slope is None else slope) == 1 and float(intercept or 0) == 0
    return "ModalityLUTSequence" in dataset or not same


def _through_window(array: np.ndarray, dataset: "pydicom.Dataset") -> np.ndarray:
    """Applies the VOI LUT or the first window, if the file has one, and maps it to uint8."""
    from pydicom.pixels import apply_voi_lut

    if "VOILUTSequence" not in dataset and "WindowWidth" not in dataset:
        return array
    if "VOILUTSequence" in dataset:
        # An index; the modality transform may have made it float.
        seen = apply_voi_lut(array.astype(np.int64), dataset)
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        # Two values beyond any window show what its ends are mapped to.
        flat = array.astype(np.float64).ravel()
        seen = apply_voi_lut(np.append(flat, (flat.min() - 2**24, flat.max() + 2**24)), dataset)
        low, high = seen[-2:]
        seen = seen[:-2].reshape(array.shape)
    scaled = (seen - low) / max(high - low, 1e-9)
    return np.clip(np.round(scaled * 255), 0, 255).astype(np.uint8)


def _notes(dataset: "pydicom.Dataset", frames: int) -> tuple[str, ...]:
    notes = []
    if any(str(dataset.get(tag) or "").strip() for tag in _IDENTIFYING):
        notes.append(IDENTITY_NOTE)
    if dataset.get("BurnedInAnnotation") == "YES":
        notes.append(BURNED_IN_NOTE)
    if frames > 1:
        notes.append("middle of several frames")
    return tuple(notes)
