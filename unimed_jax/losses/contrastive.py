"""Contrastive losses over the global batch, as pure functions of normalized embeddings.

Both losses sum over all image-text pairs of the batch without ever holding the B x B matrix of
similarities. With a mesh (``jax.set_mesh``), each of the n devices that hold rows keeps its
b = B / n images while the texts circulate in a ring, one block of b texts at a time, as in SigLIP
(arXiv 2303.15343, section 3.3); within a block, CHUNK texts are processed at a time. Values that a
text accumulates over all devices (its log-partition, its gradient) travel with it and are complete
when it is back on its device. The backward pass makes a second round and recomputes the
similarities.

Memory per device, in float32 numbers: about 3 b min(b, CHUNK) for similarities and 6 b e for
embeddings of width e and their gradients, independent of the number of devices. Each device sends
about n b (e + 2) numbers in the forward pass and n b (2 e + 2) in the backward pass.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unimed_jax.distributed.sharding import BATCH_AXES, BATCH_SPEC

CHUNK = 1024
"""Number of texts whose similarities to the images of a device are in memory at a time."""


def normalize(x: jax.Array) -> jax.Array:
    """x / max(||x||_2, 1e-12) along the last dim, in float32."""
    x = x.astype(jnp.float32)
    # clamped before the square root, so that the gradient is finite at zero
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def softmax_contrastive_loss(
    image_embeddings: jax.Array, text_embeddings: jax.Array, logit_scale: jax.Array
) -> jax.Array:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020).

    L = -1/(2B) sum_i [ log softmax_j(s <u_i, w_j>)_i + log softmax_j(s <w_i, u_j>)_i ]

    Args:
      image_embeddings: u, float32 (B, e), rows of unit length.
      text_embeddings: w, float32 (B, e), rows of unit length; row i belongs to image i.
      logit_scale: s, float32 (), the inverse temperature itself (not its logarithm).

    Returns:
      The loss, float32 ().
    """
    no_bias = jnp.zeros((), jnp.float32)
    return _loss(_SOFTMAX, image_embeddings, text_embeddings, logit_scale, no_bias)


def sigmoid_contrastive_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
) -> jax.Array:
    """Pairwise sigmoid loss (SigLIP, arXiv 2303.15343).

    L = -1/B sum_i sum_j log sigmoid(z_ij (s <u_i, w_j> + b)), z_ii = 1 and z_ij = -1 for i != j

    Args:
      image_embeddings: u, float32 (B, e), rows of unit length.
      text_embeddings: w, float32 (B, e), rows of unit length.
      logit_scale: s, float32 ().
      logit_bias: b, float32 ().

    Returns:
      The loss, float32 ().
    """
    return _loss(_SIGMOID, image_embeddings, text_embeddings, logit_scale, logit_bias)


class _Pairwise(NamedTuple):
    """A loss that can be accumulated over tiles of the similarity matrix.

    A tile has logits l (n images, m texts) and ``pairs``, bool (n, m), True where image and text
    belong together. The loss of the batch is 1/B sum_i ``per_pair``(image term i, text term i).
    """

    start: float
    """Initial value of the image and text terms."""
    terms: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    """(l, pairs) -> terms of the images (n,) and texts (m,) of a tile."""
    add: Callable[[jax.Array, jax.Array], jax.Array]
    """Terms of two tiles -> terms of both together."""
    per_pair: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """(image terms, text terms, logits of the pairs), each (b,) -> (b,)."""
    slope: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    """(l, pairs, final image terms (n,), final text terms (m,)) -> B dL/dl (n, m)."""


def _softmax_terms(logits: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
    del pairs
    return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)


def _softmax_slope(
    logits: jax.Array, pairs: jax.Array, image_terms: jax.Array, text_terms: jax.Array
) -> jax.Array:
    over_texts = jnp.exp(logits - image_terms[:, None])
    over_images = jnp.exp(logits - text_terms[None, :])
    return (over_texts + over_images) / 2 - pairs


_SOFTMAX = _Pairwise(
    start=-jnp.inf,
    terms=_softmax_terms,
    add=jnp.logaddexp,
    per_pair=lambda image_term, text_term, logit: (image_term + text_term) / 2 - logit,
    slope=_softmax_slope,
)


def _sigmoid_terms(logits: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
    losses = jax.nn.softplus(jnp.where(pairs, -logits, logits))
    return losses.sum(axis=1), jnp.zeros_like(losses[0])


def _sigmoid_slope(
    logits: jax.Array, pairs: jax.Array, image_terms: jax.Array, text_terms: jax.Array
) -> jax.Array:
    del image_terms, text_terms
    return jnp.where(pairs, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))


