"""The pretext task on volumes: shuffled sub-volumes, masked cubes, and the losses of both.

Learnable weight initialization for volumetric segmentation (arXiv 2306.09320): a network gets a
crop whose T slabs along the depth are shuffled and of which cubes are masked. Its output is trained
to be the shuffled crop without the mask, its encoder to predict the permutation of the slabs.
Functions named ``draw_*`` take a key; all others are the formulas. Volumes are (D, H, W, C).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def draw_permutation(key: jax.Array, num_sub_volumes: int) -> jax.Array:
    """A permutation of the sub-volumes, int32 (T,): entry n is the sub-volume at position n."""
    return jax.random.permutation(key, num_sub_volumes)


def shuffle(volume: jax.Array, permutation: jax.Array) -> jax.Array:
    """Puts sub-volume ``permutation[n]`` at position n; the depth must be a multiple of T."""
    num_sub_volumes = permutation.shape[0]
    slabs = volume.reshape(num_sub_volumes, volume.shape[0] // num_sub_volumes, *volume.shape[1:])
    return slabs[permutation].reshape(volume.shape)


def num_masked(grid: Sequence[int], ratio: float) -> int:
    """floor(ratio L) of the L cubes of a grid."""
    return math.floor(ratio * math.prod(grid) + 1e-9)


def draw_mask(key: jax.Array, grid: Sequence[int], ratio: float) -> jax.Array:
    """Which cubes are masked, bool (grid); exactly ``num_masked`` of them."""
    count = math.prod(grid)
    ranks = jax.random.permutation(key, count)
    return (ranks < num_masked(grid, ratio)).reshape(tuple(grid))


def mask_cubes(volume: jax.Array, masked: jax.Array) -> jax.Array:
    """Sets masked cubes to 0; each side of the volume is a multiple of that of ``masked``."""
    for axis in range(3):
        masked = jnp.repeat(masked, volume.shape[axis] // masked.shape[axis], axis=axis)
    return jnp.where(masked[..., None], 0.0, volume)


def reconstruction_loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared difference over all voxels, masked or not; (B, D, H, W, C)."""
    return jnp.mean(jnp.square(output - target))


def permutation_loss(logits: Sequence[jax.Array], permutation: jax.Array) -> jax.Array:
    """Sum over the heads of the mean cross-entropy of the sub-volume at each position.

    Args:
      logits: (B, T, T) of each head: position, sub-volume.
      permutation: int (B, T), from ``draw_permutation``.
    """
    total = jnp.zeros(())
    for head in logits:
        log_p = jax.nn.log_softmax(head, axis=-1)
        total -= jnp.mean(jnp.take_along_axis(log_p, permutation[..., None], axis=-1))
    return total


def permutation_accuracy(logits: Sequence[jax.Array], permutation: jax.Array) -> jax.Array:
    """Share of positions with the right prediction, mean over the heads."""
    return jnp.mean(jnp.stack([jnp.argmax(head, axis=-1) == permutation for head in logits]))
