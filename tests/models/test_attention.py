"""The fused kernel against the plain form, in Pallas' interpreter; compiled for TPU elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from unimed_jax.models import attention


def inputs(tokens, dtype, heads=2, width=16, batch=2):
    rng = np.random.default_rng(0)
    q, k, v, cotangent = rng.standard_normal((4, batch, heads, tokens, width))
    lengths = rng.integers(tokens // 3, tokens, batch)
    mask = np.arange(tokens) < lengths[:, None]
    return [jnp.asarray(x, dtype) for x in (q, k, v)], jnp.asarray(mask), jnp.asarray(cotangent)


def plain(q, k, v, mask):
    return attention.attend(q, k, v, mask=mask, dropout_rate=0.0, dropout_key=None, form="plain")


# 50: a block with padding; 257, of 128 + 128 + 1: as in an image tower; 700: several blocks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "dtype", "tolerance"),
    [(50, "float32", 2e-6), (257, "bfloat16", 2e-2), (700, "float32", 2e-6)],
)
def test_values_and_gradients_equal_those_of_the_plain_form(tokens, dtype, tolerance):
    arrays, mask, cotangent = inputs(tokens, dtype)

    def value_and_grads(function):
        def weighted(*arrays):
            return jnp.sum(function(*arrays, mask).astype(jnp.float32) * cotangent)

        return function(*arrays, mask), jax.grad(weighted, argnums=(0, 1, 2))(*arrays)

    want, want_grads = value_and_grads(plain)
    with pltpu.force_tpu_interpret_mode():
        got, grads = value_and_grads(attention.fused_on_device)
    for a, b in zip((got, *grads), (want, *want_grads), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def test_what_cannot_be_fused_is_plain():
    """Without a TPU, and with dropout, every form gives the very same numbers."""
    arrays, mask, _ = inputs(40, "float32")
    for key in (None, jax.random.key(0)):
        results = [
            attention.attend(*arrays, mask=mask, dropout_rate=0.2, dropout_key=key, form=form)
            for form in ("auto", "plain", "fused")
        ]
        for result in results[1:]:
            np.testing.assert_array_equal(results[0], result)
