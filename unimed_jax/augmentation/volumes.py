"""Augmentation of volumes (D, H, W, C) with labels (D, H, W): flips, rotations, warps, blur."""

import enum
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unimed_jax.augmentation.geometry import draw_intensity, warp


class RngStream(enum.IntEnum):
    """Constants folded into the key of one draw, one for each kind of augmentation.

    Changing a value changes the numbers of every run.
    """

    FLIP = 0
    WARP = 1
    BLUR = 2
    INTENSITY = 3
    ROT90 = 100


def augment(
    key: jax.Array, image: jax.Array, labels: jax.Array, settings: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Applies everything in ``config.augmentation``; what has probability 0 is not computed.

    Args:
      key: of this draw of the volume.
      image: float32 (D, H, W, C), in 0..1.
      labels: integers (D, H, W).
      settings: ``flip`` (probability per axis); ``rot90`` (probability of a rotation by 90, 180 or
        270 degrees in the plane of height and width); ``warp`` {``probability``, ``rotation``
        (degrees about each axis, uniform in +-), ``zoom`` (uniform in 1 +-)}; ``blur``
        {``probability``, ``sigma`` (voxels, uniform up to)}; ``intensity`` {``probability`` and the
        ranges of ``geometry.draw_intensity``}.
    """
    flip_key = jax.random.fold_in(key, RngStream.FLIP)
    image, labels = draw_flips(flip_key, image, labels, settings["flip"])
    if settings["rot90"] and labels.shape[1] == labels.shape[2]:
        rot90_key = jax.random.fold_in(key, RngStream.ROT90)
        image, labels = draw_rot90(rot90_key, image, labels, settings["rot90"])
    if settings["warp"]["probability"]:
        warp_key = jax.random.fold_in(key, RngStream.WARP)
        image, labels = draw_warp(warp_key, image, labels, settings["warp"])
    if settings["blur"]["probability"]:
        blur_key = jax.random.fold_in(key, RngStream.BLUR)
        sigma = jax.random.uniform(blur_key, maxval=settings["blur"]["sigma"])
        happens = _happens(blur_key, settings["blur"]["probability"])
        image = jnp.where(happens, blurred(image, sigma), image)
    if settings["intensity"]["probability"]:
        intensity_key = jax.random.fold_in(key, RngStream.INTENSITY)
        happens = _happens(intensity_key, settings["intensity"]["probability"])
        changed = draw_intensity(intensity_key, image, settings["intensity"])
        image = jnp.where(happens, changed, image)
    return image, labels


def _happens(key: jax.Array, probability: float) -> jax.Array:
    return jax.random.bernoulli(jax.random.fold_in(key, 1), probability)


def draw_flips(
    key: jax.Array, image: jax.Array, labels: jax.Array, probability: float
) -> tuple[jax.Array, jax.Array]:
    """Reverses each axis with this probability."""
    flips = jax.random.bernoulli(key, probability, (3,))
    for axis in range(3):
        image = jnp.where(flips[axis], jnp.flip(image, axis), image)
        labels = jnp.where(flips[axis], jnp.flip(labels, axis), labels)
    return image, labels


def draw_rot90(
    key: jax.Array, image: jax.Array, labels: jax.Array, probability: float
) -> tuple[jax.Array, jax.Array]:
    """One to three rotations by 90 degrees from height to width, which are equally long."""
    count = jax.random.randint(key, (), 1, 4) * _happens(key, probability)

    image, labels = (
        jnp.select(
            [count == k for k in range(1, 4)],
            [jnp.rot90(x, k, axes=(1, 2)) for k in range(1, 4)],
            x,
        )
        for x in (image, labels)
    )
    return image, labels


def rotation(angles: jax.Array) -> jax.Array:
    """Matrix (3, 3) of rotations about depth, height and width (radians), in this order."""
    matrix = jnp.eye(3)
    for axis in range(3):
        i, j = (a for a in range(3) if a != axis)
        cos, sin = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        plane = jnp.eye(3).at[i, i].set(cos).at[i, j].set(-sin).at[j, i].set(sin).at[j, j].set(cos)
        matrix = jnp.matmul(plane, matrix, precision="highest")
    return matrix


def draw_warp(
    key: jax.Array, image: jax.Array, labels: jax.Array, ranges: Mapping[str, float]
) -> tuple[jax.Array, jax.Array]:
    """Random rotation about each axis and zoom, about the center; 0 outside. See ``augment``."""
    keys = jax.random.split(key)
    limit = jnp.deg2rad(ranges["rotation"])
    angles = jax.random.uniform(keys[0], (3,), minval=-limit, maxval=limit)
    zoom = 1 + ranges["zoom"] * jax.random.uniform(keys[1], minval=-1.0, maxval=1.0)
    happens = _happens(key, ranges["probability"])
    matrix = jnp.where(happens, rotation(angles) / zoom, jnp.eye(3))
    grid = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in labels.shape), indexing="ij")
    )
    center = (jnp.array(labels.shape, jnp.float32)[:, None, None, None] - 1) / 2
    moved = jnp.einsum("ij,jdhw->idhw", matrix, grid - center, precision="highest") + center
    return warp(image, labels, moved)


def blurred(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """A Gaussian blur along each of the three axes, with weights renormalized at the border."""
    for axis in range(3):
        offset = jnp.arange(image.shape[axis])
        squared = jnp.square(offset[:, None] - offset[None, :])
        weights = jax.nn.softmax(-squared / (2 * jnp.square(sigma) + 1e-6), axis=1)
        image = jnp.moveaxis(jnp.tensordot(weights, image, axes=(1, axis)), 0, axis)
    return image
