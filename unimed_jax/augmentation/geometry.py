"""Warps of image and labels together, and changes of intensity, with SLAug's ranges by default."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

_BLUR_WIDTH, _BLUR_SIGMA = 21, 5.0


def affine(
    rotation: jax.Array, shear: jax.Array, zoom: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Matrix (2, 2) and offset (2,) that take an output position to the input's.

    Positions are (row, column) from the centre in pixels. Content is sheared by tan(shear),
    turned by ``rotation`` (radians), enlarged by ``zoom`` and moved by ``shift`` pixels.
    """
    cos, sin = jnp.cos(rotation), jnp.sin(rotation)
    turned_back = jnp.array([[cos, sin], [-sin, cos]])
    unsheared = jnp.array([[1.0, 0.0], [-jnp.tan(shear), 1.0]])
    matrix = unsheared @ turned_back / zoom
    return matrix, -matrix @ shift


def displacement(noise: jax.Array, pixels: float) -> jax.Array:
    """Elastic displacement (2, H, W): noise blurred by a Gaussian (21 wide, sigma 5), times pixels.

    Beyond the border the noise counts as 0.
    """
    rows, columns = (jnp.float32(_blur(n)) for n in noise.shape[1:])
    return pixels * jnp.einsum("ih,chw,jw->cij", rows, noise, columns, precision="highest")


def _blur(size: int) -> np.ndarray:
    """The blur of one axis as a matrix (size, size)."""
    offset = np.arange(size)[:, None] - np.arange(size)[None, :]
    reach = _BLUR_WIDTH // 2
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * _BLUR_SIGMA**2))
    weights = np.exp(-(offset**2) / (2 * _BLUR_SIGMA**2)) / kernel.sum()
    return np.where(np.abs(offset) <= reach, weights, 0)


def warp(
    image: jax.Array, labels: jax.Array, coordinates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The image (H, W, C) and labels (H, W) at input positions ``coordinates`` (2, H, W); of a
    volume (D, H, W, C) and (D, H, W) at ``coordinates`` (3, D, H, W).

    Linear interpolation for the image, the nearest neighbour for labels; outside both are 0.
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
      key: of this visit.
      image, labels: (H, W, C), (H, W).
      ranges: ``rotation`` and ``shear`` (degrees, uniform in +-), ``shift`` (share of a side,
        +-), ``zoom`` (uniform in 1 +-), ``elastic`` (pixels), ``flip`` (probability per axis).
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
    centre = (size - 1) / 2
    grid = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in labels.shape), indexing="ij")
    )
    from_centre = (grid - centre[:, None, None]) * flips[:, None, None]
    coordinates = jnp.einsum("ij,jhw->ihw", matrix, from_centre) + (offset + centre)[:, None, None]
    if ranges["elastic"]:
        noise = jax.random.uniform(keys[5], grid.shape, minval=-1.0, maxval=1.0)
        coordinates += displacement(noise, ranges["elastic"])
    return warp(image, labels, coordinates)


def draw_intensity(key: jax.Array, image: jax.Array, ranges: Mapping[str, float]) -> jax.Array:
    """Contrast, brightness, gamma and noise, on an image in 0..1; the result may leave it.

    x <- (x - mean) c + mean + b, c in 1 +- contrast, b in +- brightness; x <- R ((x - min) /
    R)^g + min, R the range and g in 1 +- gamma; x <- x + noise N(0, 1).
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
