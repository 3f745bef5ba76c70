"""Shuffled sub-volumes, masked cubes and the losses of both, beside NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimed_jax.tasks import pretext


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).normal(size=(12, 4, 8, 2)).astype(np.float32)


def test_each_position_holds_the_sub_volume_that_the_permutation_names(volume):
    permutation = jnp.array([2, 0, 1])
    found = pretext.shuffle(volume, permutation)
    np.testing.assert_array_equal(found, np.concatenate([volume[8:], volume[:4], volume[4:8]]))
    back = pretext.shuffle(found, jnp.argsort(permutation))
    np.testing.assert_array_equal(back, volume)


def test_every_permutation_is_drawn():
    permutations = jax.vmap(lambda key: pretext.draw_permutation(key, 3))(
        jax.random.split(jax.random.key(0), 300)
    )
    found, counts = np.unique(np.asarray(permutations), axis=0, return_counts=True)
    assert len(found) == 6  # the identity is one of them
    assert counts.min() > 25


@pytest.mark.parametrize(
    ("grid", "ratio", "count"),
    [
        ((6, 6, 6), 0.4, 86),
        ((16, 32, 32), 0.4, 6_553),
        ((8, 48, 48), 0.4, 7_372),
        ((2, 1, 1), 0, 0),
    ],
)
def test_exactly_the_published_number_of_cubes_is_masked(grid, ratio, count):
    assert pretext.num_masked(grid, ratio) == count
    masked = pretext.draw_mask(jax.random.key(1), grid, ratio)
    assert masked.shape == grid
    assert int(masked.sum()) == count


def test_masked_cubes_are_zero_and_nothing_else_changes(volume):
    masked = np.zeros((3, 2, 2), bool)
    masked[1, 0, 1] = masked[2, 1, 0] = True
    found = pretext.mask_cubes(volume, jnp.array(masked))
    want = volume.copy()
    want[4:8, 0:2, 4:8] = 0
    want[8:12, 2:4, 0:4] = 0
    np.testing.assert_array_equal(found, want)


def test_losses_equal_loops(volume):
    rng = np.random.default_rng(1)
    permutation = np.array([[2, 0, 1], [1, 2, 0]])
    heads = [rng.normal(size=(2, 3, 3)).astype(np.float32) for _ in range(4)]
    total = 0.0
    for logits in heads:
        terms = [
            np.log(np.exp(logits[b, n].astype(np.float64)).sum()) - logits[b, n, permutation[b, n]]
            for b in range(2)
            for n in range(3)
        ]
        total += np.mean(terms)
    assert float(pretext.permutation_loss(heads, permutation)) == pytest.approx(total, rel=1e-5)
    right = [10 * np.eye(3)[permutation]] * 3 + [10 * np.eye(3)[(permutation + 1) % 3]]
    assert float(pretext.permutation_accuracy(right, permutation)) == pytest.approx(0.75)
    other = volume + rng.normal(size=volume.shape).astype(np.float32)
    want = np.square(volume.astype(np.float64) - other).mean()
    found = pretext.reconstruction_loss(volume[None], other[None])
    assert float(found) == pytest.approx(want, rel=1e-5)
