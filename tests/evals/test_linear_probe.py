"""The linear probe against scikit-learn used directly, and tasks that follow from a corpus."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from unimed_jax.evals import label_tasks, linear_probe
from unimed_jax.evals.embeddings import SampleMetadata

GRID = (0.01, 1.0, 100.0, 1e4)


def features(num_classes, n=240, width=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % num_classes
    x = rng.normal(size=(num_classes, width))[labels] + 1.5 * rng.normal(size=(n, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_choice_of_c_is_that_of_a_plain_search(num_classes):
    x, y = features(num_classes)
    validation = np.arange(240) >= 180
    subset = np.arange(0, 180, 3)
    found = linear_probe.choose_and_fit(x, y, subset, validation, GRID)

    def plain(c, places):
        return LogisticRegression(C=c, max_iter=1000).fit(x[places].astype(np.float64), y[places])

    scored = [
        balanced_accuracy_score(y[validation], plain(c, subset).predict(x[validation]))
        for c in GRID
    ]
    assert found.c == GRID[int(np.argmax(scored))] and found.converged
    reference = plain(found.c, subset)
    np.testing.assert_array_equal(found.logits(x).argmax(1), reference.predict(x))
    logits = found.logits(x)
    shares = np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    np.testing.assert_allclose(shares, reference.predict_proba(x.astype(np.float64)), atol=1e-12)


def test_samples_of_the_validation_part_join_after_the_choice():
    x, y = features(3)
    validation = np.arange(240) >= 180
    apart = linear_probe.choose_and_fit(x, y, np.arange(180), validation, GRID)
    whole = linear_probe.choose_and_fit(x, y, np.arange(240), validation, GRID)
    assert whole.c == apart.c
    np.testing.assert_array_equal(whole.model.coef_, linear_probe.fit(x, y, apart.c).model.coef_)
    assert (whole.model.coef_ != apart.model.coef_).any()


def test_of_equally_good_values_the_smallest_is_taken():
    x, y = np.eye(4, dtype=np.float32)[[0, 1] * 20], np.array([0, 1] * 20)
    validation = np.arange(40) >= 30
    assert linear_probe.choose_and_fit(x, y, np.arange(30), validation, GRID[::-1]).c == 0.01


def sample(i, modality="ct", source="a", labels=(), group=""):
    return SampleMetadata(str(i), modality, source, labels, group, (), 0)


def test_tasks_of_a_corpus_are_its_modality_and_the_labels_of_every_source():
    train = [sample(i, "ct", "a", ("x",) if i % 2 else ("y", "size=2")) for i in range(20)]
    train += [sample(i, "mri", "b", ("x",), group=f"p{i % 4}") for i in range(20, 60)]
    train += [sample(i, "mri", "b", ("z",)) for i in range(60, 70)]
    train += [sample(70, "ct", "a", ("rare",))]
    test = [sample(0, "ct", "a", ("x",)), sample(1, "ct", "a", ("y",)), sample(2, "mri", "b")]
    tasks = label_tasks.tasks_of_corpus(train, test, 5)
    assert [(t.name, t.field, t.source, t.classes) for t in tasks] == [
        ("modality", "modality", None, ("ct", "mri")),
        ("a", "label", "a", ("x", "y")),  # `rare` has one group, `size` is an attribute
    ]  # x of b is of four patients, and z is not tested
    assert label_tasks.scorable(tasks[1], [*train[:3], train[70], train[20]]) == (
        [0, 1, 2],
        [1, 0, 1],
        1,
    )


def test_a_sample_of_two_classes_is_left_out():
    task = label_tasks.LabelTask("t", "label", None, ("x", "y"))
    both = sample(0, labels=("x", "y"))
    assert label_tasks.scorable(task, [both, sample(1, labels=("y",))]) == ([1], [1], 1)


def test_samples_without_a_group_are_groups_of_their_own():
    assert sample(1).group_key != sample(2).group_key
    assert sample(1, group="p").group_key == sample(2, group="p").group_key
    assert sample(1, group="p").group_key != sample(2, source="b", group="p").group_key
