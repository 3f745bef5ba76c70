"""Dropout: its rate, its scale, and what its masks depend on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimed_jax.models.dropout import dropout


@pytest.mark.parametrize("width", [64, 65])
def test_dropout_rate_scale_and_independence(width: int) -> None:
    x = jnp.ones((500, 16, width))
    dropped = np.asarray(dropout(x, 0.1, jax.random.key(0))) == 0
    # Four standard deviations of the mean of as many draws.
    assert abs(dropped.mean() - 0.1) < 4 * math.sqrt(0.09 / dropped.size)
    # Two neighbours share a random word: they must not share the decision.
    both = (dropped[..., :-1] & dropped[..., 1:]).mean()
    assert abs(both - 0.01) < 4 * math.sqrt(0.0099 / dropped.size)
    kept = np.asarray(dropout(x, 0.1, jax.random.key(0)))[~dropped]
    np.testing.assert_allclose(kept, 1 / 0.9, rtol=1e-4)


def test_dropout_depends_on_key_alone() -> None:
    x = jnp.ones((8, 8))
    again = dropout(x, 0.5, jax.random.key(1))
    np.testing.assert_array_equal(dropout(x, 0.5, jax.random.key(1)), again)
    assert (dropout(x, 0.5, jax.random.key(2)) != again).any()
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(1)), x)
