"""Sub-volumes put out of order, masked cubes, and the losses of learning from both.

Learnable weight initialisation for volumetric segmentation (arXiv 2306.09320): a network sees a
crop whose T slabs along the depth are shuffled and of which cubes are masked; its output is to be
the shuffled crop without the mask, its encoder is to tell the slabs' order. Functions named
``draw_*`` take a key; all others are the formulas. Volumes are (D, H, W, C).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def draw_order(key: jax.Array, slots: int) -> jax.Array:
    """A permutation of the sub-volumes, int32 (T,): number n is the one that stands in slot n."""
    return jax.random.permutation(key, slots)


def shuffle(volume: jax.Array, order: jax.Array) -> jax.Array:
    """Slot n of the result is sub-volume ``order[n]``; the depth is a multiple of the slots."""
    slots = order.shape[0]
    slabs = volume.reshape(slots, volume.shape[0] // slots, *volume.shape[1:])
    return slabs[order].reshape(volume.shape)


def num_masked(grid: Sequence[int], ratio: float) -> int:
    """floor(ratio L) of the L cubes of a grid."""
    return math.floor(ratio * math.prod(grid) + 1e-9)


def draw_mask(key: jax.Array, grid: Sequence[int], ratio: float) -> jax.Array:
    """Which cubes are masked, bool (grid); exactly `num_masked` of them."""
    count = math.prod(grid)
    ranks = jax.random.permutation(key, count)
    return (ranks < num_masked(grid, ratio)).reshape(tuple(grid))


def mask_cubes(volume: jax.Array, masked: jax.Array) -> jax.Array:
    """0 in the cubes that are masked; each side is a multiple of that of ``masked``."""
    for axis in range(3):
        masked = jnp.repeat(masked, volume.shape[axis] // masked.shape[axis], axis=axis)
    return jnp.where(masked[..., None], 0.0, volume)


def reconstruction_loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared difference over all voxels, masked or not; (B, D, H, W, C)."""
    return jnp.mean(jnp.square(output - target))


def order_loss(logits: Sequence[jax.Array], order: jax.Array) -> jax.Array:
    """Sum over the heads of the mean cross-entropy between a slot's logits and what stands there.

    Args:
      logits: of each head, (B, T, T): slot, sub-volume.
      order: int (B, T), from `draw_order`.
    """
    total = jnp.zeros(())
    for head in logits:
        log_p = jax.nn.log_softmax(head, axis=-1)
        total -= jnp.mean(jnp.take_along_axis(log_p, order[..., None], axis=-1))
    return total


def order_accuracy(logits: Sequence[jax.Array], order: jax.Array) -> jax.Array:
    """Share of slots whose sub-volume is found, mean over the heads."""
    return jnp.mean(jnp.stack([jnp.argmax(head, axis=-1) == order for head in logits]))
