"""Retrieval against a brute force in float64."""

import itertools
import math

import numpy as np
import pytest
from scipy.sparse import csr_array

from unimed_jax.evals import retrieval


def brute_force(queries, candidates, belongs):
    similarity = queries.astype(np.float64) @ candidates.astype(np.float64).T
    ranks = []
    for row, own in zip(similarity, belongs, strict=True):
        best = row[own].max()
        ranks.append(1 + sum(s > best - 1e-9 for s, o in zip(row, own, strict=True) if not o))
    return np.array(ranks)


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(("rows", "columns"), [(1024, 8192), (7, 5), (1, 1)])
def test_ranks_are_those_of_a_brute_force(monkeypatch, rows, columns):
    monkeypatch.setattr(retrieval, "_ROWS", rows)
    monkeypatch.setattr(retrieval, "_COLUMNS", columns)
    rng = np.random.default_rng(0)
    queries, candidates = unit(rng, 40, 8), unit(rng, 23, 8)
    candidates[5] = candidates[3]  # ties
    queries[7] = queries[8]
    belongs = rng.random((40, 23)) < 0.08
    belongs[np.arange(40), rng.integers(0, 23, 40)] = True
    found = retrieval.best_ranks(queries, candidates, csr_array(belongs))
    np.testing.assert_array_equal(found, brute_force(queries, candidates, belongs))
    assert len(set(found)) > 5


def test_equal_embeddings_earn_nothing():
    same = np.tile(unit(np.random.default_rng(0), 1, 8), (6, 1))
    ranks = retrieval.best_ranks(same, same, csr_array(np.eye(6, dtype=bool)))
    np.testing.assert_array_equal(ranks, [6] * 6)


def test_any_image_of_a_text_is_a_hit():
    texts = np.eye(3, dtype=np.float32)[:1]
    images = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0]], np.float32)
    belongs = np.array([[False, True, True]])
    assert retrieval.best_ranks(texts, images, csr_array(belongs)).tolist() == [2]


@pytest.mark.parametrize(("n", "positives", "k"), [(6, 1, 1), (6, 2, 3), (5, 4, 3), (3, 1, 10)])
def test_chance_is_that_of_all_orders(n, positives, k):
    orders = list(itertools.permutations(range(n)))
    hits = sum(any(c < positives for c in order[:k]) for order in orders)
    belongs = csr_array(np.arange(n)[None] < positives)
    assert math.isclose(retrieval.chance(belongs, k), hits / len(orders))
