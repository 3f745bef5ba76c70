"""Attention, softmax(q kᵀ / √K) v: plain, or with the fused kernel of ``fused_attention``.

Shape letters: B batch, T tokens, Q query tokens, H heads, K head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unimed_jax.distributed.sharding import BATCH_AXES, LOGICAL_TO_MESH
from unimed_jax.models.dropout import Dropout
from unimed_jax.monitoring.hardware import TPU_LANES as LANES

_HEADS = LOGICAL_TO_MESH["heads"]
_MAX_TOKENS = 640  # their scores, and the arrays of the backward pass, fit into a TPU's VMEM


def plain(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, dropout: Dropout
) -> jax.Array:
    """q (B, H, Q, K), k and v (B, H, T, K) -> (B, Q, H, K).

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: bool (B, T), False at tokens that must not be attended to.
      dropout: attention dropout.
    """
    scores = jnp.einsum("bhqk,bhtk->bhqt", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    if mask is not None:
        # finite, so that a row of padding alone gives numbers instead of NaN
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(q.dtype))
    return jnp.einsum("bhqt,bhtk->bhqk", weights, v).transpose(0, 2, 1, 3)


def can_fuse(tokens: int, heads: int, head_dim: int) -> bool:
    """Whether ``fused``, the faster implementation (docs/guides/tpu.md), supports these shapes.

    It needs a TPU and a mesh (``jax.set_mesh``) that defines the rows and heads of each device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device.platform != "tpu" or heads % mesh.shape[_HEADS]:
        return False
    width = heads // mesh.shape[_HEADS] * head_dim
    return tokens <= _MAX_TOKENS and LANES % head_dim == 0 and width % LANES == 0


def by_groups(x: jax.Array) -> jax.Array:
    """Query, key and value parameters (..., 3, H, K) -> (..., 3 D), grouped by 128 lanes."""
    *others, _, heads, head_dim = x.shape
    groups = x.reshape(*others, 3, heads * head_dim // LANES, LANES)
    return jnp.swapaxes(groups, -3, -2).reshape(*others, -1)


def fused(qkv: jax.Array, mask: jax.Array | None, dropout: Dropout, heads: int) -> jax.Array:
    """Self-attention of all tokens: (B, T, 3 H K) in the order of ``by_groups`` -> (B, T, H K)."""
    batch, tokens, triple = qkv.shape
    mask = jnp.ones((batch, tokens), bool) if mask is None else mask
    keep = dropout.packed((batch, heads, tokens, tokens))

    def on_device(qkv: jax.Array, mask: jax.Array, keep: jax.Array | None) -> jax.Array:
        # imported here because Pallas is slow to import and runs on CPU do not need it
        from unimed_jax.models import fused_attention

        return fused_attention.attention(qkv, mask, keep, triple // 3 // heads, dropout.scale)

    spec = functools.partial(PartitionSpec, BATCH_AXES)
    return jax.shard_map(
        on_device,
        in_specs=(spec(None, _HEADS), spec(), spec(_HEADS)),
        out_specs=spec(None, _HEADS),
        check_vma=False,
    )(qkv, mask, keep)
