"""The losses by name: to add one is to write its function and to add it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax

from unimed_jax.losses import contrastive, segmentation


@dataclass(frozen=True)
class ContrastiveLoss:
    """A loss of the image and text embeddings of a batch.

    Attributes:
      function: (images, texts, logit scale[, logit bias]) -> float32 (); see contrastive.py.
      has_bias: whether it takes a logit bias, which the model must then have.
      has_labels: whether it takes ``labels`` and ``same_label``.
    """

    function: Callable[..., jax.Array]
    has_bias: bool = False
    has_labels: bool = False


CONTRASTIVE: Mapping[str, ContrastiveLoss] = {
    "softmax": ContrastiveLoss(contrastive.softmax_contrastive_loss, has_labels=True),
    "sigmoid": ContrastiveLoss(
        contrastive.sigmoid_contrastive_loss, has_bias=True, has_labels=True
    ),
}

SEGMENTATION_HEADS: Mapping[str, Callable[[int], segmentation.Head]] = {
    "exclusive": segmentation.Exclusive,
    "nested": segmentation.Nested,
}
"""name -> class built from the number of classes, the background excluded."""

DICE: Mapping[str, segmentation.Loss] = {
    "squared": segmentation.dice_loss,
    "foreground": segmentation.foreground_dice_loss,
}
