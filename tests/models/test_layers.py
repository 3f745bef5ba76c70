"""Activations and layer normalisation against their formulas in float64."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unimed_jax.models import layers


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
    ],
)
def test_activation_is_its_formula(name: str, formula) -> None:
    x = np.linspace(-8, 8, 321)
    expected = np.array([formula(v) for v in x])
    got = layers.ACTIVATIONS[name](jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_layer_norm_is_float32_inside() -> None:
    norm = layers.LayerNorm(256, 1e-5, jnp.float32, nnx.Rngs(0))
    # A mean that dwarfs the deviation: E[x²] - E[x]² would lose all digits.
    x = np.random.default_rng(0).normal(1000, 0.1, (4, 256)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=2e-3)
    half = norm(jnp.asarray(x - 1000, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=3e-2)
