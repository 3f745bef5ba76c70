"""Which caption is drawn: the rule's probabilities, and the same caption for the same seed."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline import caption_sampling
from input_pipeline.io.errors import ConfigError


def _draw_many(texts, num_original, rule, count=2000):
    rules = ("uniform", "original:0.5", "first", "original:0.0", "original:1.0", rule)

    # one sample with these texts, and one with others beside it
    captions = tf.ragged.constant([["x"], texts, ["y", "z"]], row_splits_dtype=tf.int64)

    @tf.function
    def draw(visit):
        others = tf.zeros((), tf.int64)
        return caption_sampling.draw_captions(
            captions,
            tf.stack([others, tf.constant(num_original, tf.int64), others]),
            rules,
            tf.stack([others, tf.constant(rules.index(rule), tf.int64), others]),
            tf.stack([[7, visit], [7, visit], [8, visit]]),
        )

    visits = tf.data.Dataset.range(count).map(draw).as_numpy_iterator()
    drawn = [text for _, text, _ in visits]
    return {text.decode(): n / count for text, n in collections.Counter(drawn).items()}


def test_uniform_draws_all_captions_alike():
    shares = _draw_many(["a", "b", "c", "d"], 1, "uniform")
    assert set(shares) == {"a", "b", "c", "d"}
    assert max(abs(share - 0.25) for share in shares.values()) < 0.04


def test_first_is_always_the_first():
    assert _draw_many(["a", "b", "c"], 1, "first", 50) == {"a": 1.0}


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_original_has_its_probability_and_the_rest_is_shared(probability, expected):
    shares = _draw_many(["text", "g1", "g2", "g3"], 1, f"original:{probability}")
    assert abs(shares.get("text", 0.0) - expected) < 0.04
    if probability < 1:
        generated = [shares[name] for name in ("g1", "g2", "g3")]
        assert np.ptp(generated) < 0.06


def test_original_rule_uses_what_there_is():
    assert set(_draw_many(["g1", "g2"], 0, "original:1", 100)) == {"g1", "g2"}
    assert set(_draw_many(["t1", "t2"], 2, "original:0", 100)) == {"t1", "t2"}


def test_the_same_seed_draws_the_same_caption():
    assert _draw_many(["a", "b", "c"], 0, "uniform") == _draw_many(["a", "b", "c"], 0, "uniform")


@pytest.mark.parametrize("rule", ["", "Uniform", "original", "original:x", "original:1.5", "last"])
def test_an_unknown_rule_names_the_valid_ones(rule):
    with pytest.raises(ConfigError, match=r"uniform.*first.*original:P"):
        caption_sampling.original_probability(rule)
