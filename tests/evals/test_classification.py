import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from input_pipeline.io.errors import UserError
from unimed_jax.evals import classification as cl


def result(labels, logits, classes=None, **fields):
    logits = np.asarray(logits, np.float32)
    classes = classes or tuple(f"c{i}" for i in range(logits.shape[1]))
    ids = tuple(f"id{i}" for i in range(len(labels)))
    return cl.ClassificationResult(
        "task", classes, ids, np.array(labels, np.int32), logits, **fields
    )


def random_result(rng, num_samples, num_classes):
    labels = rng.integers(num_classes, size=num_samples)
    logits = rng.normal(size=(num_samples, num_classes))
    logits[np.arange(num_samples), labels] += 1.0
    return result(labels, logits)


def test_class_embeddings_normalise_before_and_after_the_mean():
    # (3, 0) counts as (1, 0): without the first normalisation class 0 would be (0.949, 0.316)
    prompts = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, -0.5]])
    embeddings = cl.class_embeddings(prompts, [0, 0, 1])
    np.testing.assert_allclose(embeddings, [[0.5**0.5, 0.5**0.5], [0.0, -1.0]], atol=1e-7)
    assert embeddings.dtype == np.float32


def test_class_embeddings_and_logits_against_a_plain_loop_in_float64():
    rng = np.random.default_rng(0)
    index = [2, 0, 1, 1, 0, 2, 2]  # prompts need not be sorted by class
    prompts = rng.normal(size=(7, 16)).astype(np.float32)
    images = (5 * rng.normal(size=(9, 16))).astype(np.float32)
    expected = np.empty((9, 3))
    for c in range(3):
        members = prompts[np.array(index) == c].astype(np.float64)
        units = [p / np.sqrt((p**2).sum()) for p in members]
        mean = sum(units) / len(units)
        for n, image in enumerate(images.astype(np.float64)):
            cosine = image @ mean / np.sqrt((image**2).sum() * (mean**2).sum())
            expected[n, c] = 14.285 * cosine
    logits = cl.zero_shot_logits(images, cl.class_embeddings(prompts, index), 14.285)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-6)
    assert logits.dtype == np.float32


@pytest.mark.parametrize(
    ("prompts", "index", "error", "message"),
    [
        ([[1.0, 0.0], [np.nan, 1.0]], [0, 1], UserError, "prompt 1 is not finite"),
        ([[1.0, 0.0], [0.0, 0.0]], [0, 1], UserError, "prompt 1 is zero"),
        ([[1.0, 0.0], [-1.0, 0.0]], [0, 0], UserError, "mean embedding of class 0 is zero"),
        ([[1.0, 0.0], [0.0, 1.0]], [0, 2], ValueError, "class 1 has no prompt"),
        ([[1.0, 0.0]], [0, 1], ValueError, "shapes"),
        (np.zeros((0, 2)), [], ValueError, "P > 0"),
    ],
)
def test_class_embeddings_refuse(prompts, index, error, message):
    with pytest.raises(error, match=message):
        cl.class_embeddings(np.array(prompts), index)


