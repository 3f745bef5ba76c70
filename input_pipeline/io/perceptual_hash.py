"""Perceptual hashes of images, and how far apart those of copies are."""

import numpy as np
from PIL import Image

from input_pipeline.io.errors import UserError

# Re-encoded and resized copies differ in at most 12 of 256 bits, different images of one kind in 22
# and more (docs/log/data.md has the measurement).
COPY_DISTANCE = 16
_HASH_SIDE = 16


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """DCT hash of 16 x 16 frequencies, uint8 (32,)."""
    import imagehash

    return np.packbits(imagehash.phash(image.convert("L"), hash_size=_HASH_SIDE).hash)


def need_library() -> None:
    """Raises UserError if the extra [inspect] is not installed."""
    try:
        import imagehash  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        raise UserError(
            "comparing pictures needs ImageHash: pip install 'unimed_jax[inspect]'"
        ) from error
