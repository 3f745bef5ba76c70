"""Sampling of captions: each source has a rule by which a caption of a sample is drawn.

=============  ===============================================================================
``uniform``    any caption, all equally likely (label-derived templates; RadImageNet, CheXpert)
``first``      always the first (the original text where there are templates too)
``original:P`` with probability P one of the original texts of the image, if it has any, else one
               of the generated texts (``original:1``: the rule of MIMIC-CXR and Open-I)
=============  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from input_pipeline.io.errors import ConfigError

if TYPE_CHECKING:
    import tensorflow as tf


def original_probability(rule: str) -> float | None:
    """P of ``original:P``; None for the other rules. Raises ConfigError for an invalid rule."""
    if rule in ("uniform", "first"):
        return None
    name, _, value = rule.partition(":")
    try:
        probability = float(value)
    except ValueError:
        probability = -1.0
    if name != "original" or not 0.0 <= probability <= 1.0:
        raise ConfigError(
            f"caption rule {rule!r} is unknown; valid: 'uniform', 'first', 'original:P' with P in "
            "[0, 1]"
        )
    return probability


def draw_captions(
    captions: tf.RaggedTensor,
    num_original: tf.Tensor,
    rules: Sequence[str],
    sources: tf.Tensor,
    seeds: tf.Tensor,
) -> tf.Tensor:
    """Draws a caption of every sample.

    One formula for all rules: a graph with a branch for each of many sources is slow, because the
    branches that are not taken are walked through as well.

    Args:
      captions: ragged string (n, None), at least one of each sample; the first ``num_original`` are
        original texts.
      num_original: int64 (n,).
      rules: rules of the sources; see the module docstring.
      sources: int64 (n,), the sources of the samples, indices of ``rules``.
      seeds: int64 (n, 2), the seeds of these draws of the samples; n is static.

    Returns:
      The captions, string (n,).
    """
    import tensorflow as tf

    def of_source(values: Sequence[float]) -> tf.Tensor:
        return tf.gather(tf.constant(values, tf.float32), sources)

    probabilities = [original_probability(rule) for rule in rules]
    splits = of_source([float(p is not None) for p in probabilities]) > 0
    probability = of_source([p or 0.0 for p in probabilities])
    takes_first = of_source([float(rule == "first") for rule in rules]) > 0
    num_captions = captions.row_lengths()
    uniform = tf.stack([tf.random.stateless_uniform((2,), seed) for seed in tf.unstack(seeds)])
    choice, position = uniform[:, 0], uniform[:, 1]
    has_both = splits & (num_original > 0) & (num_original < num_captions)
    take_original = choice < probability
    zero = tf.zeros_like(num_captions)
    low = tf.where(has_both & ~take_original, num_original, zero)
    high = tf.where(has_both & take_original, num_original, num_captions)
    index = low + tf.cast(position * tf.cast(high - low, tf.float32), tf.int64)
    index = tf.where(takes_first, zero, tf.minimum(index, high - 1))
    return tf.gather(captions.flat_values, captions.row_starts() + index)
