"""Generated pictures that hash as photographs do: detail at several scales, coarse is stronger."""

import io

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (192, 160)) -> Image.Image:
    """A random picture, RGB."""
    random = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0]))
    for cells in (5, 9, 17, 33):
        coarse = Image.fromarray(random.normal(size=(cells, cells)).astype(np.float32))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / cells
    total = 255 * (total - total.min()) / np.ptp(total)
    return Image.fromarray(total.astype(np.uint8)).convert("RGB")


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
