"""Generated images with masks in two styles: branching vessels and round lesions, two cameras.

The same anatomy in another style is another domain: colours, contrast, vignette and noise differ,
shapes do not. No patient data and no real image is used. A phantom depends only on its row.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from input_pipeline.phantoms import strokes
from input_pipeline.segmentation_records import SegmentationSample

CLASSES = ("vessel", "lesion")


@dataclass(frozen=True)
class Style:
    """How a camera renders the plane; colours are RGB in 0..1."""

    background: tuple[float, float, float]
    vessel: tuple[float, float, float]
    lesion: tuple[float, float, float]
    vignette: float  # how much darker the rim is
    noise: float


STYLES: Mapping[str, Style] = {
    "warm": Style((0.72, 0.36, 0.20), (0.40, 0.10, 0.06), (0.90, 0.78, 0.42), 0.25, 0.02),
    "cold": Style((0.30, 0.38, 0.44), (0.16, 0.24, 0.34), (0.52, 0.56, 0.52), 0.60, 0.05),
}


@dataclass(frozen=True, repr=False)
class MaskPhantomRow:
    """Everything that determines one phantom."""

    id: str
    style: str
    image_size: int

    def __repr__(self) -> str:
        # the hash of a corpus contains it, and corpora keep their hash
        return f"PhantomRow(id={self.id!r}, style={self.style!r}, image_size={self.image_size!r})"


def make_sample(row: MaskPhantomRow) -> SegmentationSample:
    """Draws the phantom of a row: a square RGB PNG with its mask."""
    entropy = int.from_bytes(hashlib.sha256(row.id.encode()).digest())
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
    pixels, mask = draw(rng, STYLES[row.style], row.image_size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return SegmentationSample.from_encoded(
        buffer.getvalue(),
        mask,
        id=row.id,
        classes=CLASSES,
        modality="fundus",
        source=row.style,
        group=row.id,
    )


def draw(rng: np.random.Generator, style: Style, size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (size, size, 3) and the label values of its pixels, uint8 (size, size)."""
    x, y = strokes.plane(rng, size)
    pen = strokes.Pen(size)
    start = rng.uniform(-0.5, 0.5, 2)
    for direction in rng.uniform(0, 2 * np.pi, 4):
        _grow(rng, pen, start, direction, width=0.10, depth=3)
    vessels = pen.mask()
    lesions = np.zeros_like(vessels)
    for _ in range(rng.integers(0, 3)):
        centre = tuple(rng.uniform(-0.6, 0.6, 2))
        lesions = np.maximum(
            lesions, strokes.blob(rng, x, y, centre, rng.uniform(0.10, 0.22), roughness=0.15)
        )
    image = np.empty((size, size, 3), np.float32)
    image[:] = style.background
    image *= (1 + 0.06 * strokes.clouds(rng, size, 6))[..., None]
    strokes.paint(image, vessels, style.vessel)
    strokes.paint(image, lesions, style.lesion)
    image *= (1 - style.vignette * (x * x + y * y) / 2)[..., None]
    image += style.noise * strokes.grain(rng, size)[..., None]
    mask = np.where(lesions > 0.5, 2, np.where(vessels > 0.5, 1, 0)).astype(np.uint8)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8), mask


def _grow(
    rng: np.random.Generator,
    pen: strokes.Pen,
    start: np.ndarray,
    direction: float,
    width: float,
    depth: int,
) -> None:
    """A wavy line that ends in two thinner ones."""
    turns = direction + np.cumsum(rng.normal(0, 0.25, 5))
    steps = 0.13 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    pen.line(points, width)
    if depth:
        for side in (-1, 1):
            _grow(rng, pen, points[-1], turns[-1] + side * rng.uniform(0.3, 0.8), 0.7 * width,
                  depth - 1)  # fmt: skip
