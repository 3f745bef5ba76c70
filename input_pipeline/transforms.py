"""Image preprocessing as TensorFlow ops: encoded images (n,) -> uint8 (n, size, size, 3).

TensorFlow decodes; `resample.bicubic`, called from the graph, crops and resamples, bit-identical to
Pillow. The antialiased bicubic resize of TensorFlow took four fifths of the time of reading.

All functions take several images, because every call from the graph into Python has a price, and
takes the global interpreter lock.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from input_pipeline import resample
from input_pipeline.io.training_decoder import decode_image


def random_resized_crops(
    encoded: tf.Tensor, size: int, seeds: tf.Tensor, area: tuple[float, float] = (0.9, 1.0)
) -> tf.Tensor:
    """Random crops, resized to squares, as torchvision's RandomResizedCrop.

    Args:
      encoded: string (n,), encoded images; n is static.
      size: side of the results in pixels.
      seeds: int64 (n, 2); each crop is a function of its seed (`resample.random_box`).
      area: smallest and largest fraction of the area.

    Returns:
      uint8 (n, size, size, 3).
    """
    uniform = tf.stack(
        [tf.random.stateless_uniform((4, 10), s, dtype=tf.float64) for s in tf.unstack(seeds)]
    )
    return _in_numpy(functools.partial(_random_crop, size, area), size, encoded, uniform)


def resize_and_center_crops(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Shortest side to ``size``, then the central square: torchvision's Resize + CenterCrop.

    Args:
      encoded: string (n,), encoded images; n is static.
      size: side of the results in pixels.

    Returns:
      uint8 (n, size, size, 3).
    """
    return _in_numpy(functools.partial(_center_crop, size), size, encoded)


def _in_numpy(
    crop: Callable[..., None], size: int, encoded: tf.Tensor, *arguments: tf.Tensor
) -> tf.Tensor:
    """``crop`` of every decoded image and its row of ``arguments``."""
    images = [decode_image(image) for image in tf.unstack(encoded)]

    @tf.autograph.experimental.do_not_convert
    def crop_all(*inputs: np.ndarray) -> np.ndarray:
        cropped = _aligned((len(images), size, size, 3))
        rows = zip(inputs[: len(images)], *inputs[len(images) :], cropped, strict=True)
        for row in rows:
            crop(*row)
        return cropped

    cropped = tf.numpy_function(crop_all, (*images, *arguments), tf.uint8, stateful=False)
    return tf.ensure_shape(cropped, (len(images), size, size, 3))


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty uint8 array that TensorFlow takes over; others it copies, holding the GIL."""
    length, alignment = math.prod(shape), 64
    memory = np.empty(length + alignment, np.uint8)
    first = -memory.ctypes.data % alignment
    return memory[first : first + length].reshape(shape)


def _random_crop(
    size: int, area: tuple[float, float], image: np.ndarray, uniform: np.ndarray, out: np.ndarray
) -> None:
    box = resample.random_box(image.shape[0], image.shape[1], uniform, area)
    resample.bicubic(image, box, (size, size), (0, 0, size, size), out)


def _center_crop(size: int, image: np.ndarray, out: np.ndarray) -> None:
    height, width, _ = image.shape
    short = min(height, width)
    resized = (size * height // short, size * width // short)
    top, left = (round((length - size) / 2) for length in resized)
    resample.bicubic(image, (0, 0, height, width), resized, (top, left, size, size), out)