_SIGMOID = _Pairwise(
    start=0.0,
    terms=_sigmoid_terms,
    add=jnp.add,
    per_pair=lambda image_term, text_term, logit: image_term,
    slope=_sigmoid_slope,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    pairwise: _Pairwise, images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    return _forward(pairwise, images, texts, scale, bias)[0]


def _forward(
    pairwise: _Pairwise, images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns the loss and the residuals of the backward pass."""

    def on_device(
        images: jax.Array, texts: jax.Array, ids: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def accumulate(image_terms: jax.Array, block: tuple) -> tuple[jax.Array, jax.Array]:
            texts, text_ids = block
            logits = scale * _similarities(images, texts) + bias
            more, text_terms = pairwise.terms(logits, ids[:, None] == text_ids[None, :])
            return pairwise.add(image_terms, more), text_terms

        start = jnp.full(len(images), pairwise.start, jnp.float32)
        image_terms, text_terms = _all_texts(accumulate, start, (texts, ids), start, pairwise.add)
        logits = scale * jnp.sum(images * texts, axis=-1) + bias
        total = _sum_over_devices(jnp.sum(pairwise.per_pair(image_terms, text_terms, logits)))
        return total, image_terms, text_terms

    rows, replicated = BATCH_SPEC, PartitionSpec()
    total, image_terms, text_terms = _on_each_device(
        on_device, (rows, rows, rows, replicated, replicated), (replicated, rows, rows)
    )(images, texts, jnp.arange(len(images)), scale, bias)
    return total / len(images), (images, texts, scale, bias, image_terms, text_terms)


def _backward(
    pairwise: _Pairwise, residuals: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    images, texts, scale, bias, image_terms, text_terms = residuals

    def on_device(
        images: jax.Array,
        texts: jax.Array,
        image_terms: jax.Array,
        text_terms: jax.Array,
        ids: jax.Array,
        scale: jax.Array,
        bias: jax.Array,
        factor: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def accumulate(sums: tuple, block: tuple) -> tuple[tuple, jax.Array]:
            texts, text_terms, text_ids = block
            similarities = _similarities(images, texts)
            logits = scale * similarities + bias
            pairs = ids[:, None] == text_ids[None, :]
            slope = factor * pairwise.slope(logits, pairs, image_terms, text_terms)
            more = (
                scale * _product(slope, texts),
                jnp.sum(slope * similarities),
                jnp.sum(slope),
            )
            return jax.tree.map(jnp.add, sums, more), scale * _product(slope.T, images)

        start = (jnp.zeros_like(images), jnp.zeros_like(scale), jnp.zeros_like(bias))
        (d_images, d_scale, d_bias), d_texts = _all_texts(
            accumulate, start, (texts, text_terms, ids), jnp.zeros_like(texts), jnp.add
        )
        return d_images, d_texts, _sum_over_devices(d_scale), _sum_over_devices(d_bias)

    rows, replicated = BATCH_SPEC, PartitionSpec()
    return _on_each_device(
        on_device, (rows,) * 5 + (replicated,) * 3, (rows, rows, replicated, replicated)
    )(
        images, texts, image_terms, text_terms, jnp.arange(len(images)), scale, bias,
        cotangent / len(images),
    )  # fmt: skip


_loss.defvjp(_forward, _backward)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # by default, a TPU rounds the factors of float32 products to bfloat16
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _similarities(images: jax.Array, texts: jax.Array) -> jax.Array:
    """<u_i, w_j>, (n, e) and (m, e) -> (n, m)."""
    return _product(images, texts.T)


# --- the ring over devices ------------------------------------------------------------------------

Accumulate = Callable[[Any, Any], tuple[Any, jax.Array]]
"""(sums, block of texts) -> (sums including the block, contribution to each text)."""


def _on_each_device(function: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """Maps ``function`` over the rows of each device; without a mesh, returns it unchanged."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    # the communication is explicit, so JAX need not check which values vary over devices
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _num_devices() -> int:
    """Number of devices that hold different rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _sum_over_devices(x: jax.Array) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.psum(x, BATCH_AXES)


def _all_texts(
    accumulate: Accumulate,
    sums: Any,
    block: Any,
    text_sums: jax.Array,
    add: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[Any, jax.Array]:
    """Accumulates over the texts of all devices; each device starts with its local texts.

    Args:
      accumulate: see ``Accumulate``.
      sums: initial sums of this device.
      block: local texts and their data, arrays of b rows.
      text_sums: initial values of the sums per local text, b rows.
      add: adds two contributions to a text.

    Returns:
      The sums over all texts, and the sums per local text over all devices.
    """
    count = _num_devices()
    if count == 1:
        sums, new = _in_chunks(accumulate, sums, block)
        return sums, add(text_sums, new)
    to_next = [(device, (device + 1) % count) for device in range(count)]

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.ppermute(x, BATCH_AXES, to_next), tree)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        sums, block, text_sums = carry
        # both transfers are independent of this computation and overlap with it
        following, text_sums = send(block), send(text_sums)
        sums, new = _in_chunks(accumulate, sums, block)
        return (sums, following, add(text_sums, new)), None

    (sums, block, text_sums), _ = jax.lax.scan(step, (sums, block, text_sums), length=count - 1)
    sums, new = _in_chunks(accumulate, sums, block)
    return sums, send(add(send(text_sums), new))


def _in_chunks(accumulate: Accumulate, sums: Any, block: Any) -> tuple[Any, jax.Array]:
    """Accumulates over a block, CHUNK rows at a time."""
    rows = len(jax.tree.leaves(block)[0])
    if rows <= CHUNK:
        return accumulate(sums, block)
    full = rows - rows % CHUNK
    chunks = jax.tree.map(lambda x: x[:full].reshape(-1, CHUNK, *x.shape[1:]), block)
    sums, new = jax.lax.scan(accumulate, sums, chunks)
    new = new.reshape(full, *new.shape[2:])
    if full == rows:
        return sums, new
    sums, last = accumulate(sums, jax.tree.map(lambda x: x[full:], block))
    return sums, jnp.concatenate([new, last])
