"""Dropout: its rate, its scale, and what its masks depend on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimed_jax.models.dropout import Dropout


@pytest.mark.parametrize("width", [64, 65])
def test_dropout_rate_scale_and_independence(width: int) -> None:
    x = jnp.ones((500, 16, width))
    dropped = np.asarray(Dropout(0.1, jax.random.key(0))(x)) == 0
    # Four standard deviations of the mean of as many draws.
    assert abs(dropped.mean() - 0.1) < 4 * math.sqrt(0.09 / dropped.size)
    # Two features share a random word, half of all apart: they must not share the decision, nor
    # must neighbours.
    for apart in (1, -(-x.shape[-1] // 2)):
        both = dropped[..., :-apart] & dropped[..., apart:]
        assert abs(both.mean() - 0.01) < 4 * math.sqrt(0.0099 / both.size)
    kept = np.asarray(Dropout(0.1, jax.random.key(0))(x))[~dropped]
    np.testing.assert_allclose(kept, 1 / 0.9, rtol=1e-4)


def test_dropout_depends_on_key_alone() -> None:
    x = jnp.ones((8, 8))
    again = Dropout(0.5, jax.random.key(1))(x)
    np.testing.assert_array_equal(Dropout(0.5, jax.random.key(1))(x), again)
    assert (Dropout(0.5, jax.random.key(2))(x) != again).any()
    np.testing.assert_array_equal(Dropout(0.5, None)(x), x)
    np.testing.assert_array_equal(Dropout(0.0, jax.random.key(1))(x), x)
