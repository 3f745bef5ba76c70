"""Linear probes: logistic regression on frozen features, with regularization chosen by validation.

The features are unit vectors in float64. The objective is that of scikit-learn, where C is the
inverse regularization strength: ||W||² / 2 + C * sum of the cross entropies; the intercept is not
regularized. BLAS runs on one thread, so that the last digits do not depend on the number of cores
and small fits are faster.

Shape letters: N samples, C classes, E features.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import ThreadpoolController

from unimed_jax.evals import statistics

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Array = np.ndarray

MAX_ITERATIONS = 1000
_CRITERION = "balanced_accuracy"  # by which C is chosen


@dataclass(frozen=True)
class Probe:
    """A fitted probe, its inverse regularization, and whether all fits converged."""

    model: "LogisticRegression"
    c: float
    converged: bool

    def logits(self, features: Array) -> Array:
        """Features (N, E) -> logits (N, C); of two classes, the first has logit 0."""
        values = self.model.decision_function(np.asarray(features, np.float64))
        return values if values.ndim == 2 else np.stack([np.zeros_like(values), values], axis=1)


def fit(features: Array, labels: Array, c: float) -> Probe:
    """Fits multinomial logistic regression.

    Args:
      features: (N, E).
      labels: (N,) class indices; each of 0..C-1 must occur.
      c: inverse regularization strength.
    """
    from sklearn.exceptions import ConvergenceWarning  # takes a second to import
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, solver="lbfgs", max_iter=MAX_ITERATIONS)
    one_thread = _blas().limit(limits=1, user_api="blas")
    with one_thread, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(np.asarray(features, np.float64), labels)
    return Probe(model, c, not any(issubclass(w.category, ConvergenceWarning) for w in caught))


@functools.cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries; cached, because finding them takes as long as a fit."""
    return ThreadpoolController()


def choose_and_fit(
    features: Array, labels: Array, subset: Array, validation: Array, grid: Sequence[float]
) -> Probe:
    """Fits a probe on the subset with the C that is best on the validation part.

    C is chosen by balanced accuracy among probes trained without the validation part; ties go to
    the smallest C. If the subset contains samples of the validation part, the probe is then
    refitted on all of the subset.

    Args:
      features: (N, E) of all training samples.
      labels: (N,) class indices.
      subset: indices of the samples to train on.
      validation: (N,) bool, the validation part.
      grid: values of C to try, at least one.
    """
    apart = subset[~validation[subset]]
    best: Probe | None = None
    best_score, converged = -1.0, True
    for c in sorted(grid):
        probe = fit(features[apart], labels[apart], c)
        logits = probe.logits(features[validation])
        score = statistics.point_scores(labels[validation], logits, [_CRITERION])[_CRITERION]
        converged &= probe.converged
        if best is None or score > best_score:
            best, best_score = probe, score
    assert best is not None, "the grid is empty"
    if len(apart) < len(subset):
        best = fit(features[subset], labels[subset], best.c)
        converged &= best.converged
    return Probe(best.model, best.c, converged)
