"""Texts in place of captions: how often, and what they say."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline import text_variants

DRAWS = 1200


def seeds(count=DRAWS):
    return np.stack([np.full(count, 7), np.arange(count)], axis=1)


def shares(texts):
    return {text.decode(): n / len(texts) for text, n in collections.Counter(texts).items()}


def test_parts_are_sentences_that_follow_each_other():
    caption = "Lungs are clear. The heart is large. No effusion."
    drawn = text_variants.some_sentences(tf.repeat(caption, DRAWS), 0.5, seeds()).numpy()
    found = shares(drawn)
    expected = {
        "Lungs are clear.": 1 / 9,
        "Lungs are clear. The heart is large.": 1 / 9,
        "The heart is large.": 1 / 6,
        "The heart is large. No effusion.": 1 / 6,
        "No effusion.": 1 / 3,
    }
    assert found.pop(caption) == pytest.approx(0.5 + 0.5 / 9, abs=0.04)
    assert found.keys() == expected.keys()
    for text, share in expected.items():
        assert found[text] == pytest.approx(share / 2, abs=0.03)


@pytest.mark.parametrize("caption", ["One sentence only", "Size 1.5 cm.", ""])
def test_a_single_sentence_stays(caption):
    drawn = text_variants.some_sentences(tf.repeat(caption, 50), 1.0, seeds(50)).numpy()
    assert set(drawn) == {caption.encode()}


def samples(labels, modality):
    return {
        "labels": tf.ragged.constant([labels] * DRAWS, dtype=tf.string, row_splits_dtype=tf.int64),
        "modality": tf.repeat(modality, DRAWS),
    }


def test_labels_stand_in_for_captions_in_four_forms():
    rows = samples(["edema", "effusion"], "xray")
    drawn = text_variants.labels_in_words(tf.repeat("text", DRAWS), rows, 0.4, seeds()).numpy()
    found = shares(drawn)
    assert found.pop("text") == pytest.approx(0.6, abs=0.05)
    assert found.keys() == {
        "edema, effusion",
        "X-ray",
        "X-ray, edema, effusion",
        "an image of edema, effusion, X-ray",
    }
    assert all(share == pytest.approx(0.1, abs=0.03) for share in found.values())
    # a draw does not depend on those beside it
    few = text_variants.labels_in_words(
        tf.repeat("text", 3), {k: v[:3] for k, v in rows.items()}, 0.4, seeds()[5:8]
    )
    assert list(few.numpy()) == list(drawn[5:8])


def test_records_without_labels_keep_their_captions_and_unknown_modalities_their_names():
    drawn = text_variants.labels_in_words(
        tf.repeat("text", DRAWS), samples([], "xray"), 1.0, seeds()
    )
    assert set(drawn.numpy()) == {b"text"}
    drawn = text_variants.labels_in_words(
        tf.repeat("text", DRAWS), samples(["ulcer"], "thermography"), 1.0, seeds()
    )
    assert b"thermography, ulcer" in drawn.numpy()
