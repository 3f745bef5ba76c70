"""Joint warps of images and labels, and changes of intensity (SLAug, arXiv 2211.05868)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

_BLUR_WIDTH, _BLUR_SIGMA = 21, 5.0


def affine(
    rotation: jax.Array, shear: jax.Array, zoom: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Affine map from output to input positions.

    Positions are (row, column) relative to the center, in pixels. The content is sheared, rotated,
    scaled and shifted, in this order.

    Args:
      rotation: angle in radians.
      shear: angle in radians; the content is sheared by its tangent.
      zoom: scale factor.
      shift: shift in pixels, (2,).

    Returns:
      Matrix (2, 2) and offset (2,).
    """
    cos, sin = jnp.cos(rotation), jnp.sin(rotation)
    unrotated = jnp.array([[cos, sin], [-sin, cos]])
    unsheared = jnp.array([[1.0, 0.0], [-jnp.tan(shear), 1.0]])
    matrix = unsheared @ unrotated / zoom
    return matrix, -matrix @ shift


def displacement(noise: jax.Array, pixels: float) -> jax.Array:
    """Elastic displacement field: noise blurred by a Gaussian of 21 pixels with sigma 5.

    Args:
      noise: float32 (2, H, W); 0 outside the image.
      pixels: factor of the blurred noise, in pixels.

    Returns:
      float32 (2, H, W), in pixels.
    """
    rows, columns = (jnp.float32(_blur(n)) for n in noise.shape[1:])
    return pixels * jnp.einsum("ih,chw,jw->cij", rows, noise, columns, precision="highest")


def _blur(size: int) -> np.ndarray:
    """Gaussian blur of one axis as a matrix (size, size)."""
    offset = np.arange(size)[:, None] - np.arange(size)[None, :]
    reach = _BLUR_WIDTH // 2
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * _BLUR_SIGMA**2))
    weights = np.exp(-(offset**2) / (2 * _BLUR_SIGMA**2)) / kernel.sum()
    return np.where(np.abs(offset) <= reach, weights, 0)


def warp(
    image: jax.Array, labels: jax.Array, coordinates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Samples an image and its labels at given positions; 0 outside.

    Args:
      image: float32 (H, W, C) or (D, H, W, C), interpolated linearly.
      labels: (H, W) or (D, H, W), nearest neighbor.
      coordinates: positions in the input, (2, H, W) or (3, D, H, W).

    Returns:
      The warped image and labels.
    """
    image = jax.vmap(
        lambda plane: map_coordinates(plane, list(coordinates), order=1), in_axes=-1, out_axes=-1
    )(image)
    return image, map_coordinates(labels, list(coordinates), order=0)


def draw_warp(
    key: jax.Array, image: jax.Array, labels: jax.Array, ranges: Mapping[str, float]
) -> tuple[jax.Array, jax.Array]:
    """A random flip, affine and elastic warp.

    Args:
      key: random key of this draw.
      image: float32 (H, W, C).
      labels: (H, W).
      ranges: ``rotation`` and ``shear`` (degrees, uniform in +-), ``shift`` (share of a side, +-),
        ``zoom`` (factor, uniform in 1 +-), ``elastic`` (pixels), ``flip`` (probability per axis).

    Returns:
      The warped image and labels.
    """
    keys = jax.random.split(key, 6)
    size = jnp.array(labels.shape, jnp.float32)

    def between(key: jax.Array, limit: float, shape: tuple[int, ...] = ()) -> jax.Array:
        return limit * jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    matrix, offset = affine(
        jnp.deg2rad(between(keys[0], ranges["rotation"])),
        jnp.deg2rad(between(keys[1], ranges["shear"])),
        1 + between(keys[2], ranges["zoom"]),
        between(keys[3], ranges["shift"], (2,)) * size,
    )
    flips = jnp.where(jax.random.bernoulli(keys[4], ranges["flip"], (2,)), -1.0, 1.0)
    center = (size - 1) / 2
    grid = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in labels.shape), indexing="ij")
    )
    from_center = (grid - center[:, None, None]) * flips[:, None, None]
    coordinates = jnp.einsum("ij,jhw->ihw", matrix, from_center) + (offset + center)[:, None, None]
    if ranges["elastic"]:
        noise = jax.random.uniform(keys[5], grid.shape, minval=-1.0, maxval=1.0)
        coordinates += displacement(noise, ranges["elastic"])
    return warp(image, labels, coordinates)


def draw_intensity(key: jax.Array, image: jax.Array, ranges: Mapping[str, float]) -> jax.Array:
    """Random contrast, brightness, gamma and noise; the result may leave 0..1.

    x <- (x - mean) c + mean + b with c in 1 +- contrast and b in +- brightness;
    x <- R ((x - min) / R)^g + min with R the range of x and g in 1 +- gamma;
    x <- x + noise N(0, 1).

    Args:
      key: random key of this draw.
      image: float32 in 0..1.
      ranges: ``contrast``, ``brightness``, ``gamma`` and ``noise``.
    """
    keys = jax.random.split(key, 4)

    def between(key: jax.Array, limit: float) -> jax.Array:
        return jax.random.uniform(key, minval=-limit, maxval=limit)

    mean = jnp.mean(image)
    image = (image - mean) * (1 + between(keys[0], ranges["contrast"])) + mean
    image += between(keys[1], ranges["brightness"])
    low = jnp.min(image)
    span = jnp.max(image) - low + 1e-5
    gamma = 1 + between(keys[2], ranges["gamma"])
    image = span * ((image - low + 1e-5) / span) ** gamma + low
    return image + ranges["noise"] * jax.random.normal(keys[3], image.shape)
