"""Slices of a volume with its labels in colour, and the names of the classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe-Ito, without black and grey: told apart with any colour vision
CLASS_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
_OPACITY = 0.45
_COLUMNS, _LEGEND_HEIGHT, _MIN_SIDE = 4, 22, 192


def coloured(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Blends the colours of the classes over an image.

    Args:
      image: (H, W) in 0..1.
      labels: (H, W) integers; 0 is the background, colours repeat after seven classes.

    Returns:
      uint8 (H, W, 3).
    """
    grey = np.repeat(np.clip(image, 0, 1)[..., None] * 255, 3, axis=-1)
    table = np.array([(0, 0, 0), *CLASS_COLOURS], np.float64)
    index = np.where(labels > 0, (labels.astype(np.int64) - 1) % len(CLASS_COLOURS) + 1, 0)
    opacity = np.where(labels > 0, _OPACITY, 0.0)[..., None]
    return np.round((1 - opacity) * grey + opacity * table[index]).astype(np.uint8)


def chosen_slices(areas: np.ndarray, count: int) -> list[int]:
    """Indices of slices that show the labels of a volume: equal shares of the area between them.

    Args:
      areas: (D,) labelled voxels of each slice; without any, slices are spread evenly.
      count: number of slices; fewer are returned for a thin volume.
    """
    weights = areas if areas.any() else np.ones_like(areas)
    cumulative = np.cumsum(weights, dtype=np.float64)
    wanted = (np.arange(count) + 0.5) / count * cumulative[-1]
    return sorted(set(np.searchsorted(cumulative, wanted).tolist()))


def save_montage(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    spacing: Sequence[float],
) -> None:
    """Writes slices with labels, in rows, and a legend to a PNG.

    Args:
      path: the file.
      images: (N, H, W) in 0..1, seen as a radiologist does: superior slices last, anterior up, the
        patient's right on the left.
      labels: (N, H, W) integers.
      names: names of the labels 1, 2, ...
      spacing: mm between the rows and between the columns.
    """
    height, width = images.shape[1] * spacing[0], images.shape[2] * spacing[1]
    scale = _MIN_SIDE / min(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    tiles = [
        Image.fromarray(coloured(image, label)).resize(size, Image.Resampling.NEAREST)
        for image, label in zip(images, labels, strict=True)
    ]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (columns * size[0], rows * size[1] + _LEGEND_HEIGHT), "black")
    for index, tile in enumerate(tiles):
        page.paste(tile, (index % columns * size[0], index // columns * size[1]))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    x, y = 6, rows * size[1] + 4
    for index, name in enumerate(names):
        draw.rectangle((x, y + 2, x + 10, y + 12), fill=CLASS_COLOURS[index % len(CLASS_COLOURS)])
        draw.text((x + 15, y - 1), name, fill="white", font=font)
        x += 30 + round(draw.textlength(name, font=font))
    page.save(path, "PNG")
