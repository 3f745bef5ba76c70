"""Augmentation of volumes (D, H, W, C) with labels (D, H, W): flips, turns, warps, blur."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unimed_jax.augmentation.geometry import draw_intensity, warp

_TURN, _WARP, _BLUR, _INTENSITY = range(4)


def augment(
    key: jax.Array, image: jax.Array, labels: jax.Array, settings: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Everything of ``config.augmentation``; what has the probability 0 is not computed.

    Args:
      key: of this visit.
      image: float32 (D, H, W, C), in 0..1.
      labels: integers (D, H, W).
      settings: ``flip`` (probability per axis), ``turn`` (of a quarter, half or three-quarter turn
        in the plane of height and width), ``warp`` {``probability``, ``rotation`` (degrees about
        each axis, uniform in +-), ``zoom`` (uniform in 1 +-)}, ``blur`` {``probability``,
        ``sigma`` (voxels, uniform up to)}, ``intensity`` {``probability`` and the ranges of
        `geometry.draw_intensity`}.
    """
    image, labels = draw_flips(jax.random.fold_in(key, _TURN), image, labels, settings["flip"])
    if settings["turn"] and labels.shape[1] == labels.shape[2]:
        own = jax.random.fold_in(key, _TURN + 100)
        image, labels = draw_turn(own, image, labels, settings["turn"])
    if settings["warp"]["probability"]:
        own = jax.random.fold_in(key, _WARP)
        image, labels = draw_warp(own, image, labels, settings["warp"])
    if settings["blur"]["probability"]:
        own = jax.random.fold_in(key, _BLUR)
        sigma = jax.random.uniform(own, maxval=settings["blur"]["sigma"])
        wanted = _happens(own, settings["blur"]["probability"])
        image = jnp.where(wanted, blurred(image, sigma), image)
    if settings["intensity"]["probability"]:
        own = jax.random.fold_in(key, _INTENSITY)
        wanted = _happens(own, settings["intensity"]["probability"])
        image = jnp.where(wanted, draw_intensity(own, image, settings["intensity"]), image)
    return image, labels


def _happens(key: jax.Array, probability: float) -> jax.Array:
    return jax.random.bernoulli(jax.random.fold_in(key, 1), probability)


def draw_flips(
    key: jax.Array, image: jax.Array, labels: jax.Array, probability: float
) -> tuple[jax.Array, jax.Array]:
    """Each axis is reversed with this probability."""
    flips = jax.random.bernoulli(key, probability, (3,))
    for axis in range(3):
        image = jnp.where(flips[axis], jnp.flip(image, axis), image)
        labels = jnp.where(flips[axis], jnp.flip(labels, axis), labels)
    return image, labels


def draw_turn(
    key: jax.Array, image: jax.Array, labels: jax.Array, probability: float
) -> tuple[jax.Array, jax.Array]:
    """One to three quarter turns from height to width, which are equally long."""
    turns = jax.random.randint(key, (), 1, 4) * _happens(key, probability)

    def by(count: int, x: jax.Array) -> jax.Array:
        return jnp.rot90(x, count, axes=(1, 2))

    image, labels = (
        jnp.select([turns == count for count in range(1, 4)], [by(c, x) for c in range(1, 4)], x)
        for x in (image, labels)
    )
    return image, labels


def rotation(angles: jax.Array) -> jax.Array:
    """Matrix (3, 3) of turns about depth, height and width (radians), in this order."""
    matrix = jnp.eye(3)
    for axis in range(3):
        i, j = (a for a in range(3) if a != axis)
        cos, sin = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        turn = jnp.eye(3).at[i, i].set(cos).at[i, j].set(-sin).at[j, i].set(sin).at[j, j].set(cos)
        matrix = jnp.matmul(turn, matrix, precision="highest")
    return matrix


def draw_warp(
    key: jax.Array, image: jax.Array, labels: jax.Array, ranges: Mapping[str, float]
) -> tuple[jax.Array, jax.Array]:
    """Turned about each axis and zoomed, about the centre; outside is 0. See `augment`."""
    keys = jax.random.split(key)
    limit = jnp.deg2rad(ranges["rotation"])
    angles = jax.random.uniform(keys[0], (3,), minval=-limit, maxval=limit)
    zoom = 1 + ranges["zoom"] * jax.random.uniform(keys[1], minval=-1.0, maxval=1.0)
    wanted = _happens(key, ranges["probability"])
    matrix = jnp.where(wanted, rotation(angles) / zoom, jnp.eye(3))
    grid = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in labels.shape), indexing="ij")
    )
    centre = (jnp.array(labels.shape, jnp.float32)[:, None, None, None] - 1) / 2
    moved = jnp.einsum("ij,jdhw->idhw", matrix, grid - centre, precision="highest") + centre
    return warp(image, labels, moved)


def blurred(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """A Gaussian along each of the three axes, its weights renormalised at the border."""
    for axis in range(3):
        offset = jnp.arange(image.shape[axis])
        squared = jnp.square(offset[:, None] - offset[None, :])
        weights = jax.nn.softmax(-squared / (2 * jnp.square(sigma) + 1e-6), axis=1)
        image = jnp.moveaxis(jnp.tensordot(weights, image, axes=(1, axis)), 0, axis)
    return image
