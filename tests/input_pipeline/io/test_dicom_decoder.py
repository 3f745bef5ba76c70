"""Compressed DICOM is decoded in a process of its own, which may die without harm."""

import io
import os
import signal

import numpy as np
import pydicom
import pytest
from helpers.damaged_images import encoded, picture
from helpers.dicom_files import dicom_file

from input_pipeline.io import dicom_decoder, images
from input_pipeline.io.threads import map_ahead

JPEG = encoded(picture(size=(16, 16)), "JPEG", subsampling=0, quality=100, keep_rgb=True)


def compressed(jpeg=JPEG):
    dataset = pydicom.dcmread(io.BytesIO(dicom_file(np.zeros((16, 16, 3), np.uint8))))
    dataset.PhotometricInterpretation = "RGB"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg])
    dataset["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def check():
    """An intact file is read."""
    found = np.asarray(images.decode(compressed())[0]).astype(int)
    assert np.abs(found - np.asarray(picture(size=(16, 16)))).max() <= 8


def test_a_file_on_which_gdcm_aborts_is_refused_and_the_next_one_read():
    check()
    with pytest.raises(ValueError, match="DICOM file cannot be decoded"):
        images.decode(compressed(JPEG[:2] + b"\0\0" + JPEG[4:]))
    check()


def test_a_decoder_that_was_killed_is_replaced():
    check()
    dicom_decoder._decoder._process.kill()
    dicom_decoder._decoder._process.wait()
    check()


def test_a_decoder_that_hangs_is_stopped(monkeypatch):
    check()
    monkeypatch.setattr(dicom_decoder, "_SECONDS", 0.5)
    os.kill(dicom_decoder._decoder._process.pid, signal.SIGSTOP)
    with pytest.raises(ValueError, match="crashed on it, or did not end"):
        images.decode(compressed())
    monkeypatch.undo()
    check()


def test_threads_share_the_decoder():
    files = [compressed(encoded(picture(size=(16, 16), seed=n), "JPEG")) for n in range(12)]
    alone = [np.asarray(images.decode(data)[0]) for data in files]
    together = map_ahead(lambda data: np.asarray(images.decode(data)[0]), files, threads=4)
    np.testing.assert_array_equal(list(together), alone)


def test_the_decoder_sees_no_patient():
    dataset = pydicom.dcmread(io.BytesIO(compressed()))
    assert "secret-4711" in str(dataset.PatientID)
    part = dicom_decoder.pixels_alone(dataset)
    assert {element.tag.group for element in part} == {0x0028, 0x7FE0}
