import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sk

from unimed_jax.evals import statistics


def sample(seed, num_samples, num_classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_samples).astype(np.int32)
    labels[:num_classes] = np.arange(num_classes)
    logits = rng.normal(size=(num_samples, num_classes))
    if num_classes == 2:
        logits = np.round(2 * logits)  # with ties, which are exact
    return labels, logits.astype(np.float32), rng.integers(1, 4, num_samples)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 60), st.sampled_from([2, 3, 7]))
def test_scores_equal_scikit_learns_with_sample_weights(seed, num_samples, num_classes):
    labels, logits, weights = sample(seed, num_samples, num_classes)
    found = {k: v[0] for k, v in statistics.weighted_scores(labels, logits, weights[None]).items()}
    predictions = logits.argmax(1)
    average = "binary" if num_classes == 2 else "macro"
    if num_classes == 2:
        auc = sk.roc_auc_score(labels, logits[:, 1] - logits[:, 0], sample_weight=weights)
    else:
        p = softmax(logits.astype(np.float64), axis=1)
        areas = [
            sk.roc_auc_score(labels == c, p[:, c], sample_weight=weights)
            for c in range(num_classes)
        ]
        auc = np.mean(areas)
    expected = {
        "accuracy": sk.accuracy_score(labels, predictions, sample_weight=weights),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions, sample_weight=weights),
        "f1": sk.f1_score(labels, predictions, average=average, sample_weight=weights),
        "auc": auc,
    }
    assert found == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 60))
def test_average_precision_equals_scikit_learns(seed, num_samples):
    """With ties, with weights of zero, and without a positive."""
    labels, logits, _ = sample(seed, num_samples, 2)
    weights = np.random.default_rng(seed).integers(0, 3, num_samples)
    (found,) = statistics.weighted_scores(labels, logits, weights[None], ["auprc"])["auprc"]
    if not weights[labels == 1].any():
        assert np.isnan(found)
        return
    score = logits[:, 1] - logits[:, 0]
    expected = sk.average_precision_score(labels, score, sample_weight=weights)
    assert found == pytest.approx(expected, abs=1e-12)


def test_an_interval_is_that_of_a_plain_bootstrap():
    labels, logits, _ = sample(3, 400, 3)
    groups = [str(i) for i in range(400)]
    found = statistics.intervals(labels, logits, groups)
    assert found == statistics.intervals(labels, logits, groups)  # seeded
    for name, interval in found.items():
        assert statistics.intervals(labels, logits, groups, [name]) == {name: interval}
    rng = np.random.default_rng(1)
    right = labels == logits.argmax(1)
    plain = np.quantile([right[rng.integers(400, size=400)].mean() for _ in range(2000)],
                        [0.025, 0.975])  # fmt: skip
    assert found["accuracy"] == pytest.approx(plain, abs=0.01)
    for name, value in statistics.point_scores(labels, logits).items():
        assert found[name][0] < value < found[name][1]


def test_images_of_a_patient_are_drawn_together():
    """40 images of 4 patients, all right or all wrong: the interval is that of 4 draws."""
    labels = np.zeros(40, np.int32)
    logits = np.tile([[1.0, 0.0]], (40, 1))
    logits[:10] = [0.0, 1.0]
    patients = [str(i // 10) for i in range(40)]
    apart = statistics.intervals(labels, logits, [str(i) for i in range(40)])["accuracy"]
    together = statistics.intervals(labels, logits, patients)["accuracy"]
    assert together == (0.25, 1.0)
    assert apart[0] > 0.25 and apart[1] < 1.0


def test_what_is_undefined_is_nan():
    found = statistics.point_scores(np.zeros(3, np.int32), np.eye(3)[:, :2])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert np.isnan(found["auc"])
    low, high = statistics.intervals(np.zeros(3, np.int32), np.eye(3)[:, :2], list("abc"))["auc"]
    assert np.isnan(low) and np.isnan(high)
