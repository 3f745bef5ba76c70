"""The orientation that EXIF data state."""

import numpy as np
from PIL import ExifTags, Image

_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # orientation -> what makes the picture upright


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 for upright, none, or damaged data."""
    try:
        stated = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data
        return 1
    return stated if stated in _TURNS else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, ...) turned as an EXIF orientation says."""
    return _TURNS[orientation](pixels) if orientation in _TURNS else pixels
