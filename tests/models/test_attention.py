"""The fused kernel against the plain form, in Pallas' interpreter.

That it compiles for a TPU, and is part of a train step there, is in tests/test_compile_report.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from unimed_jax.distributed import sharding
from unimed_jax.models import attention, fused_attention, layers
from unimed_jax.models.dropout import Dropout


def inputs(tokens, heads, width, dtype, batch=2):
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((batch, tokens, 3, heads, width))
    cotangent = rng.standard_normal((batch, tokens, heads, width))
    lengths = rng.integers(tokens // 3, tokens, batch)
    mask = np.arange(tokens) < lengths[:, None]
    return jnp.asarray(qkv, dtype), jnp.asarray(mask), jnp.asarray(cotangent)


def fused(qkv, mask, dropout):
    batch, tokens, _, heads, width = qkv.shape
    out = fused_attention.attention(
        attention.by_groups(qkv),
        mask,
        dropout.packed((batch, heads, tokens, tokens)),
        width,
        dropout.scale,
    )
    return out.reshape(batch, tokens, heads, width)


# two, four and one heads to the 128 lanes; 50 as of ViT-B/32; bfloat16 rounds both forms
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "heads", "width", "dtype", "tolerance"),
    [
        (50, 4, 64, "float32", 2e-6),
        (24, 4, 32, "float32", 2e-6),
        (40, 2, 128, "float32", 2e-6),
        (197, 2, 64, "bfloat16", 2e-2),
    ],
)
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_values_and_gradients_equal_those_of_the_plain_form(
    tokens, heads, width, dtype, tolerance, rate
):
    qkv, mask, cotangent = inputs(tokens, heads, width, dtype)
    dropout = Dropout(rate, jax.random.key(0))

    def value_and_gradient(function):
        def weighted(qkv):
            out = function(qkv, mask, dropout)
            return jnp.sum(out.astype(jnp.float32) * cotangent), out

        (_, out), gradient = jax.value_and_grad(weighted, has_aux=True)(qkv)
        return out, gradient

    want = value_and_gradient(
        lambda qkv, mask, dropout: attention.plain(*qkv.transpose(2, 0, 3, 1, 4), mask, dropout)
    )
    with pltpu.force_tpu_interpret_mode():
        got = value_and_gradient(fused)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 2, 2)])
def test_a_layer_is_the_same_by_the_kernel_on_a_mesh(shape, monkeypatch):
    """Projections, masks and dropout included; only the question for a TPU is answered for it."""
    init = nnx.initializers.normal(0.1)
    layer = layers.SelfAttention(
        256, 4, qkv_init=init, out_init=init, dropout=0.2, implementation="auto",
        dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0),
    )  # fmt: skip
    layer.qkv.bias[...] = jax.random.normal(jax.random.key(1), layer.qkv.bias.shape)
    graphdef, params = nnx.split(layer)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 24, 256)), jnp.float32)
    mask = jnp.asarray(np.arange(24) < rng.integers(8, 24, 4)[:, None])

    def loss(params, x):
        out = nnx.merge(graphdef, params)(x, mask=mask, dropout_key=jax.random.key(2))
        return jnp.sum(jnp.sin(out)), out

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    want = step(params, x)
    monkeypatch.setattr(layers, "can_fuse", lambda *_: True)
    mesh = sharding.make_mesh(dict(zip(("data", "fsdp", "tensor"), shape, strict=True)),
                              jax.devices()[:4])  # fmt: skip
    with jax.set_mesh(mesh), pltpu.force_tpu_interpret_mode():
        got = jax.jit(step)(params, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_a_row_of_padding_gives_numbers():
    qkv, _, _ = inputs(16, 2, 64, "float32")
    nothing = jnp.zeros((2, 16), bool)
    with pltpu.force_tpu_interpret_mode():
        got = fused(qkv, nothing, Dropout(0.0, None))
    mean = qkv[:, :, 2].mean(1, keepdims=True)
    np.testing.assert_allclose(got, jnp.broadcast_to(mean, got.shape), atol=1e-6)


def test_there_is_no_kernel_without_a_tpu():
    assert not attention.can_fuse(197, 12, 64)
    with jax.set_mesh(sharding.make_mesh({"data": 4, "fsdp": 1, "tensor": 2})):
        assert not attention.can_fuse(197, 12, 64)
