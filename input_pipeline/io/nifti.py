"""NIfTI volumes in patient orientation, read slice by slice, and labels written like them.

A volume's axes are (superior, anterior, right): depth, height, width of a record. nibabel, which
reorients volumes by their headers, is an optional dependency and imported where it is used.
"""

import gzip
import math
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from input_pipeline.io.errors import UserError
from input_pipeline.io.image_size import check_voxels

_MOST_AFTER_VOXELS = 1 << 24  # bytes
_HEADER_BYTES = 352  # of a single NIfTI-1 file without extensions


def load_nibabel() -> ModuleType:
    """The nibabel package. Raises UserError if it is not installed."""
    try:
        import nibabel
    except ImportError as error:
        raise UserError("NIfTI needs nibabel: pip install 'unimed_jax[nifti]'") from error
    return nibabel


class NiftiVolume:
    """A file's voxels, of which only the slices that are read are in memory.

    A compressed file is unpacked to a temporary file first, which is deleted with this object.

    Attributes:
      shape: (D, H, W).
      spacing: mm between neighbours along these axes.
      affine: (4, 4), from the voxel indices of the file to mm.
      turned_affine: (4, 4), from (right, anterior, superior) indices to mm, whatever the order of
        the axes in the file.
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file that cannot be read or is no volume of real numbers."""
        nibabel = load_nibabel()
        self.name = path.name
        self._unpacked = None
        try:
            self.image = nibabel.load(path)
            check_voxels(self.image.shape)
            if _is_compressed(path):
                self._unpacked = tempfile.NamedTemporaryFile(suffix=".nii")  # noqa: SIM115
                with gzip.open(path, "rb") as packed:
                    _copy(packed, self._unpacked, _num_bytes(self.image))
                self._unpacked.flush()
                self.image = nibabel.load(self._unpacked.name)
            self._raw = self.image.dataobj.get_unscaled()
        except Exception as error:  # nibabel and zlib raise nearly anything on damaged files
            reason = str(error) or type(error).__name__
            raise ValueError(f"cannot read the volume {path.name}: {reason}") from error
        if self._raw.ndim == 4 and self._raw.shape[3] == 1:
            self._raw = self._raw[..., 0]
        if self._raw.ndim != 3:
            raise ValueError(f"{path.name} has the shape {self._raw.shape}, expected three axes")
        if self._raw.dtype.kind not in "iuf":
            raise ValueError(
                f"{path.name} has voxels of the type {self._raw.dtype}, expected real numbers"
            )
        if 0 in self._raw.shape:
            raise ValueError(f"{path.name} has the shape {self._raw.shape}: no voxels")
        self.affine = self.image.affine
        if _is_degenerate(self.affine):
            raise ValueError(
                f"{path.name} has an affine without three directions: {self.affine[:3].tolist()}; "
                "repair the header"
            )
        self._voxels = turned(self._raw, self.affine)
        turn = nibabel.orientations.io_orientation(self.affine)
        self.turned_affine = self.affine @ nibabel.orientations.inv_ornt_aff(turn, self._raw.shape)
        self.shape: tuple[int, int, int] = self._voxels.shape
        self.spacing = turned_spacing(self.affine)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The slices ``start`` to ``stop`` (D, H, W): scaled as the header says, any real dtype.

        Raises ValueError for values that are not finite.
        """
        proxy = self.image.dataobj
        slices = np.ascontiguousarray(self._voxels[start:stop])
        if (proxy.slope, proxy.inter) != (1.0, 0.0):
            slices = slices * np.float32(proxy.slope) + np.float32(proxy.inter)
        if slices.dtype.kind == "f" and not np.isfinite(slices).all():
            raise ValueError(f"{self.name} has values that are no numbers (NaN or infinite)")
        return slices

    def values(self) -> np.ndarray:
        """The whole volume."""
        return self.read(0, self.shape[0])


def _is_degenerate(affine: np.ndarray) -> bool:
    """Whether an affine does not span space, or not in numbers."""
    if not np.isfinite(affine).all():
        return True
    return bool(np.isnan(load_nibabel().orientations.io_orientation(affine)).any())


def _num_bytes(image: Any) -> int:
    """Of an unpacked file, up to its last voxel."""
    voxels = image.dataobj
    return int(voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize)


def _copy(packed: Any, target: Any, num_bytes: int) -> None:
    """Unpacks a file to its end, where its checksum is, unless that is far from the last voxel.

    Raises ValueError if it is, because a small file can unpack to fill the disk.
    """
    copied = 0
    while block := packed.read(1 << 20):
        copied += len(block)
        if copied > num_bytes + _MOST_AFTER_VOXELS:
            raise ValueError(f"it unpacks to more than the {num_bytes:,} bytes of its header")
        target.write(block)


def turned(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view of a file's voxels with the axes superior, anterior, right."""
    orientations = load_nibabel().orientations
    canonical = orientations.apply_orientation(voxels, orientations.io_orientation(affine))
    return canonical.transpose(2, 1, 0)


def turned_spacing(affine: np.ndarray) -> tuple[float, float, float]:
    """mm between neighbours along the axes of `turned`."""
    nibabel = load_nibabel()
    axes = nibabel.orientations.io_orientation(affine)[:, 0].astype(int)
    file_spacing = nibabel.affines.voxel_sizes(affine)
    sizes = dict(zip(axes.tolist(), file_spacing.tolist(), strict=True))
    return sizes[2], sizes[1], sizes[0]


class LabelWriter:
    """Writes uint8 labels in the space of a volume, slice by slice, as .nii or .nii.gz.

    The header equals the volume's except for the dtype and the scaling, so voxel indices, affine
    and codes are the same. The file appears when it is complete.
    """

    def __init__(self, path: Path, like: NiftiVolume) -> None:
        """Begins a file that is compressed if the name ends with .gz, in any case."""
        nibabel = load_nibabel()
        shape = like.image.shape[:3]
        empty = np.broadcast_to(np.uint8(0), shape)
        header = nibabel.Nifti1Image(empty, like.affine, like.image.header, dtype=np.uint8).header
        header.extensions.clear()
        header.set_slope_inter(1, 0)
        header["vox_offset"] = _HEADER_BYTES
        header["cal_min"], header["cal_max"] = 0, 0
        self._path = path
        self._plain = path.with_name(f".{path.name}.unfinished")
        with self._plain.open("wb") as file:
            header.write_to(file)
            file.truncate(_HEADER_BYTES + int(np.prod(shape)))
        self._file = np.memmap(self._plain, np.uint8, "r+", _HEADER_BYTES, shape, order="F")
        self._labels = turned(self._file, like.affine)

    def write(self, start: int, labels: np.ndarray) -> None:
        """Writes slices (d, H, W), the first at index ``start``."""
        self._labels[start : start + len(labels)] = labels

    def discard(self) -> None:
        """Removes the unfinished file."""
        self._plain.unlink(missing_ok=True)

    def close(self) -> None:
        """Finishes the file."""
        self._file.flush()
        if not _is_compressed(self._path):
            self._plain.replace(self._path)
            return
        packed = self._plain.with_name(f"{self._plain.name}.gz")
        try:
            with self._plain.open("rb") as plain, gzip.open(packed, "wb", compresslevel=6) as out:
                shutil.copyfileobj(plain, out, 2**20)
            packed.replace(self._path)
        finally:
            packed.unlink(missing_ok=True)
            self._plain.unlink(missing_ok=True)


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")
