"""A linear probe: logistic regression on frozen features, its regularisation chosen by validation.

The features are unit vectors, in float64. scikit-learn's objective, C being the inverse of the
regularisation: ||W||² / 2 + C * sum of the cross entropies; the intercept is free. BLAS runs on one
thread: so the last digits do not depend on the number of cores, and small fits are faster.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from unimed_jax.evals import statistics

Array = np.ndarray

MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Probe:
    """A fitted probe: `c` as chosen, and whether every fit of the choice converged."""

    model: LogisticRegression
    c: float
    converged: bool

    def logits(self, features: Array) -> Array:
        """(N, C); of two classes the first has logit 0."""
        values = self.model.decision_function(np.asarray(features, np.float64))
        return values if values.ndim == 2 else np.stack([np.zeros_like(values), values], axis=1)


def fit(features: Array, labels: Array, c: float) -> Probe:
    """Logistic regression of all classes at once.

    Args:
      features: (N, E).
      labels: (N,) class indices; every one of 0..C-1 occurs.
      c: inverse strength of the regularisation.
    """
    model = LogisticRegression(C=c, solver="lbfgs", max_iter=MAX_ITERATIONS)
    one_thread = _blas().limit(limits=1, user_api="blas")
    with one_thread, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(np.asarray(features, np.float64), labels)
    return Probe(model, c, not any(issubclass(w.category, ConvergenceWarning) for w in caught))


@functools.cache
def _blas() -> ThreadpoolController:
    """Finding the libraries takes milliseconds, as long as a fit."""
    return ThreadpoolController()


def choose_and_fit(
    features: Array, labels: Array, subset: Array, validation: Array, grid: Sequence[float]
) -> Probe:
    """A probe of the subset with the C that is best on the validation part.

    C is chosen among probes that have not seen the validation part: by balanced accuracy, of equal
    ones the smallest C. Where the subset holds samples of the validation part, it is then fitted
    again with them.

    Args:
      features: (N, E) of the whole training part.
      labels: (N,).
      subset: places of the samples to train on.
      validation: (N,) bool.
      grid: values of C.
    """
    apart = subset[~validation[subset]]
    best, best_score, converged = None, -1.0, True
    for c in sorted(grid):
        probe = fit(features[apart], labels[apart], c)
        logits = probe.logits(features[validation])
        score = statistics.point_scores(labels[validation], logits)["balanced_accuracy"]
        converged &= probe.converged
        if score > best_score:
            best, best_score = probe, score
    if len(apart) < len(subset):
        best = fit(features[subset], labels[subset], best.c)
        converged &= best.converged
    return Probe(best.model, best.c, converged)
