"""Segmentation losses as pure functions: overlap, cross-entropy, and alignment with text.

They take any number of spatial dims: images are (B, H, W), volumes (B, D, H, W). K is the number of
classes, the background excluded; label values are 0 for the background and 1 to K for the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from unimed_jax.losses.contrastive import normalize

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # (logits, labels) -> ()

_DICE_EPSILON = 1e-6
_SMOOTH = 1e-5  # of nnU-Net's Dice


def dice_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Soft Dice with squared denominators, the background counted as a class.

    mean over b, k of 1 - 2 sum(p g) / (sum(p^2) + sum(g^2) + 1e-6), p = softmax(logits), g one-hot
    (V-Net, arXiv 1606.04797). A class that an image lacks contributes about 1.

    Args:
      logits: float (B, ..., 1 + K).
      labels: integers (B, ...).

    Returns:
      float32 ().
    """
    p = jax.nn.softmax(logits.astype(jnp.float32))
    g = jax.nn.one_hot(labels, logits.shape[-1])
    space = tuple(range(1, labels.ndim))
    overlap = jnp.sum(p * g, space)
    total = jnp.sum(p * p, space) + jnp.sum(g * g, space)
    return jnp.mean(1 - 2 * overlap / (total + _DICE_EPSILON))


def foreground_dice_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 - soft Dice of the classes, the background excluded (nnU-Net, arXiv 1809.10486).

    mean over b, k of 1 - (2 TP + 1e-5) / (2 TP + FP + FN + 1e-5 + 1e-8), on softmax(logits). A
    class that an image lacks contributes nearly 1 unless none of it is predicted. Shapes as in
    ``dice_loss``.
    """
    p = jax.nn.softmax(logits.astype(jnp.float32))[..., 1:]
    g = jax.nn.one_hot(labels, logits.shape[-1])[..., 1:]
    space = tuple(range(1, labels.ndim))
    overlap = 2 * jnp.sum(p * g, space)
    total = jnp.sum(p, space) + jnp.sum(g, space)
    return jnp.mean(1 - (overlap + _SMOOTH) / (total + _SMOOTH + 1e-8))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-mean log softmax(logits)[label] over all pixels; shapes as in ``dice_loss``."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None].astype(jnp.int32), axis=-1))


class Head(Protocol):
    """The meaning of the output channels of a network.

    Masks are bool (..., K), one per class in the order of the label values; they may overlap.
    """

    num_outputs: int

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The supervised loss, float32 ()."""

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """(..., outputs) -> float32 of the same shape."""

    def masks(self, probabilities: np.ndarray) -> np.ndarray:
        """The predicted masks, on the host."""

    def masks_of_labels(self, labels: np.ndarray) -> np.ndarray:
        """The target masks of a label map."""


class Exclusive:
    """One class per pixel: softmax, Dice and cross-entropy with equal weights."""

    def __init__(self, num_classes: int, dice: Loss = dice_loss) -> None:
        self.num_classes, self.num_outputs, self._dice = num_classes, num_classes + 1, dice

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return self._dice(logits, labels) + cross_entropy(logits, labels)

    def probabilities(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits.astype(jnp.float32))

    def masks(self, probabilities: np.ndarray) -> np.ndarray:
        return self.masks_of_labels(np.argmax(probabilities, axis=-1))

    def masks_of_labels(self, labels: np.ndarray) -> np.ndarray:
        return labels[..., None] == np.arange(1, self.num_classes + 1)


class Nested:
    """Class k lies within class k - 1, as a cup within a disc.

    Every class has a sigmoid and a binary cross-entropy with the target ``label >= k``; the loss
    sums over the classes.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = self.num_outputs = num_classes

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32)
        target = labels[..., None] >= jnp.arange(1, self.num_classes + 1)
        per_pixel = jnp.where(target, jax.nn.softplus(-logits), jax.nn.softplus(logits))
        return jnp.sum(jnp.mean(per_pixel, tuple(range(labels.ndim))))

    def probabilities(self, logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits.astype(jnp.float32))

    def masks(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities > 0.5

    def masks_of_labels(self, labels: np.ndarray) -> np.ndarray:
        return labels[..., None] >= np.arange(1, self.num_classes + 1)


def classes_in_patches(labels: jax.Array, grid: Sequence[int], num_classes: int) -> jax.Array:
    """Which classes occur in which patch; a single pixel counts.

    Args:
      labels: integers (B, *space); each dim is a multiple of the number of patches along it.
      grid: number of patches along each spatial dim.

    Returns:
      bool (B, P, K), patches in row-major order; the class of label value k is at k - 1.
    """
    cuts: list[int] = []
    for size, patches in zip(labels.shape[1:], grid, strict=True):
        cuts += [patches, size // patches]
    inside = tuple(range(2, 2 * len(grid) + 1, 2))
    present = labels[..., None] == jnp.arange(1, num_classes + 1)
    present = present.reshape(labels.shape[0], *cuts, num_classes).any(axis=inside)
    return present.reshape(labels.shape[0], math.prod(grid), num_classes)


def text_alignment_loss(tokens: jax.Array, text: jax.Array, present: jax.Array) -> jax.Array:
    """Pulls the token of a patch to the texts of the classes in it and pushes it from the others.

    With c_k = cos(z, t_k):  l = mean over present k of max(0, 1 - c_k)
                               + mean over absent k of max(0, 1 + c_k),
    a mean over no class is 0; the loss is the mean of l over images and patches (LG-SDG, arXiv
    2404.01272). The published code sums over patches and divides by a constant:
    docs/guides/segmentation.md converts the weight.

    Args:
      tokens: z, float (B, P, D).
      text: t, float (K, D), constants; only their directions matter.
      present: bool (B, P, K).

    Returns:
      float32 ().
    """
    cosine = jnp.einsum("bpd,kd->bpk", normalize(tokens), normalize(text), precision="highest")
    pull = _mean_where(jax.nn.relu(1 - cosine), present)
    push = _mean_where(jax.nn.relu(1 + cosine), ~present)
    return jnp.mean(pull + push)


def _mean_where(values: jax.Array, where: jax.Array) -> jax.Array:
    """Mean along the last axis over the elements that are True; 0 if there are none."""
    count = jnp.sum(where, axis=-1)
    return jnp.sum(jnp.where(where, values, 0), axis=-1) / jnp.maximum(count, 1)
