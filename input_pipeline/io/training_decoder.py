"""The decoder of training: JPEG or PNG bytes -> pixels, in TensorFlow.

Conversion verifies what it stores with this function, so what it accepts, training reads.
TensorFlow is imported inside the functions, as in `input_pipeline/records.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, GIF (first frame) or BMP bytes -> uint8 (H, W, 3), greyscale repeated."""
    import tensorflow as tf

    return tf.cond(
        tf.io.is_jpeg(encoded),
        # libjpeg's slow, accurate inverse DCT is what Pillow uses
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def decoded(data: bytes) -> np.ndarray:
    """uint8 (H, W, 3). Raises ValueError with the reason for what training cannot decode."""
    import tensorflow as tf

    try:
        with tf.device("CPU"):
            return decode_image(tf.constant(data)).numpy()
    except tf.errors.OpError as error:
        raise ValueError(_reason(error)) from error


def _reason(error: tf.errors.OpError) -> str:
    """What TensorFlow says, without the place in its graph."""
    return "cannot decode it: " + re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message).strip()


def deep_png(data: bytes) -> np.ndarray:
    """The samples of a PNG of 16 bits, uint16 (H, W, C). Raises ValueError as `decoded` does."""
    import tensorflow as tf

    try:
        with tf.device("CPU"):
            return tf.io.decode_png(data, dtype=tf.uint16).numpy()
    except tf.errors.OpError as error:
        raise ValueError(_reason(error)) from error
