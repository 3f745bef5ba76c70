"""One limit of the size of an image, checked by its header before any pixel is decoded."""

# What training's decoder takes (512 MiB of RGB), and twice what Pillow warns of.
MAX_PIXELS = 178_956_970
# Images are resized by their short side: a thin strip would fill the memory.
MAX_ASPECT_RATIO = 200
_MAX_FILM = 32 * MAX_PIXELS  # frames that are decoded one after the other


def check_size(width: int, height: int, frames: int = 1) -> None:
    """Raises ValueError for an image without pixels, with too many, or that is too elongated.

    Args:
      width, height: in pixels.
      frames: number of images of this size that must be decoded, one after the other.
    """
    size = f"the image is {width} x {height} pixels"
    if width <= 0 or height <= 0:
        raise ValueError(f"{size}: it has none")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{size}: too elongated, more than {MAX_ASPECT_RATIO} to 1")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{size}, more than the {MAX_PIXELS:,} that can be decoded")
    if width * height * frames > _MAX_FILM:
        raise ValueError(f"{size} and {frames} frames must be decoded: write the frames as files")
