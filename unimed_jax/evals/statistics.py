"""Scores with weights per sample, and the bootstrap intervals of all evaluators.

A resample of a set gives each sample a weight (how often it was drawn), so the same functions
compute a score and all of its resamples at once. Shapes: R resamples, N samples, C classes, G
groups.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from unimed_jax.evals.classification import one_vs_rest_scores

Array = np.ndarray

SCORES = ("accuracy", "balanced_accuracy", "auc", "f1")
FINDING_SCORES = (*SCORES, "auprc")  # of a finding that is present or absent
NUM_RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 1 << 22  # weights held at a time


def weighted_scores(
    labels: Array, logits: Array, weights: Array, names: Sequence[str] = SCORES
) -> dict[str, Array]:
    """Scores under every row of weights.

    Args:
      labels: (N,) class indices.
      logits: (N, C).
      weights: (R, N), non-negative.
      names: of the scores; the AUC takes most of the time.

    Returns:
      score -> (R,) float64, NaN where it is undefined:
      accuracy; balanced_accuracy, the mean recall of the classes that occur; auc, the mean over
      the classes of one against the rest, of two classes that of z_1 - z_0; f1, of two classes
      that of class 1, of more the mean over the classes that occur or are predicted; auprc, of two
      classes only, the average precision of class 1 by z_1 - z_0.
    """
    weights = np.asarray(weights, np.float64)
    num_classes = logits.shape[1]
    predictions = np.argmax(logits, axis=1)
    one_hot = np.eye(num_classes)
    actual = weights @ one_hot[labels]  # (R, C)
    predicted = weights @ one_hot[predictions]
    right = (weights * (labels == predictions)) @ one_hot[labels]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / actual
        f1 = 2 * right / (actual + predicted)
        scores = {
            "accuracy": right.sum(1) / actual.sum(1),
            "balanced_accuracy": _mean_of_defined(recall),
            "f1": f1[:, 1] if num_classes == 2 else _mean_of_defined(f1),
        }
    if "auc" in names:
        scores["auc"] = _macro_auc(labels, logits, weights)
    if "auprc" in names:
        scores["auprc"] = _average_precision(labels == 1, logits[:, 1] - logits[:, 0], weights)
    return {name: scores[name] for name in names}


def group_resamples(num_groups: int, seed: int, rows: int = NUM_RESAMPLES) -> Iterator[Array]:
    """How often each group is drawn in every bootstrap resample, as many groups as there are.

    The draws are a function of ``seed`` and ``num_groups``.

    Args:
      num_groups: G.
      seed: of the draws.
      rows: resamples that are drawn at a time, for less memory.

    Yields:
      int64 (at most ``rows``, G); NUM_RESAMPLES rows in all.
    """
    rng = np.random.default_rng(seed)
    share = np.full(num_groups, 1 / num_groups)
    for begin in range(0, NUM_RESAMPLES, rows):
        yield rng.multinomial(num_groups, share, size=min(rows, NUM_RESAMPLES - begin))


def percentile_interval(values: Array) -> tuple[float, float]:
    """The central 95 % of the resampled values that are finite; NaN if none is."""
    defined = values[np.isfinite(values)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def mean_interval(
    values: Array, groups: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of the finite values, and its percentile bootstrap interval (95 %, 1,000 resamples).

    Whole groups (patients) are drawn with replacement. NaN if no value is finite.

    Args:
      values: (N,).
      groups: group of each value.
      seed: of the draws.

    Returns:
      (mean, lower bound, upper bound).
    """
    defined = np.isfinite(values)
    if not defined.any():
        return (float("nan"),) * 3
    _, group = np.unique(np.asarray(groups)[defined], return_inverse=True)
    sums = np.bincount(group, weights=values[defined])
    counts = np.bincount(group)
    (draws,) = group_resamples(len(sums), seed)
    low, high = percentile_interval((draws @ sums) / (draws @ counts))
    return float(sums.sum() / counts.sum()), low, high


def intervals(
    labels: Array,
    logits: Array,
    groups: Sequence[str],
    names: Sequence[str] = SCORES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals (95 %, 1,000 resamples) of scores, all unless ``names`` says.

    Whole groups (patients, exams) are drawn with replacement. NaN for a score that no resample
    defines.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    resampled: dict[str, list[Array]] = {name: [] for name in names}
    rows = max(1, _CHUNK // len(labels))
    for draws in group_resamples(int(group.max()) + 1, seed, rows):
        for name, values in weighted_scores(labels, logits, draws[:, group], names).items():
            resampled[name].append(values)
    return {name: percentile_interval(np.concatenate(v)) for name, v in resampled.items()}


def point_scores(labels: Array, logits: Array, names: Sequence[str] = SCORES) -> dict[str, float]:
    """Scores of a set, each sample counted once."""
    scores = weighted_scores(labels, logits, np.ones((1, len(labels))), names)
    return {name: float(values[0]) for name, values in scores.items()}


def prompt_spread(values: Sequence[float]) -> Mapping[str, float]:
    """Smallest, median and largest of a score over single prompts."""
    low, middle, high = np.quantile(values, (0.0, 0.5, 1.0))
    return {"min": float(low), "median": float(middle), "max": float(high)}


def _mean_of_defined(values: Array) -> Array:
    """Mean over the classes, ignoring NaN."""
    defined = np.isfinite(values)
    return np.where(defined, values, 0).sum(1) / defined.sum(1)


def _macro_auc(labels: Array, logits: Array, weights: Array) -> Array:
    scores = one_vs_rest_scores(logits)
    classes = range(logits.shape[1]) if logits.shape[1] > 2 else (1,)
    areas = [_auc(labels == c, scores[:, c], weights) for c in classes]
    return _mean_of_defined(np.stack(areas, axis=1))


def _auc(positive: Array, score: Array, weights: Array) -> Array:
    """Weighted Mann-Whitney: P(score of a positive > of a negative) + half of the ties."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # of runs of equal scores
    positives = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    negatives = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    with np.errstate(invalid="ignore"):
        return (positives * below).sum(1) / (positives.sum(1) * negatives.sum(1))


def _average_precision(positive: Array, score: Array, weights: Array) -> Array:
    """Sum over thresholds of precision times the gain in recall; equal scores are one threshold."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))  # of runs of equal scores
    positives = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    chosen = np.cumsum(np.add.reduceat(weights[:, order], starts, axis=1), axis=1)
    right = np.cumsum(positives, axis=1)
    precision = np.divide(right, chosen, out=np.zeros_like(right), where=chosen > 0)
    with np.errstate(invalid="ignore"):
        return (positives * precision).sum(1) / right[:, -1]
