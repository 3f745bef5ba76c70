"""Other texts in place of the caption that was drawn: parts of long ones, and the labels in words.

A model that saw a label only in the sentences of its captions falls apart when it is asked in other
words. Both variants are made in the graph, and are functions of the seed of a draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

MODALITY_NAMES = {
    "xray": "X-ray",
    "ct": "CT",
    "mri": "MRI",
    "ultrasound": "ultrasound",
    "pathology": "histopathology",
    "fundus": "fundus photograph",
    "oct": "OCT",
    "mammography": "mammogram",
}
"""Modalities of records in words; others stand for themselves."""


def some_sentences(captions: tf.Tensor, share: float, seeds: tf.Tensor) -> tf.Tensor:
    """Cuts a share of the captions to some of their sentences that follow each other.

    The first sentence of a part is drawn uniformly, and then its last one. Sentences end at a full
    stop with a space behind it.

    Args:
      captions: string (n,).
      share: probability that a caption is cut.
      seeds: int64 (n, 2); n is static.

    Returns:
      string (n,).
    """
    import tensorflow as tf

    choice, begin, end = _uniform(seeds)
    sentences = tf.strings.split(captions, ". ")
    count = tf.cast(sentences.row_lengths(), tf.float32)
    first = tf.floor(begin * count)
    last = first + tf.floor(end * (count - first))
    position = tf.cast(tf.ragged.range(sentences.row_lengths()), tf.float32)
    inside = (position >= first[:, None]) & (position <= last[:, None])
    part = tf.strings.reduce_join(tf.ragged.boolean_mask(sentences, inside), 1, separator=". ")
    part += tf.where(last < count - 1, ".", "")
    return tf.where(choice < share, part, captions)


def labels_in_words(
    captions: tf.Tensor, samples: Mapping[str, tf.Tensor], share: float, seeds: tf.Tensor
) -> tf.Tensor:
    """Replaces a share of the captions by the labels of the records, the modality, or both.

    Args:
      captions: string (n,).
      samples: what ``records.parse`` returned. A record without labels keeps its caption.
      share: probability that a caption is replaced.
      seeds: int64 (n, 2); n is static.

    Returns:
      string (n,), such as "glioma", "MRI", "MRI, glioma" or "an image of glioma, MRI".
    """
    import tensorflow as tf

    choice, form, _ = _uniform(seeds)
    labels = tf.strings.reduce_join(samples["labels"], axis=1, separator=", ")
    modality = samples["modality"]
    for key, name in MODALITY_NAMES.items():
        modality = tf.where(modality == key, name, modality)
    forms = (labels, modality, modality + ", " + labels, "an image of " + labels + ", " + modality)
    index = tf.cast(form * len(forms), tf.int32)
    words = tf.gather(tf.stack(forms, axis=1), index, axis=1, batch_dims=1)
    replaced = (choice < share) & (samples["labels"].row_lengths() > 0)
    return tf.where(replaced, words, captions)


def _uniform(seeds: tf.Tensor) -> list[tf.Tensor]:
    """Three numbers in [0, 1) per seed, each float32 (n,)."""
    import tensorflow as tf

    return tf.unstack(
        tf.stack([tf.random.stateless_uniform((3,), seed) for seed in tf.unstack(seeds)]), axis=1
    )
