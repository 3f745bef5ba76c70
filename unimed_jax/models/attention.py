"""softmax(q kᵀ / √K) v, in the plain form or by the fused kernel of fused_attention.py.

Shape letters: B batch, T tokens, Q query tokens, H heads, K head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unimed_jax.models.config import Attention
from unimed_jax.models.dropout import Dropout
from unimed_jax.sharding import BATCH_AXES, LOGICAL_TO_MESH

LONGEST_FUSED = 640
"""Tokens whose scores, and what the backward pass needs beside them, fit into a TPU's VMEM."""


def self_attention(
    qkv: jax.Array, mask: jax.Array | None, dropout: Dropout, form: Attention
) -> jax.Array:
    """Every token to every token: qkv (B, T, 3, H, K) -> (B, T, H, K).

    Args:
        mask: bool (B, T), False at tokens nobody may attend to.
        dropout: of attention weights.
        form: "plain"; "fused" or "auto": the kernel, where there is one: in train steps on TPU.
    """
    # Heads move before tokens once, so that both products are plain batched ones: copies took a
    # fifth of a training step on a CPU when each product had to do it by itself.
    if form == "plain" or not _has_kernel(qkv):
        return plain(*qkv.transpose(2, 0, 3, 1, 4), mask, dropout)
    return _fused(qkv, mask, dropout)


def plain(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, dropout: Dropout
) -> jax.Array:
    """q (B, H, Q, K), k and v (B, H, T, K) -> (B, Q, H, K)."""
    scores = jnp.einsum("bhqk,bhtk->bhqt", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    if mask is not None:
        # Finite, so that a row that is all padding gives a number instead of NaN.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(q.dtype))
    return jnp.einsum("bhqt,bhtk->bhqk", weights, v).transpose(0, 2, 1, 3)


def _has_kernel(qkv: jax.Array) -> bool:
    """The kernel is TPU code; a mesh must say which rows and heads a device holds."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device.platform != "tpu":
        return False
    _, tokens, _, heads, head_dim = qkv.shape
    lanes = 128
    here = heads // mesh.shape[LOGICAL_TO_MESH["heads"]]
    return tokens <= LONGEST_FUSED and lanes % head_dim == 0 and here * head_dim % lanes == 0


def _fused(qkv: jax.Array, mask: jax.Array | None, dropout: Dropout) -> jax.Array:
    """Each device its own rows and heads."""
    # imported where it is used: Pallas is slow to import, and a run on CPU has no need of it
    from unimed_jax.models import fused_attention

    batch, tokens, _, heads, _ = qkv.shape
    mask = jnp.ones((batch, tokens), bool) if mask is None else mask
    keep = dropout.keep((batch, heads, tokens, tokens))

    def on_device(qkv: jax.Array, mask: jax.Array, keep: jax.Array | None) -> jax.Array:
        rows, tokens, _, heads, head_dim = qkv.shape
        side_by_side = qkv.transpose(0, 2, 1, 3, 4).reshape(rows, 3, tokens, heads * head_dim)
        out = fused_attention.attention(side_by_side, mask, keep, head_dim, dropout.scale)
        return out.reshape(rows, tokens, heads, head_dim)

    axis = LOGICAL_TO_MESH["heads"]
    spec = functools.partial(PartitionSpec, BATCH_AXES)
    return jax.shard_map(
        on_device,
        in_specs=(spec(None, None, axis), spec(), spec(axis)),
        out_specs=spec(None, axis),
        check_vma=False,
    )(qkv, mask, keep)
