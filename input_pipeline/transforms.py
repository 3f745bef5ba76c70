"""Image preprocessing as TensorFlow ops: encoded bytes -> uint8 (size, size, 3).

TensorFlow decodes; `resample.bicubic`, called from the graph, crops and resamples, bit-identical to
Pillow. The antialiased bicubic resize of TensorFlow took four fifths of the time of reading.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from input_pipeline import resample
from input_pipeline.io.training_decoder import decode_image


def random_resized_crop(
    encoded: tf.Tensor, size: int, seed: tf.Tensor, area: tuple[float, float] = (0.9, 1.0)
) -> tf.Tensor:
    """A random crop, resized to a square, as torchvision's RandomResizedCrop.

    Args:
      encoded: string (), an encoded image.
      size: side of the result in pixels.
      seed: int64 (2,); the crop is a function of it (`resample.random_box`).
      area: smallest and largest fraction of the area.

    Returns:
      uint8 (size, size, 3).
    """
    uniform = tf.random.stateless_uniform((4, 10), seed, dtype=tf.float64)
    return _in_numpy(functools.partial(_random_crop, size, area), size, encoded, uniform)


def resize_and_center_crop(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Shortest side to ``size``, then the central square: torchvision's Resize + CenterCrop.

    Args:
      encoded: string (), an encoded image.
      size: side of the result in pixels.

    Returns:
      uint8 (size, size, 3).
    """
    return _in_numpy(functools.partial(_center_crop, size), size, encoded)


def _in_numpy(
    crop: Callable[..., np.ndarray], size: int, encoded: tf.Tensor, *arguments: tf.Tensor
) -> tf.Tensor:
    cropped = tf.numpy_function(crop, (decode_image(encoded), *arguments), tf.uint8, stateful=False)
    return tf.ensure_shape(cropped, (size, size, 3))


def _random_crop(
    size: int, area: tuple[float, float], image: np.ndarray, uniform: np.ndarray
) -> np.ndarray:
    box = resample.random_box(image.shape[0], image.shape[1], uniform, area)
    return resample.bicubic(image, box, (size, size), (0, 0, size, size))


def _center_crop(size: int, image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    short = min(height, width)
    resized = (size * height // short, size * width // short)
    top, left = (round((length - size) / 2) for length in resized)
    return resample.bicubic(image, (0, 0, height, width), resized, (top, left, size, size))
