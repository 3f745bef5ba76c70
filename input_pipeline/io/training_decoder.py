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

    return tf.cond(tf.io.is_jpeg(encoded), lambda: _jpeg(encoded), lambda: _other(encoded))


def decoded(data: bytes) -> np.ndarray:
    """`decode_image` of bytes. Raises ValueError with the reason if training cannot decode them."""
    import tensorflow as tf

    # The condition of `tf.io.is_jpeg`, which costs a third of the decoding if it runs alone.
    decode = _jpeg if data.startswith(b"\xff\xd8\xff") else _other
    try:
        with tf.device("CPU"):
            return decode(tf.constant(data)).numpy()
    except tf.errors.OpError as error:
        raise ValueError(_reason(error)) from error


def _jpeg(encoded: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    # libjpeg's slow, accurate inverse DCT is what Pillow uses
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def _other(encoded: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


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
