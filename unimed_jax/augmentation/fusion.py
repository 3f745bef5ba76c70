"""Saliency-balancing fusion: the global view where the loss is sensitive, else the local view.

SLAug (arXiv 2211.05868). Every stage of the saliency map is linear along each axis, so all stages
together are one small matrix per axis.
"""

import jax
import jax.numpy as jnp
import numpy as np


def spline(side: int) -> np.ndarray:
    """Quadratic B-spline kernel along one axis, float64 (5 side + 2,).

    As in the published code, a block of ones is convolved with itself twice, padded by ``side`` and
    then by ``2 side``, and divided by the area.
    """
    kernel = box = np.ones(side)
    for padding in (side, 2 * side):
        kernel = np.correlate(np.pad(kernel, padding), box) / side
    return kernel


def upsampling(grid: int, size: int) -> np.ndarray:
    """Upsampling of one axis as a matrix (size, grid).

    A transposed convolution with the spline, of stride floor(size / grid), is followed by linear
    interpolation to ``size`` with aligned corners.
    """
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
    """Adaptive average pooling of one axis as a matrix (grid, size).

    Cell i averages the elements from floor(i size / grid) to ceil((i + 1) size / grid).
    """
    matrix = np.zeros((grid, size))
    for cell in range(grid):
        begin, end = cell * size // grid, -(-(cell + 1) * size // grid)
        matrix[cell, begin:end] = 1 / (end - begin)
    return matrix


def saliency_map(gradient: jax.Array, grid: int) -> jax.Array:
    """Smooth map of the sensitivity of the loss.

    Args:
      gradient: gradient of the loss with respect to the image, float32 (B, H, W, C); its
        magnitude is the root mean square over the channels.
      grid: cells per side, at most H and W.

    Returns:
      float32 (B, H, W), scaled to 0..1 for each image.
    """
    height, width = gradient.shape[1:3]
    down_up = [jnp.float32(upsampling(grid, n) @ pooling(n, grid)) for n in (height, width)]
    # scaled before squaring, because the gradient of a mean over many pixels is tiny
    scale = jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True) + 1e-30
    magnitude = jnp.sqrt(jnp.mean((gradient / scale) ** 2, axis=-1))
    smooth = jnp.einsum("ih,bhw,jw->bij", down_up[0], magnitude, down_up[1], precision="highest")
    low = jnp.min(smooth, axis=(1, 2), keepdims=True)
    high = jnp.max(smooth, axis=(1, 2), keepdims=True)
    return (smooth - low + 1e-20) / (high - low + 1e-20)


def fuse(kept: jax.Array, other: jax.Array, saliency: jax.Array) -> jax.Array:
    """S kept + (1 - S) other, for images (B, H, W, C) and S = saliency (B, H, W)."""
    s = saliency[..., None]
    return s * kept + (1 - s) * other
