"""softmax(q kᵀ / √K) v: the plain form, and a fused kernel that keeps the scores on the chip.

Shape letters: B batch, H heads, Q query tokens, T tokens, K head width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from unimed_jax.models.config import Attention
from unimed_jax.models.dropout import dropout
from unimed_jax.sharding import BATCH_AXES, LOGICAL_TO_MESH

FUSED_FROM = 512
"""Tokens from which "auto" takes the fused kernel; provisional (docs/tpu.md)."""

_LANES = 128  # the kernel's lengths are multiples of this
_LONGEST_BLOCK = 640  # up to here all tokens of a head are one block


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
    form: Attention,
) -> jax.Array:
    """q (B, H, Q, K), k and v (B, H, T, K) -> (B, H, Q, K).

    Args:
        mask: bool (B, T), False at tokens nobody may attend to.
        dropout_rate: of attention weights.
        dropout_key: None for no dropout.
        form: "plain"; "fused", the kernel wherever it can be used; "auto", where it pays as well.
    """
    mesh = jax.sharding.get_abstract_mesh()
    drops = dropout_key is not None and dropout_rate > 0
    wanted = form == "fused" or (form == "auto" and q.shape[2] >= FUSED_FROM)
    if wanted and not drops and q.shape == k.shape and _has_kernel(mesh):
        return _fused(q, k, v, mask, mesh)
    return _plain(q, k, v, mask, dropout_rate, dropout_key)


def _plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    scores = jnp.einsum("bhqk,bhtk->bhqt", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    if mask is not None:
        # Finite, so that a row that is all padding gives a number instead of NaN.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bhqt,bhtk->bhqk", weights, v)


def _has_kernel(mesh: AbstractMesh) -> bool:
    """The kernel is TPU code, and must be told by a mesh which rows and heads a device holds."""
    return not mesh.empty and mesh.abstract_device.platform == "tpu"


def _fused(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, mesh: AbstractMesh
) -> jax.Array:
    """Flash attention (arXiv 2205.14135) by Pallas, each device its own rows and heads."""
    heads = LOGICAL_TO_MESH["heads"]
    rows = PartitionSpec(BATCH_AXES)
    each = PartitionSpec(BATCH_AXES, heads if q.shape[1] % mesh.shape[heads] == 0 else None)
    mask = jnp.ones((q.shape[0], q.shape[2]), bool) if mask is None else mask
    return jax.shard_map(
        fused_on_device, in_specs=(each, each, each, rows), out_specs=each, check_vma=False
    )(q, k, v, mask)


def fused_on_device(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """The kernel itself; tokens are padded to what it wants, and padding is masked."""
    # imported where it is used: Pallas is slow to import, and a run on CPU has no need of it
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    length = q.shape[2]
    padded = -(-length // _LANES) * _LANES
    if padded > _LONGEST_BLOCK:
        padded = -(-length // 512) * 512
    block = padded if padded <= _LONGEST_BLOCK else 512

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, padded - length), (0, 0)))

    # a token sees those of its own segment: all real ones are in segment 1
    segments = jnp.pad(mask, ((0, 0), (0, padded - length))).astype(jnp.int32)
    sizes = [field.name for field in dataclasses.fields(kernel.BlockSizes)]
    out = kernel.flash_attention(
        *map(pad, (q, k, v)),
        segment_ids=kernel.SegmentIds(jnp.ones_like(segments), segments),
        sm_scale=q.shape[-1] ** -0.5,
        block_sizes=kernel.BlockSizes(**dict.fromkeys(sizes, block) | {"block_b": 1}),
    )
    return out[:, :, :length]
