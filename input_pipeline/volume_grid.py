"""Volumes in a grid of any spacing: linear resampling of any part, one axis at a time.

A volume of n voxels of s mm covers n s mm; at a spacing of t mm it has round(n s / t) voxels, which
cover the same length. Positions are those of voxel centres. Where voxels become larger, the kernel
is widened accordingly (antialiasing), as in Pillow and `tf.image.resize`. In-graph; TensorFlow is
imported inside the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def grid_shape(shape: tf.Tensor, spacing: tf.Tensor, target: tuple[float, ...]) -> tf.Tensor:
    """Voxels along each axis at the spacing ``target``, int64 (3,).

    Args:
      shape: int64 (3,).
      spacing: float32 (3,), mm; or (0,), unknown, which leaves the shape as it is.
      target: mm; 0 for the volume's spacing.
    """
    import tensorflow as tf

    wanted = tf.constant(target, tf.float32)
    known = tf.size(spacing) == 3
    known_spacing = tf.cond(known, lambda: tf.reshape(spacing, (3,)), lambda: tf.ones((3,)))
    length = tf.cast(shape, tf.float32) * known_spacing
    resampled = tf.maximum(tf.cast(tf.round(length / tf.maximum(wanted, 1e-6)), tf.int64), 1)
    return tf.where(tf.logical_and(known, wanted > 0), resampled, shape)


def axis_weights(first: tf.Tensor, count: int, num_out: tf.Tensor, num_in: tf.Tensor) -> tf.Tensor:
    """The weight of every input voxel in some output voxels, float32 (count, num_in).

    Rows are the output voxels ``first`` to ``first + count``; a row outside of the volume is 0, all
    others add up to 1.
    """
    import tensorflow as tf

    scale = tf.cast(num_in, tf.float64) / tf.cast(num_out, tf.float64)
    index = tf.cast(first, tf.int64) + tf.range(count, dtype=tf.int64)
    centre = (tf.cast(index, tf.float64) + 0.5) * scale - 0.5
    voxels = tf.range(tf.cast(num_in, tf.int64), dtype=tf.int64)
    distance = tf.abs(tf.cast(voxels, tf.float64)[None, :] - centre[:, None])
    weights = tf.maximum(1 - distance / tf.maximum(scale, 1.0), 0)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True) + 1e-12
    inside = (index >= 0) & (index < tf.cast(num_out, tf.int64))
    return tf.cast(tf.where(inside[:, None], weights, 0.0), tf.float32)


def nearest_index(first: tf.Tensor, count: int, num_out: tf.Tensor, num_in: tf.Tensor) -> tf.Tensor:
    """The input voxel in which the centre of an output voxel lies, int64 (count,); -1 outside."""
    import tensorflow as tf

    index = tf.cast(first, tf.int64) + tf.range(count, dtype=tf.int64)
    num_out, num_in = tf.cast(num_out, tf.int64), tf.cast(num_in, tf.int64)
    nearest = (2 * index + 1) * num_in // (2 * num_out)
    return tf.where((index >= 0) & (index < num_out), nearest, -1)


def crop(
    image: tf.Tensor,
    mask: tf.Tensor,
    shape: tf.Tensor,
    start: tf.Tensor,
    size: tuple[int, int, int],
) -> tuple[tf.Tensor, tf.Tensor]:
    """A part of a volume in another grid; 0 outside of the volume.

    Args:
      image: float32 (D, H, W, C).
      mask: uint8 (D, H, W).
      shape: int64 (3,), of the whole volume in that grid.
      start: int64 (3,), first voxel of the part; may be negative.
      size: of the part.

    Returns:
      float32 (*size, C), linear; uint8 (*size), the nearest neighbour.
    """
    import tensorflow as tf

    for axis in range(3):
        num_in = tf.shape(mask, tf.int64)[axis]
        weights = axis_weights(start[axis], size[axis], shape[axis], num_in)
        used = tf.where(tf.reduce_any(weights > 0, axis=0))[:, 0]
        weights, image = tf.gather(weights, used, axis=1), tf.gather(image, used, axis=axis)
        image = tf.tensordot(weights, image, axes=[[1], [axis]])  # the new axis comes first
        image = tf.transpose(image, _moved(axis))
        index = nearest_index(start[axis], size[axis], shape[axis], num_in)
        mask = tf.gather(mask, tf.maximum(index, 0), axis=axis)
        outside = tf.reshape(index < 0, [size[axis] if a == axis else 1 for a in range(3)])
        mask = tf.where(outside, tf.zeros((), tf.uint8), mask)
    return tf.ensure_shape(image, (*size, None)), tf.ensure_shape(mask, size)


def _moved(axis: int) -> list[int]:
    """The permutation that takes the first of four axes to ``axis``."""
    order = [1, 2, 3]
    order.insert(axis, 0)
    return order


def draw_start(
    mask: tf.Tensor,
    shape: tf.Tensor,
    size: tuple[int, int, int],
    foreground: float,
    seed: tf.Tensor,
) -> tf.Tensor:
    """The start of a random part, int64 (3,), in the grid of ``shape``.

    With probability ``foreground`` it is centred on a voxel of a class that is drawn from those in
    the mask, as far as the volume goes; else it is any part of the volume. Along an axis on which
    the volume is shorter, it is in the middle.

    Args:
      mask: uint8 (D, H, W), in the original grid of the volume.
      seed: int64 (2,).
    """
    import tensorflow as tf

    place, kind, label, voxel = tf.unstack(tf.random.split(seed, 4))
    room = shape - tf.constant(size, tf.int64)
    uniform = tf.random.stateless_uniform((3,), place, dtype=tf.float64)
    anywhere = tf.cast(uniform * tf.cast(tf.maximum(room, 0) + 1, tf.float64), tf.int64)
    present = tf.boolean_mask(
        tf.range(256, dtype=tf.int32),
        tf.math.bincount(tf.cast(tf.reshape(mask, [-1]), tf.int32), minlength=256) > 0,
    )
    present = tf.boolean_mask(present, present > 0)

    def on_a_class() -> tf.Tensor:
        chosen = present[_draw(label, tf.size(present))]
        voxels = tf.where(tf.equal(mask, tf.cast(chosen, tf.uint8)))
        centre = voxels[_draw(voxel, tf.shape(voxels)[0])]
        scale = tf.cast(shape, tf.float64) / tf.cast(tf.shape(mask), tf.float64)
        there = tf.cast(tf.floor((tf.cast(centre, tf.float64) + 0.5) * scale), tf.int64)
        start = there - tf.constant([n // 2 for n in size], tf.int64)
        return tf.minimum(tf.maximum(start, 0), tf.maximum(room, 0))

    wanted = tf.random.stateless_uniform((), kind) < foreground
    start = tf.cond(wanted & (tf.size(present) > 0), on_a_class, lambda: anywhere)
    return tf.where(room < 0, -(-room // 2), start)


def _draw(seed: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """An index below ``count``."""
    import tensorflow as tf

    uniform = tf.random.stateless_uniform((), seed, dtype=tf.float64)
    return tf.minimum(tf.cast(uniform * tf.cast(count, tf.float64), tf.int32), count - 1)
