"""Saliency-balancing fusion: where the loss looks stays global, the rest gets the local form.

SLAug (arXiv 2211.05868). Every stage of the map is linear along each axis, so the whole is two
small matrices.
"""

import jax
import jax.numpy as jnp
import numpy as np


def spline(side: int) -> np.ndarray:
    """The kernel along one axis, float64 (5 side + 2,): a box smoothed twice, a quadratic B-spline.

    The published form convolves a block of ones with itself twice, padded by ``side`` and then by
    ``2 side``, and divides by the area.
    """
    kernel = box = np.ones(side)
    for padding in (side, 2 * side):
        kernel = np.correlate(np.pad(kernel, padding), box) / side
    return kernel


def upsampling(grid: int, size: int) -> np.ndarray:
    """Matrix (size, grid) of one axis: grid -> transposed convolution with the spline, stride
    floor(size / grid) -> linear interpolation with aligned corners to ``size``."""
    side = size // grid
    kernel, padding = spline(side), (5 * side + 1) // 2
    spread = np.zeros(((grid - 1) * side + len(kernel), grid))
    for cell in range(grid):
        spread[cell * side : cell * side + len(kernel), cell] = kernel
    spread = spread[padding : len(spread) - padding]
    position = np.linspace(0, len(spread) - 1, size)
    below = np.minimum(position.astype(int), len(spread) - 2)
    part = (position - below)[:, None]
    return spread[below] * (1 - part) + spread[below + 1] * part


def pooling(size: int, grid: int) -> np.ndarray:
    """Matrix (grid, size) of adaptive average pooling: cell i averages the elements from
    floor(i size / grid) to ceil((i + 1) size / grid)."""
    matrix = np.zeros((grid, size))
    for cell in range(grid):
        begin, end = cell * size // grid, -(-(cell + 1) * size // grid)
        matrix[cell, begin:end] = 1 / (end - begin)
    return matrix


def saliency_map(gradient: jax.Array, grid: int) -> jax.Array:
    """Smooth map of where the loss is sensitive.

    Args:
      gradient: of the loss at the image, float32 (B, H, W, C); its magnitude is
        sqrt(mean over channels of the square).
      grid: cells along a side, at most H and W.

    Returns:
      float32 (B, H, W), per image from 0 to 1.
    """
    height, width = gradient.shape[1:3]
    down_up = [jnp.float32(upsampling(grid, n) @ pooling(n, grid)) for n in (height, width)]
    # scaled before squaring: gradients of a mean over many pixels are tiny
    scale = jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True) + 1e-30
    magnitude = jnp.sqrt(jnp.mean((gradient / scale) ** 2, axis=-1))
    smooth = jnp.einsum("ih,bhw,jw->bij", down_up[0], magnitude, down_up[1], precision="highest")
    low = jnp.min(smooth, axis=(1, 2), keepdims=True)
    high = jnp.max(smooth, axis=(1, 2), keepdims=True)
    return (smooth - low + 1e-20) / (high - low + 1e-20)


def fuse(kept: jax.Array, other: jax.Array, saliency: jax.Array) -> jax.Array:
    """S kept + (1 - S) other; images (B, H, W, C), S (B, H, W)."""
    s = saliency[..., None]
    return s * kept + (1 - s) * other
