"""A text tower on captions of all lengths, without most of the padding.

A batch is padded to the context length, but most captions are far shorter. In a train step, the
rows are sorted by length and processed in groups of equal size, one after the other; each group is
cut to the smallest of a few lengths, the *buckets*, that holds its longest caption. The program
contains the tower once per bucket and chooses one for every group (``lax.switch``). It is compiled
once, the hosts need not agree on anything, and the groups depend on the batch alone, not on the
mesh. Padding is masked, so nothing but rounding and the dropout masks differs from one pass over
padded rows.

The rows are sorted over the whole batch: were those of each device sorted, the longest caption of
any device would decide for all, and dropout masks would depend on the mesh.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from unimed_jax.distributed.sharding import BATCH_AXES, BATCH_SPEC
from unimed_jax.models.config import TextConfig
from unimed_jax.models.functional import Params

Encode = Callable[[Params, jax.Array, jax.Array], jax.Array]
"""(parameters, ids (n, T), dropout key) -> embeddings (n, E), for any T up to the context length.

Each row of the result depends on the same row of the ids, on the parameters and on the key only.
"""


def encode(
    tower: Encode, params: Params, ids: jax.Array, rng: jax.Array, text: TextConfig
) -> tuple[jax.Array, jax.Array]:
    """Embeds a batch in ``text.bucket_groups`` groups of rows of similar length.

    The forward pass keeps no activations: the backward pass embeds each group again and
    differentiates it, as gradient caching does (arXiv 2101.06983).

    Args:
      tower: the text tower.
      params: parameters of the tower, the only thing that gradients flow to.
      ids: int32 (B, T), T the last bucket, B a multiple of the groups.
      rng: random key of the batch; each group gets its own.
      text: sizes of the tower.

    Returns:
      float32 (B, E) in the order of ``ids``, and the number of groups in every bucket, int32 (K,).
    """
    sizes, groups = text.buckets, text.bucket_groups
    ids = _placed(ids, PartitionSpec())
    lengths = _lengths(ids, text.pad_id)
    order = jnp.argsort(lengths)  # stable, so that it is the same on every mesh
    rows = order.reshape(groups, -1)
    choice = jnp.sum(lengths[rows[:, -1], None] > jnp.array(sizes[:-1]), axis=1)
    grouped = _placed(ids[rows], PartitionSpec(None, BATCH_AXES))
    embed = functools.partial(_embed, tower, sizes, params)
    _, embeddings = jax.lax.scan(
        lambda _, group: (None, embed(*group)),
        None,
        (grouped, jax.random.split(rng, groups), choice),
    )
    # a row of embeddings is short, so every device may see all of them
    sorted_rows = _placed(embeddings.reshape(len(ids), -1), PartitionSpec())
    restored = _placed(sorted_rows[jnp.argsort(order)], BATCH_SPEC)
    return restored, jnp.sum(choice[:, None] == jnp.arange(len(sizes)), axis=0)


def _placed(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    no_mesh = jax.sharding.get_abstract_mesh().empty
    return x if no_mesh else jax.lax.with_sharding_constraint(x, spec)


def _lengths(ids: jax.Array, pad_id: int) -> jax.Array:
    """Tokens of each row up to the last that is not padding: (B, T) -> int32 (B,)."""
    return jnp.max(jnp.where(ids != pad_id, jnp.arange(1, ids.shape[1] + 1), 0), axis=1)


# Differentiating a switch would return the activations of all of its branches from the forward
# pass, with zeros for those that did not run.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _embed(
    tower: Encode,
    sizes: tuple[int, ...],
    params: Params,
    ids: jax.Array,
    key: jax.Array,
    choice: jax.Array,
) -> jax.Array:
    """The embeddings of a group, cut to the size of index ``choice``."""

    def at(size: int) -> Callable[..., jax.Array]:
        return lambda params, ids, key: tower(params, ids[:, :size], key)

    return jax.lax.switch(choice, [at(size) for size in sizes], params, ids, key)


_Inputs = tuple[Params, jax.Array, jax.Array, jax.Array]


def _forward(
    tower: Encode, sizes: tuple[int, ...], *inputs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _embed(tower, sizes, *inputs), inputs


def _backward(
    tower: Encode, sizes: tuple[int, ...], inputs: _Inputs, cotangent: jax.Array
) -> tuple[Params, None, None, None]:
    *operands, choice = inputs

    def at(size: int) -> Callable[..., Params]:
        def gradient(params: Params, ids: jax.Array, key: jax.Array, ct: jax.Array) -> Params:
            return jax.vjp(lambda params: tower(params, ids[:, :size], key), params)[1](ct)[0]

        return gradient

    branches = [at(size) for size in sizes]
    return jax.lax.switch(choice, branches, *operands, cotangent), None, None, None


_embed.defvjp(_forward, _backward)


# --- on the host ----------------------------------------------------------------------------------


def cut(ids: np.ndarray, text: TextConfig) -> np.ndarray:
    """Token ids without the columns beyond the smallest bucket that holds all rows.

    A model without buckets is cut to 32 tokens, 64, and so on.

    Args:
      ids: int32 (N, T), padded.
      text: sizes of the tower that will embed them.
    """
    columns = np.flatnonzero((ids != text.pad_id).any(axis=0))
    longest = columns[-1] + 1 if len(columns) else 1
    sizes = text.buckets or [32 << i for i in range(text.context_length.bit_length())]
    return ids[:, : next((size for size in sizes if size >= longest), ids.shape[1])]


def expected_groups(
    lengths: Sequence[int], shares: Sequence[float], text: TextConfig
) -> np.ndarray:
    """Number of groups of a large batch in every bucket, int (K,), the counts of ``encode``.

    Args:
      lengths: tokens of captions, ascending; longer ones than the last bucket are cut.
      shares: share of captions of each length.
      text: sizes of the tower.
    """
    groups = text.bucket_groups
    # the longest caption of group g lies at the quantile (g + 1) / groups; that of the last group
    # is the longest that there is
    quantiles = np.arange(1, groups + 1) / groups
    ends = np.searchsorted(np.cumsum(shares) / np.sum(shares), quantiles - 1e-9)
    longest = np.minimum(np.asarray(lengths)[ends], text.buckets[-1])
    return np.bincount(np.searchsorted(text.buckets, longest), minlength=len(text.buckets))
