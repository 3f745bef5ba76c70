"""NIfTI files that ask for more than they hold, or hold more than they ask for."""

import gzip
import struct

import numpy as np
import pytest

from input_pipeline.io.nifti import NiftiVolume

nibabel = pytest.importorskip("nibabel")


def content():
    """The bytes of a file of 64 ones."""
    return nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)).to_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_small_volume_that_asks_for_gigabytes_is_refused_by_its_header(tmp_path, suffix):
    header = bytearray(content())
    struct.pack_into("<4h", header, 40, 3, 30_000, 30_000, 30_000)
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(gzip.compress(header) if suffix == ".nii.gz" else bytes(header))
    with pytest.raises(ValueError, match="30000 x 30000 x 30000 voxels, more than"):
        NiftiVolume(path)


def test_a_file_that_unpacks_to_more_than_its_header_says_is_refused(tmp_path):
    path = tmp_path / "long.nii.gz"
    path.write_bytes(gzip.compress(content() + bytes(1000)))
    assert NiftiVolume(path).values().sum() == 64
    path.write_bytes(gzip.compress(content() + bytes(1 << 26)))
    with pytest.raises(ValueError, match="unpacks to more than the 608 bytes of its header"):
        NiftiVolume(path)


def test_a_wrong_checksum_is_noticed(tmp_path):
    packed = bytearray(gzip.compress(content()))
    packed[-6] ^= 1
    path = tmp_path / "damaged.nii.gz"
    path.write_bytes(bytes(packed))
    with pytest.raises(ValueError, match="cannot read the volume damaged"):
        NiftiVolume(path)
