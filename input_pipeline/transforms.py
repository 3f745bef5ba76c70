"""Image preprocessing as TensorFlow ops: encoded bytes -> uint8 (size, size, 3).

Resampling follows Pillow (and torchvision on uint8 images): separable cubic convolution, a = -0.5,
the kernel widened by the scale when shrinking (antialiasing), weights renormalised at the border,
and rounding to 8 bit between the horizontal and the vertical pass. Both passes are matrix products.
"""

import math

import tensorflow as tf


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, GIF (first frame) or BMP bytes -> uint8 (H, W, 3), greyscale repeated."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        # libjpeg's slow, accurate inverse DCT is what Pillow uses
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def cubic_weights(in_size: tf.Tensor, out_size: tf.Tensor | int) -> tf.Tensor:
    """Resampling matrix of one axis, float32 (out_size, in_size); every row sums to one.

    Keys' cubic kernel with a = -0.5: |t|^3 (a+2) - |t|^2 (a+3) + 1 for |t| <= 1;
    a (|t|^3 - 5|t|^2 + 8|t| - 4) for 1 < |t| < 2; t in units of max(scale, 1) input pixels.
    """
    a = -0.5
    scale = tf.cast(in_size, tf.float32) / tf.cast(out_size, tf.float32)
    centre = (tf.cast(tf.range(out_size), tf.float32) + 0.5) * scale
    pixel = tf.cast(tf.range(in_size), tf.float32) + 0.5
    t = tf.abs(pixel[None, :] - centre[:, None]) / tf.maximum(scale, 1.0)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    weights = tf.where(t <= 1, near, tf.where(t < 2, far, 0.0))
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)


def _resample(image: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """uint8 (H, W, 3) -> uint8 (h, w, 3) by the matrices ``rows`` (h, H) and ``columns`` (w, W)."""
    planes = tf.transpose(tf.cast(image, tf.float32), (2, 0, 1))
    planes = tf.matmul(planes, columns, transpose_b=True)
    planes = tf.clip_by_value(tf.round(planes), 0.0, 255.0)
    planes = tf.matmul(tf.repeat(rows[None], 3, axis=0), planes)
    planes = tf.clip_by_value(tf.round(planes), 0.0, 255.0)
    return tf.cast(tf.transpose(planes, (1, 2, 0)), tf.uint8)


def resize(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """uint8 (H, W, 3) -> uint8 (height, width, 3), bicubic with antialiasing as in Pillow."""
    shape = tf.shape(image)
    resized = _resample(image, cubic_weights(shape[0], height), cubic_weights(shape[1], width))
    return tf.ensure_shape(resized, (height, width, 3))


def random_resized_crop(
    encoded: tf.Tensor, size: int, seed: tf.Tensor, area: tuple[float, float] = (0.9, 1.0)
) -> tf.Tensor:
    """Crop of a share of the area, resized to a square, as torchvision's RandomResizedCrop.

    Aspect ratio is log-uniform in [3/4, 4/3]; the first of ten proposals that fits is taken, else
    the largest centred crop whose aspect ratio is in that range.

    Args:
      encoded: string (), an encoded image.
      size: side of the result in pixels.
      seed: int64 (2,); the crop is a function of it.
      area: smallest and largest share of the area.

    Returns:
      uint8 (size, size, 3).
    """
    image = decode_image(encoded)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    uniform = tf.random.stateless_uniform((4, 10), seed)
    share = area[0] + uniform[0] * (area[1] - area[0])
    log_ratio = math.log(3 / 4) + uniform[1] * (math.log(4 / 3) - math.log(3 / 4))
    crop_width = tf.round(tf.sqrt(height * width * share * tf.exp(log_ratio)))
    crop_height = tf.round(tf.sqrt(height * width * share / tf.exp(log_ratio)))
    fits = (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
    first = tf.argmax(fits)

    # without a fitting proposal: the whole image, cut centrally to the nearest allowed aspect ratio
    fallback_width = tf.minimum(width, tf.round(height * 4 / 3))
    fallback_height = tf.minimum(height, tf.round(width / (3 / 4)))
    any_fits = tf.reduce_any(fits)
    crop_width = tf.where(any_fits, crop_width[first], fallback_width)
    crop_height = tf.where(any_fits, crop_height[first], fallback_height)
    top = tf.where(
        any_fits,
        tf.floor(uniform[2, first] * (height - crop_height + 1)),
        tf.floor((height - crop_height) / 2),
    )
    left = tf.where(
        any_fits,
        tf.floor(uniform[3, first] * (width - crop_width + 1)),
        tf.floor((width - crop_width) / 2),
    )
    top, left, crop_height, crop_width = (
        tf.cast(x, tf.int32) for x in (top, left, crop_height, crop_width)
    )
    return resize(image[top : top + crop_height, left : left + crop_width], size, size)


def resize_and_center_crop(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Shortest side to ``size``, then the central square: torchvision's Resize + CenterCrop.

    Args:
      encoded: string (), an encoded image.
      size: side of the result in pixels.

    Returns:
      uint8 (size, size, 3).
    """
    image = decode_image(encoded)
    height, width = tf.unstack(tf.shape(image)[:2])
    short = tf.minimum(height, width)
    resized_height, resized_width = size * height // short, size * width // short
    # only the central square is computed: the same rows of the resampling matrices, and no more
    weights = []
    for in_size, out_size in ((height, resized_height), (width, resized_width)):
        offset = tf.cast(tf.round(tf.cast(out_size - size, tf.float32) / 2), tf.int32)
        weights.append(cubic_weights(in_size, out_size)[offset : offset + size])
    return tf.ensure_shape(_resample(image, *weights), (size, size, 3))
