"""One limit of the size of an image, checked by its header before any pixel is decoded."""

import math
from collections.abc import Sequence

# What training's decoder takes (512 MiB of RGB), and twice what Pillow warns of.
MAX_PIXELS = 178_956_970
_MAX_SIDE = 1_000_000  # of libpng
_MAX_FILM = 32 * MAX_PIXELS  # frames that are decoded one after the other
MAX_ASPECT_RATIO = 200
MAX_VOXELS = 1 << 31


def check_size(width: int, height: int, frames: int = 1) -> None:
    """Raises ValueError for an image without pixels, or with more than can be decoded.

    Args:
      width, height: in pixels.
      frames: number of images of this size that must be decoded, one after the other.
    """
    size = _size(width, height)
    if width <= 0 or height <= 0:
        raise ValueError(f"{size}: it has none")
    if width * height > MAX_PIXELS or max(width, height) > _MAX_SIDE:
        raise ValueError(
            f"{size}, more than the {MAX_PIXELS:,} (and {_MAX_SIDE:,} of a side) that can be "
            "decoded"
        )
    if width * height * frames > _MAX_FILM:
        raise ValueError(f"{size} and {frames} frames must be decoded: write the frames as files")


def check_aspect_ratio(width: int, height: int) -> None:
    """Raises ValueError for a thin strip, which fills the memory when its short side is resized."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        size = _size(width, height)
        raise ValueError(f"{size}: too elongated, more than {MAX_ASPECT_RATIO} to 1")


def check_voxels(shape: Sequence[int]) -> None:
    """Raises ValueError for a volume of more voxels than can be held in memory."""
    if math.prod(shape) > MAX_VOXELS:
        size = " x ".join(map(str, shape))
        raise ValueError(f"the header asks for {size} voxels, more than {MAX_VOXELS:,}")


def _size(width: int, height: int) -> str:
    return f"the image is {width} x {height} pixels"
