"""Generated volumes with labels: a trunk with two lungs, and lesions within them.

No patient data is used. A phantom depends only on its row; the spacing differs between volumes.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from input_pipeline.segmentation_records import SegmentationSample

CLASSES = ("lung", "lesion")
_LUNG, _LESION = 1, 2
_LENGTH = (240.0, 260.0, 320.0)  # mm along depth, height, width


@dataclass(frozen=True)
class VolumePhantomRow:
    """Everything that determines one phantom; ``voxels`` are along height and width."""

    id: str
    voxels: int


def make_sample(row: VolumePhantomRow) -> SegmentationSample:
    """Draws the phantom of a row."""
    entropy = int.from_bytes(hashlib.sha256(row.id.encode()).digest())
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    depth = int(rng.integers(row.voxels // 2, row.voxels))
    shape = (depth, row.voxels, row.voxels)
    image, mask = draw(rng, shape)
    return SegmentationSample.from_array(
        image,
        mask,
        id=row.id,
        classes=CLASSES,
        modality="ct",
        source="volume_phantoms",
        group=row.id,
        spacing=tuple(length / n for length, n in zip(_LENGTH, shape, strict=True)),
    )


def draw(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """float32 in 0..1 and uint8 label values, both (D, H, W)."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        parts = zip((z, y, x), centre, radii, strict=True)
        dz, dy, dx = (((axis - c) / r) ** 2 for axis, c, r in parts)
        return dz + dy + dx < 1

    jitter = rng.uniform(-0.05, 0.05, (3, 3))
    body = ellipsoid((0.0, 0.0, 0.0), (2.0, 0.80, 0.92))
    lungs = np.zeros(shape, bool)
    for side, move in zip((-0.42, 0.42), jitter, strict=False):
        size = rng.uniform(0.85, 1.1, 3)
        radii = tuple((np.array([0.80, 0.55, 0.32]) * size).tolist())
        lungs |= ellipsoid(tuple((np.array([0.05, 0.0, side]) + move).tolist()), radii)
    lungs &= body
    lesions = np.zeros(shape, bool)
    inside = np.argwhere(lungs)
    for _ in range(rng.integers(2, 6)):
        centre = tuple(float(a[i]) for a, i in zip(axes, rng.choice(inside), strict=True))
        lesions |= ellipsoid(centre, tuple(rng.uniform(0.10, 0.28, 3).tolist()))
    lesions &= lungs
    image = np.where(body, 0.55, 0.02).astype(np.float32)
    image[lungs] = 0.18
    image[lesions] = rng.uniform(0.36, 0.46)
    image = ndimage.gaussian_filter(image, 0.6)
    image += 0.04 * rng.standard_normal(shape, dtype=np.float32)
    mask = np.where(lesions, _LESION, np.where(lungs, _LUNG, 0)).astype(np.uint8)
    return np.clip(image, 0, 1), mask
