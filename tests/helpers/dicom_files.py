"""DICOM files of invented pixels and patients."""

import io

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def dicom_file(
    pixels, *, bits_stored=None, photometric="MONOCHROME2", raw=None, without=(), **tags
):
    """A DICOM file of pixels (H, W), (frames, H, W) or (H, W, 3), with identifying tags.

    `raw` holds texts that pydicom would not write, by keyword; tags in `without` are left out.
    """
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.PatientName, data.PatientID = "Nobody^Invented", "secret-4711"
    data.Modality = "OT"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    if pixels.ndim == 3 and not colour:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    data.SamplesPerPixel = 3 if colour else 1
    if colour:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored = bits_stored or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if isinstance(value, pydicom.DataElement):
            data.add(value)
        else:
            setattr(data, name, value)
    for name, text in (raw or {}).items():
        set_raw(data, name, text)
    for name in without:
        delattr(data, name)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def set_raw(data, keyword, text):
    """Sets the bytes of a tag without a look at them."""
    tag = Tag(keyword)
    value = text.encode().ljust(len(text) + len(text) % 2)
    data._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def lookup_table(entries, first=0, bits=16, size=2):
    """An item of a LUT sequence, its entries stored in `size` bytes each."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    data = np.asarray(entries, f"<u{size}").tobytes()
    item.add_new("LUTData", "OW", data + b"\0" * (len(data) % 2))
    return item


def item(**tags):
    """An item of a sequence."""
    made = pydicom.Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made
