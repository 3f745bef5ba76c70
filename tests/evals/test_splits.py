"""Splits of probes: stratified, by patient, seeded, nested, kept."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from input_pipeline.io.errors import UserError
from unimed_jax.evals import splits


def corpus(seed=0, num_groups=300, num_classes=3):
    """Labels and groups of some 900 samples; groups of 1 to 5, a few of them of two classes."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), rng.integers(1, 6, num_groups))
    labels = rng.integers(0, num_classes, num_groups)[groups]
    mixed = rng.random(len(labels)) < 0.05
    return np.where(mixed, (labels + 1) % num_classes, labels), groups


LABELS, GROUPS = corpus()
VALIDATION = splits.validation_part(LABELS, GROUPS, 0)


def test_the_validation_part_is_a_fifth_of_every_class_and_shares_no_patient():
    assert not set(GROUPS[VALIDATION]) & set(GROUPS[~VALIDATION])
    for c in range(3):
        assert VALIDATION[c == LABELS].mean() == pytest.approx(0.2, abs=0.03)
    np.testing.assert_array_equal(VALIDATION, splits.validation_part(LABELS, GROUPS, 0))
    assert (splits.validation_part(LABELS, GROUPS, 1) != VALIDATION).any()


@pytest.mark.parametrize("share", [1.0, 10.0, 50.0])
def test_a_share_is_stratified_and_of_few_patients(share):
    (budget,) = splits.percentages([share])
    chosen = splits.subset(budget, LABELS, GROUPS, VALIDATION, (0, 1))
    there = np.bincount(LABELS)
    np.testing.assert_array_equal(
        np.bincount(LABELS[chosen]), np.floor(there * share / 100 + 0.5).astype(int)
    )
    assert len(set(chosen)) == len(chosen) and not VALIDATION[chosen].any()
    # whole patients but for the one at each class's end, and those of two classes
    partly = [g for g in set(GROUPS[chosen]) if (GROUPS[chosen] == g).sum() < (g == GROUPS).sum()]
    of_one_class = [g for g in partly if len(set(LABELS[g == GROUPS])) == 1]
    assert len(of_one_class) <= 3


def test_shots_are_of_different_patients_as_long_as_there_are():
    (budget,) = splits.shots([16])
    chosen = splits.subset(budget, LABELS, GROUPS, VALIDATION, (0, 1))
    for c in range(3):
        of_class = chosen[LABELS[chosen] == c]
        assert len(set(GROUPS[of_class])) == 16
    # two patients per class and eight shots: four of each
    labels, groups = np.repeat([0, 1], 20), np.repeat(np.arange(4), 10)
    chosen = splits.subset(splits.shots([8])[0], labels, groups, np.zeros(40, bool), (0,))
    np.testing.assert_array_equal(np.bincount(groups[chosen]), [4, 4, 4, 4])


def test_draws_are_nested_seeded_and_differ():
    def draw(budget, seed):
        return set(splits.subset(budget, LABELS, GROUPS, VALIDATION, seed))

    for budgets in (splits.percentages([1, 10, 100]), splits.shots([1, 2, 4, 8, 16])):
        drawn = [draw(budget, (0, 3)) for budget in budgets]
        for small, large in itertools.pairwise(drawn):
            assert small < large
        assert draw(budgets[1], (0, 3)) == drawn[1] != draw(budgets[1], (0, 4))
    assert draw(splits.percentages([100])[0], (0, 3)) == set(range(len(LABELS)))


def test_the_validation_part_is_drawn_last():
    chosen = splits.subset(splits.percentages([90])[0], LABELS, GROUPS, VALIDATION, (0,))
    assert set(np.flatnonzero(~VALIDATION)) <= set(chosen)
    assert 0 < VALIDATION[chosen].sum() < VALIDATION.sum()


def test_a_class_with_too_few_samples_is_named():
    labels, groups = np.array([0] * 100 + [1] * 40), np.arange(140)
    none = np.zeros(140, bool)
    with pytest.raises(splits.TooFewError, match="would have no sample") as error:
        splits.subset(splits.percentages([1])[0], labels, groups, none, (0,))
    assert error.value.label == 1
    with pytest.raises(splits.TooFewError, match="has only 40 samples") as error:
        splits.subset(splits.shots([41])[0], labels, groups, none, (0,))
    assert error.value.label == 1


def test_a_file_of_splits_is_read_back(tmp_path):
    task = splits.TaskSplits(("a", "b"), ("v1", "v2"), {"1pct": (("x", "y"), ("z", "ü"))})
    path = tmp_path / "splits.json"
    path.write_text(splits.to_json({"t": task}, {"seed": 3}), "utf-8")
    assert json.loads(path.read_text("utf-8"))["seed"] == 3
    assert splits.load(str(path)) == {"t": task}
    assert dataclasses.replace(task, validation=()) != splits.load(str(path))["t"]
    for content, message in (("{", "is not a file of splits"), ("[]", "is not a file of splits")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            splits.load(str(path))
    with pytest.raises(UserError, match=r"cannot read the splits .*nowhere"):
        splits.load(str(tmp_path / "nowhere"))
