"""Volumes of labels: where they are written, and how much of every class they hold."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from input_pipeline.io.errors import UserError
from input_pipeline.io.nifti import NiftiVolume

_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh")


def output_names(volumes: Sequence[Path]) -> list[Path]:
    """Where the labels of each volume go, relative to the output directory.

    A file's own name, below the folders in which volumes of one name differ. Formats other than
    .nii and .nii.gz, and names without either, become .nii.gz.

    Raises:
      UserError: a volume is given twice.
    """
    resolved = [Path(os.path.realpath(volume)) for volume in volumes]
    if repeated := sorted({str(p) for p in resolved if resolved.count(p) > 1}):
        raise UserError(f"{repeated[0]} is given twice")
    names = [_as_nifti(path.name) for path in resolved]
    if len(set(names)) < len(names):
        top = Path(os.path.commonpath([path.parent for path in resolved]))
        targets = [
            path.parent.relative_to(top) / name for path, name in zip(resolved, names, strict=True)
        ]
    else:
        targets = list(map(Path, names))
    if repeated := sorted({str(t) for t in targets if targets.count(t) > 1}):
        raise UserError(
            f"two volumes would be written to {repeated[0]}: they differ in their suffix alone; "
            "segment them into different directories"
        )
    return targets


def _as_nifti(name: str) -> str:
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name if suffix.startswith(".nii") else name[: -len(suffix)] + ".nii.gz"
    return f"{name}.nii.gz"


class SegmentedVolume:
    """Counts the voxels of every class while labels are written."""

    def __init__(self, volume: NiftiVolume, num_classes: int) -> None:
        self._volume = volume
        self.counts = np.zeros((volume.shape[0], num_classes + 1), np.int64)

    def add(self, start: int, labels: np.ndarray) -> None:
        """Counts slices uint8 (d, H, W), the first at index ``start``."""
        for index, plane in enumerate(labels, start):
            self.counts[index] += np.bincount(plane.ravel(), minlength=self.counts.shape[1])

    @property
    def millilitres(self) -> np.ndarray:
        """(K,) volume of every class."""
        cubic_mm = abs(np.linalg.det(self._volume.affine[:3, :3]))
        return self.counts[:, 1:].sum(axis=0) * cubic_mm / 1000

    @property
    def areas(self) -> np.ndarray:
        """(D,) voxels of any class in each slice."""
        return self.counts[:, 1:].sum(axis=1)


def without_suffix(name: Path) -> str:
    """A file name without the suffix of its format."""
    text = str(name)
    return next((text[: -len(s)] for s in _SUFFIXES if text.lower().endswith(s)), text)