@pytest.mark.parametrize("image", [[0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0]])
def test_a_useless_image_embedding_is_reported_with_its_sample_id(image):
    classes = cl.class_embeddings(np.eye(2), [0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = cl.zero_shot_logits(np.array([[1.0, 2.0], image]), classes, 100.0)
    with pytest.raises(UserError, match=r"logits of 1 of 2 samples are not finite, first 'id1'"):
        result([0, 1], logits)


def test_scores_worked_by_hand():
    #          predicted 0, 0, 1, 1 | 1, 0   -> recalls 2/4 and 1/2
    r = result([0, 0, 0, 0, 1, 1], [[2, 0], [1, 0], [0, 3], [0, 1], [0, 2], [1, 0]])
    # z1 - z0: negatives -2 -1 3 1, positives 2 -1: of 8 pairs 3 + 1.5 are ordered rightly
    expected = {"accuracy": 0.5, "balanced_accuracy": 0.5, "auc": 4.5 / 8, "num_samples": 6.0}
    assert cl.metrics(r) == pytest.approx(expected)
    np.testing.assert_array_equal(cl.confusion_matrix(r), [[2, 2], [1, 1]])
    np.testing.assert_allclose(cl.per_class_recall(r), [0.5, 0.5])
    assert r.chance == 0.5


def test_balanced_accuracy_weighs_classes_not_samples():
    r = result([0] * 8 + [1] * 2, [[1, 0]] * 10)
    scores = cl.metrics(r)
    assert (scores["accuracy"], scores["balanced_accuracy"], scores["auc"]) == (0.8, 0.5, 0.5)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_scores_equal_scikit_learns_own(num_classes):
    r = random_result(np.random.default_rng(num_classes), 200, num_classes)
    p = softmax(r.logits.astype(np.float64), axis=1)
    scores = cl.metrics(r)
    np.testing.assert_allclose(cl.probabilities(r), p, rtol=1e-12)
    assert scores["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(r.labels, r.predictions), abs=1e-12
    )
    if num_classes == 2:
        expected = roc_auc_score(r.labels, r.logits[:, 1] - r.logits[:, 0])
    else:
        expected = roc_auc_score(r.labels, p, multi_class="ovr", average="macro")
    assert scores["auc"] == pytest.approx(expected, abs=1e-12)


def test_auc_does_not_saturate_at_a_large_logit_scale():
    """Here softmax rounds to exactly 1 for class 0 in every sample, which hides their order."""
    r = result([0, 0, 1], [[200, 0, 0], [180, 0, 0], [150, 0, 0]])
    assert set(softmax(r.logits.astype(np.float64), axis=1)[:, 0]) == {1.0}
    assert cl.metrics(r)["auc"] == 1.0


def test_equal_logits_predict_the_first_class():
    r = result([0, 1, 2], np.zeros((3, 3)))
    np.testing.assert_array_equal(r.predictions, [0, 0, 0])
    scores = cl.metrics(r)
    assert scores["balanced_accuracy"] == pytest.approx(1 / 3)
    assert scores["auc"] == pytest.approx(0.5)


def test_a_class_absent_from_the_labels_can_be_predicted_but_has_no_recall():
    # classes 0 and 1 occur, 2 does not; one sample of class 1 is taken for class 2
    r = result([0, 0, 1, 1], [[5, 0, 0], [5, 0, 0], [0, 5, 0], [0, 1, 5]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores, recall = cl.metrics(r), cl.per_class_recall(r)
    np.testing.assert_array_equal(recall, [1.0, 0.5, np.nan])
    assert scores["balanced_accuracy"] == pytest.approx(0.75)
    assert scores["auc"] == pytest.approx(1.0)
    np.testing.assert_array_equal(cl.confusion_matrix(r), [[2, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert r.chance == pytest.approx(1 / 3)


def test_one_class_in_the_labels_has_no_auc():
    scores = cl.metrics(result([1, 1], [[0, 1], [1, 0]]))
    assert scores["balanced_accuracy"] == 0.5 and np.isnan(scores["auc"])


def test_one_candidate_class_has_no_auc():
    scores = cl.metrics(result([0, 0], [[0.5], [1.0]]))
    assert scores["balanced_accuracy"] == 1.0 and np.isnan(scores["auc"])


def test_a_task_without_samples():
    r = result([], np.zeros((0, 2)), num_left_out=4)
    scores = cl.metrics(r)
    assert scores.pop("num_samples") == 0 and np.isnan(list(scores.values())).all()
    np.testing.assert_array_equal(cl.confusion_matrix(r), np.zeros((2, 2)))
    assert np.isnan(cl.per_class_recall(r)).all()


@pytest.mark.parametrize(
    ("labels", "logits", "message"),
    [
        ([0], [[1.0, 0.0], [0.0, 1.0]], "1 ids and 2 classes need"),
        ([0, 2], [[1.0, 0.0], [0.0, 1.0]], "sample 'id1' has label 2"),
        ([0, -1], [[1.0, 0.0], [0.0, 1.0]], "sample 'id1' has label -1"),
    ],
)
def test_inconsistent_results_are_refused(labels, logits, message):
    with pytest.raises(ValueError, match=message):
        result(labels, logits)


def test_float_labels_are_refused():
    with pytest.raises(ValueError, match="float64, not integers"):
        cl.ClassificationResult("t", ("a",), ("i",), np.zeros(1), np.zeros((1, 1), np.float32))
