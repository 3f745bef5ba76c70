"""A NIfTI volume and its label volume: read and checked as one."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from input_pipeline.conversion.label_classes import Classes
from input_pipeline.io.files import walk_files
from input_pipeline.io.label_pictures import rounded_labels
from input_pipeline.io.nifti import NiftiVolume

_MOST_DISTANT = 0.25  # of the shortest edge of a voxel
_MOST_NAMED = 5


@dataclass(frozen=True)
class NiftiPair:
    """Axes are superior, anterior, right.

    Attributes:
      values: (D, H, W), finite.
      labels: (D, H, W), integers as in the file, at least 0.
      spacing: mm between neighbours along these axes.
    """

    values: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]


def read_pair(image_path: Path, label_path: Path) -> NiftiPair:
    """Reads both files; the order and direction of their axes may differ.

    Raises ValueError, which says what is wrong: a file is damaged, the two differ in their grids,
    or values are not finite, or labels not whole numbers.
    """
    image, labels = NiftiVolume(image_path), NiftiVolume(label_path)
    if image.shape != labels.shape:
        raise ValueError(f"the image is {image.shape}, its labels {labels.shape}")
    distance = _distance(image, labels)
    if distance > _MOST_DISTANT * min(image.spacing):
        raise ValueError(
            f"image and labels lie elsewhere: their affines differ, by {distance:.3g} mm at a "
            "corner; resample the labels to the image, by nearest neighbour"
        )
    return NiftiPair(image.values(), read_labels(labels), image.spacing)


def read_labels(volume: NiftiVolume) -> np.ndarray:
    """The label values of a volume, integers. Raises ValueError, which names the file."""
    try:
        return rounded_labels(volume.values())
    except ValueError as error:
        raise ValueError(f"{volume.name}: {error}") from error


def labelled(classes: Classes, values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """uint8 label values, where values of no class are background, which notes name."""
    labels = classes.label_map_of_some(values)
    unknown = classes.without_class(values, labels).tolist()
    named = [f"label value {value} of no class: background" for value in unknown[:_MOST_NAMED]]
    more = ["more label values of no class: background"] if len(unknown) > _MOST_NAMED else []
    return labels, (*named, *more)


def count_unused(raw: Path, used: Iterable[str]) -> dict[str, int]:
    """The volumes below a folder that no pair has, for ``Conversion.inputs``."""
    volumes = {p for p in walk_files(raw) if p.lower().endswith((".nii", ".nii.gz"))}
    number = len(volumes - {*used})
    return {"volumes in no pair": number} if number else {}


def _distance(first: NiftiVolume, second: NiftiVolume) -> float:
    """The longest distance, in mm, between corners of two volumes of one shape."""
    depth, height, width = first.shape
    ends = itertools.product((0, width - 1), (0, height - 1), (0, depth - 1))
    corners = np.array([(*end, 1) for end in ends], np.float64)
    moved = corners @ (first.turned_affine - second.turned_affine).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max())
