"""Attention of short sequences as one TPU kernel (Pallas) that keeps the scores in VMEM.

At the sequence lengths of these models (197 and 577 patches, 256 tokens), all T x T scores of a
head fit into VMEM. The bookkeeping of flash attention (arXiv 2205.14135) is therefore not needed:
no running maximum, no stored log-partition, no padding. The backward pass recomputes the scores.

The 128 lanes of a TPU hold a group of 128 / K heads of width K side by side. A product for one head
uses all 128 lanes, with those of the other heads set to zero; the matrix unit is 128 wide, so this
costs no more than K lanes would. The queries, keys and values of a group are adjacent in one array,
as a single product with the weights produces them (``attention.by_groups``); other orders need
copies (docs/guides/tpu.md).

Shape letters: B batch, T tokens, H heads, K head width, D = H K.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from unimed_jax.monitoring.hardware import TPU_LANES as LANES

_PARTS = tuple(slice(i * LANES, (i + 1) * LANES) for i in range(3))  # query, key, value of a group
_Residuals = tuple[jax.Array, jax.Array, jax.Array | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attention(
    qkv: jax.Array, mask: jax.Array, keep: jax.Array | None, head_dim: int, scale: float
) -> jax.Array:
    """softmax(q kᵀ / √K) v for every head.

    Args:
      qkv: (B, T, 3 D), in the order of ``attention.by_groups``.
      mask: bool (B, T), False at tokens that must not be attended to.
      keep: int8 (B, H, T, ⌈T/2⌉), the dropout mask from ``Dropout.packed``; None disables dropout.
      head_dim: K, the width of a head.
      scale: factor of the weights that dropout keeps.

    Returns:
      (B, T, D), heads side by side, with the dtype of ``qkv``.
    """
    return _call(_forward_kernel, qkv, mask, keep, (), head_dim, scale, 1, products=2)


def _attention_forward(
    qkv: jax.Array, mask: jax.Array, keep: jax.Array | None, head_dim: int, scale: float
) -> tuple[jax.Array, _Residuals]:
    return attention(qkv, mask, keep, head_dim, scale), (qkv, mask, keep)


def _attention_backward(
    head_dim: int, scale: float, residuals: _Residuals, cotangent: jax.Array
) -> tuple[jax.Array, None, None]:
    d_qkv = _call(_backward_kernel, *residuals, (cotangent,), head_dim, scale, 3, products=5)
    return d_qkv, None, None


attention.defvjp(_attention_forward, _attention_backward)


def _call(
    kernel: Any,
    qkv: jax.Array,
    mask: jax.Array,
    keep: jax.Array | None,
    more: tuple[jax.Array, ...],
    head_dim: int,
    scale: float,
    num_outputs: int,
    products: int,
) -> jax.Array:
    """Runs a kernel for each row of the batch and each group of heads.

    Args:
      kernel: kernel body.
      qkv: see ``attention``.
      mask: see ``attention``.
      keep: see ``attention``.
      more: further inputs, (B, T, D) each.
      head_dim: see ``attention``.
      scale: see ``attention``.
      num_outputs: n of the result (B, T, n D).
      products: number of T x T x K products per head, for the cost estimate.
    """
    batch, tokens, triple = qkv.shape
    width, group = triple // 3, LANES // head_dim

    def heads_of(n: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, tokens, n * LANES), lambda row, column: (row, 0, column))

    inputs = [qkv, mask[:, None].astype(jnp.int32), *more]
    specs = [
        heads_of(3),
        pl.BlockSpec((1, 1, tokens), lambda row, column: (row, 0, 0)),
        *(heads_of(1) for _ in more),
    ]
    if keep is not None:
        inputs.append(keep)
        block = (1, group, *keep.shape[2:])
        specs.append(pl.BlockSpec(block, lambda row, column: (row, column, 0, 0)))
    result = jax.ShapeDtypeStruct((batch, tokens, num_outputs * width), qkv.dtype)
    arrays: list[jax.Array | jax.ShapeDtypeStruct] = [*inputs, result]
    scores = batch * width // head_dim * tokens**2
    return pl.pallas_call(
        functools.partial(kernel, head_dim=head_dim, scale=scale),
        out_shape=result,
        grid=(batch, width // LANES),
        in_specs=specs,
        out_specs=heads_of(num_outputs),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * head_dim,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
        ),
    )(*inputs)


def _forward_kernel(qkv: Any, mask: Any, *rest: Any, head_dim: int, scale: float) -> None:
    *keep, out = rest
    q, k, v = (qkv[0, :, part] for part in _PARTS)
    total = jnp.zeros(out.shape[1:], jnp.float32)
    for head, only in _heads(q, head_dim):
        weights = _weights(only(q), k, mask, head_dim)
        weights = _dropped(weights, keep, head, scale).astype(v.dtype)
        total += _dot(weights, only(v), 1, 0)
    out[0] = total.astype(out.dtype)


def _backward_kernel(
    qkv: Any, mask: Any, d_out: Any, *rest: Any, head_dim: int, scale: float
) -> None:
    *keep, d_qkv = rest
    q, k, v = (qkv[0, :, part] for part in _PARTS)
    cotangent = d_out[0]
    dq = dk = dv = jnp.zeros(q.shape, jnp.float32)
    for head, only in _heads(q, head_dim):
        weights = _weights(only(q), k, mask, head_dim)
        dropped = _dropped(weights, keep, head, scale).astype(v.dtype)
        d_head = only(cotangent)
        dv += _dot(dropped, d_head, 0, 0)
        d_weights = _dropped(_dot(d_head, v, 1, 1), keep, head, scale)
        mean = jnp.sum(weights * d_weights, axis=1, keepdims=True)
        d_scores = (weights * (d_weights - mean) * head_dim**-0.5).astype(q.dtype)
        dq += _dot(d_scores, only(k), 1, 0)
        dk += _dot(d_scores, only(q), 0, 0)
    for part, gradient in zip(_PARTS, (dq, dk, dv), strict=True):
        d_qkv[0, :, part] = gradient.astype(d_qkv.dtype)


def _heads(q: jax.Array, head_dim: int) -> Iterator[tuple[int, Any]]:
    """Yields the heads of a group, each with a function that zeroes the lanes of the others."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, q.shape, 1) // head_dim
    for head in range(LANES // head_dim):
        yield head, lambda x, in_head=lanes == head: jnp.where(in_head, x, jnp.zeros_like(x))


def _weights(q: jax.Array, k: jax.Array, mask: Any, head_dim: int) -> jax.Array:
    """Attention weights, float32 (T, T), before dropout."""
    scores = _dot(q, k, 1, 1) * head_dim**-0.5
    # finite, so that a row of padding alone gives numbers instead of NaN
    scores = jnp.where(mask[0] != 0, scores, jnp.finfo(jnp.float32).min)
    powers = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return powers / jnp.sum(powers, axis=1, keepdims=True)


def _dropped(weights: jax.Array, keep: list, head: int, scale: float) -> jax.Array:
    if not keep:
        return weights
    packed = keep[0][0, head].astype(jnp.int32)
    kept = jnp.concatenate([packed & 1, packed >> 1], axis=1)[:, : weights.shape[1]]
    return jnp.where(kept != 0, weights * scale, 0.0)


def _dot(a: jax.Array, b: jax.Array, a_dim: int, b_dim: int) -> jax.Array:
    """Contracts ``a_dim`` of a with ``b_dim`` of b, accumulating in float32."""
    return jax.lax.dot_general(
        a, b, (((a_dim,), (b_dim,)), ((), ())), preferred_element_type=jnp.float32
    )
