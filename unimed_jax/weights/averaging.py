"""Averages of weights: of checkpoints, with the weights that a run started from, greedy soups.

Parameters are nested dicts of arrays. Sums are float64, whatever the parameters are.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from unimed_jax.distributed import sharding


def combine(terms: Iterable[tuple[float, Any]]) -> Any:
    """The sum of share x parameters, float64 arrays of numpy; one term at a time is in memory.

    Equal shares of 1/n are the uniform average (Izmailov et al., arXiv 1803.05407; of the last
    checkpoints: Kaddour, arXiv 2209.14981). Shares of 1 - a for the weights that a run started from
    and a for what it became are WiSE-FT (Wortsman et al., arXiv 2109.01903).

    Args:
      terms: at least one; the shares should add up to 1.
    """
    total: Any = None
    for share, params in terms:
        scaled = jax.tree.map(lambda x, s=share: s * np.asarray(x, np.float64), params)
        total = scaled if total is None else jax.tree.map(np.add, total, scaled)
    return total


def cast(params: Any, abstract: Any) -> Any:
    """Arrays of numpy with the dtypes of ``abstract``."""
    return jax.tree.map(lambda x, like: np.asarray(x, like.dtype), params, abstract)


@dataclass(frozen=True)
class GreedySoup:
    """A greedy soup.

    Attributes:
      params: the average of the chosen candidates, float64.
      chosen: their indices, in the order in which they were added.
      trials: index of a candidate -> score of the soup with it; of all but the best one.
    """

    params: Any
    chosen: list[int]
    trials: dict[int, float]


def greedy_soup(
    scores: Sequence[float], read: Callable[[int], Any], score: Callable[[Any, int], float]
) -> GreedySoup:
    """Starts from the best candidate, and adds every other one that does not lower the score.

    Wortsman et al., Model soups, arXiv 2203.05482, recipe 1. Two sets of parameters in float64 and
    a candidate are in memory.

    Args:
      scores: of the candidates alone; higher is better.
      read: returns the parameters of a candidate.
      score: of an average, and of the candidate that is new in it.
    """
    best, *others = sorted(range(len(scores)), key=lambda index: -scores[index])
    soup, chosen, reached = combine([(1.0, read(best))]), [best], scores[best]
    trials: dict[int, float] = {}
    for index in others:
        share = 1 / (len(chosen) + 1)
        trial = combine([(1 - share, soup), (share, read(index))])
        trials[index] = score(trial, index)
        if trials[index] >= reached:
            soup, reached = trial, trials[index]
            chosen.append(index)
    return GreedySoup(soup, chosen, trials)


def sha256(params: Any) -> str:
    """SHA-256 (hex) of paths, dtypes, shapes and values; the same wherever the parameters are."""
    digest = hashlib.sha256()
    leaves = {
        sharding.path_string(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path, leaf in sorted(leaves.items()):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
