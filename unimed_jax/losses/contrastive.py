"""Contrastive losses over the global batch, as pure functions of normalised embeddings.

Both sum over all pairs of an image and a text of the batch, and neither ever holds the B x B
matrix of their similarities. Where a mesh is set (``jax.set_mesh``), each of the n devices that
hold rows keeps its own b = B / n images while the texts go round in a ring, one block of b texts at
a time, as in SigLIP (arXiv 2303.15343, section 3.3); within a block, CHUNK texts are compared at a
time. What has to be known of a text from all devices (its log-partition; its gradient) travels with
it and is complete when it comes home. The backward pass goes round once more and computes the
similarities again.

Memory of one device, in float32 numbers of 4 bytes: about 3 b min(b, CHUNK) for similarities and
6 b e for embeddings of width e and their gradients. The number of devices is not in it. Each device
sends about n b (e + 2) numbers in the forward pass and n b (2 e + 2) in the backward pass.
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
"""Texts whose similarities to the images of a device are held at a time."""


def normalize(x: jax.Array) -> jax.Array:
    """x / max(||x||_2, 1e-12) along the last dim, in float32."""
    x = x.astype(jnp.float32)
    # the square root is taken of a clamped value: its gradient is finite at zero
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
      float32 ().
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
      float32 ().
    """
    return _loss(_SIGMOID, image_embeddings, text_embeddings, logit_scale, logit_bias)


class _Pairwise(NamedTuple):
    """A loss whose sum over pairs can be taken piece by piece.

    Pieces are logits l (n images, m texts) and ``pairs``, bool (n, m): the image and the text
    belong together. The loss of the batch is 1/B sum_i ``per_pair``(image term i, text term i).
    """

    start: float
    """Image and text terms before any piece has been seen."""
    terms: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    """(l, pairs) -> what a piece adds to the terms of its images (n,) and of its texts (m,)."""
    add: Callable[[jax.Array, jax.Array], jax.Array]
    """Terms of two pieces -> terms of both together."""
    per_pair: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """(image terms, text terms, logits of the pairs), each (b,) -> (b,)."""
    slope: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    """(l, pairs, complete image terms (n,), complete text terms (m,)) -> B dL/dl (n, m)."""


def _softmax_terms(logits: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
    del pairs
    return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)


def _softmax_slope(
    logits: jax.Array, pairs: jax.Array, of_images: jax.Array, of_texts: jax.Array
) -> jax.Array:
    over_texts = jnp.exp(logits - of_images[:, None])
    over_images = jnp.exp(logits - of_texts[None, :])
    return (over_texts + over_images) / 2 - pairs


_SOFTMAX = _Pairwise(
    start=-jnp.inf,
    terms=_softmax_terms,
    add=jnp.logaddexp,
    per_pair=lambda of_image, of_text, logit: (of_image + of_text) / 2 - logit,
    slope=_softmax_slope,
)


def _sigmoid_terms(logits: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
    losses = jax.nn.softplus(jnp.where(pairs, -logits, logits))
    return losses.sum(axis=1), jnp.zeros_like(losses[0])


def _sigmoid_slope(
    logits: jax.Array, pairs: jax.Array, of_images: jax.Array, of_texts: jax.Array
) -> jax.Array:
    del of_images, of_texts
    return jnp.where(pairs, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))


_SIGMOID = _Pairwise(
    start=0.0,
    terms=_sigmoid_terms,
    add=jnp.add,
    per_pair=lambda of_image, of_text, logit: of_image,
    slope=_sigmoid_slope,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(
    kind: _Pairwise, images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    return _forward(kind, images, texts, scale, bias)[0]


def _forward(
    kind: _Pairwise, images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The loss, and what the backward pass needs."""

    def on_device(
        images: jax.Array, texts: jax.Array, ids: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def visit(of_images: jax.Array, block: tuple) -> tuple[jax.Array, jax.Array]:
            texts, text_ids = block
            logits = scale * _similarities(images, texts) + bias
            more, of_texts = kind.terms(logits, ids[:, None] == text_ids[None, :])
            return kind.add(of_images, more), of_texts

        start = jnp.full(len(images), kind.start, jnp.float32)
        of_images, of_texts = _all_texts(visit, start, (texts, ids), start, kind.add)
        logits = scale * jnp.sum(images * texts, axis=-1) + bias
        total = _sum_over_devices(jnp.sum(kind.per_pair(of_images, of_texts, logits)))
        return total, of_images, of_texts

    rows, whole = BATCH_SPEC, PartitionSpec()
    total, of_images, of_texts = _on_each_device(
        on_device, (rows, rows, rows, whole, whole), (whole, rows, rows)
    )(images, texts, jnp.arange(len(images)), scale, bias)
    return total / len(images), (images, texts, scale, bias, of_images, of_texts)


def _backward(
    kind: _Pairwise, residuals: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    images, texts, scale, bias, of_images, of_texts = residuals

    def on_device(
        images: jax.Array,
        texts: jax.Array,
        of_images: jax.Array,
        of_texts: jax.Array,
        ids: jax.Array,
        scale: jax.Array,
        bias: jax.Array,
        factor: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def visit(sums: tuple, block: tuple) -> tuple[tuple, jax.Array]:
            texts, of_texts, text_ids = block
            similarities = _similarities(images, texts)
            logits = scale * similarities + bias
            pairs = ids[:, None] == text_ids[None, :]
            slope = factor * kind.slope(logits, pairs, of_images, of_texts)
            more = (
                scale * _product(slope, texts),
                jnp.sum(slope * similarities),
                jnp.sum(slope),
            )
            return jax.tree.map(jnp.add, sums, more), scale * _product(slope.T, images)

        start = (jnp.zeros_like(images), jnp.zeros_like(scale), jnp.zeros_like(bias))
        (d_images, d_scale, d_bias), d_texts = _all_texts(
            visit, start, (texts, of_texts, ids), jnp.zeros_like(texts), jnp.add
        )
        return d_images, d_texts, _sum_over_devices(d_scale), _sum_over_devices(d_bias)

    rows, whole = BATCH_SPEC, PartitionSpec()
    return _on_each_device(
        on_device, (rows,) * 5 + (whole,) * 3, (rows, rows, whole, whole)
    )(
        images, texts, of_images, of_texts, jnp.arange(len(images)), scale, bias,
        cotangent / len(images),
    )  # fmt: skip


_loss.defvjp(_forward, _backward)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # a TPU rounds the factors of float32 products to bfloat16 unless it is told not to
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _similarities(images: jax.Array, texts: jax.Array) -> jax.Array:
    """<u_i, w_j>, (n, e) and (m, e) -> (n, m)."""
    return _product(images, texts.T)


# --- every device sees every text -----------------------------------------------------------------

Visit = Callable[[Any, Any], tuple[Any, jax.Array]]
"""(sums, texts and what goes with them) -> (sums with these texts, what is left with each text)."""


def _on_each_device(function: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """``function`` of the rows of each device; of all rows at once where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    # the ring is written out by hand, so nothing is to be inferred of what varies over devices
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _num_devices() -> int:
    """Devices that hold different rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _sum_over_devices(x: jax.Array) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.psum(x, BATCH_AXES)


def _all_texts(
    visit: Visit,
    sums: Any,
    block: Any,
    left: jax.Array,
    add: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[Any, jax.Array]:
    """Visits the texts of all devices, each device beginning with its own.

    Args:
      visit: see Visit.
      sums: of this device, before any text.
      block: this device's texts and what goes with them, arrays of b rows.
      left: with each of its texts before any visit, b rows.
      add: what two visits have left with a text -> what both have.

    Returns:
      The sums over all texts, and what all devices have left with the texts of this one.
    """
    count = _num_devices()
    if count == 1:
        sums, new = _in_chunks(visit, sums, block)
        return sums, add(left, new)
    to_next = [(device, (device + 1) % count) for device in range(count)]

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.ppermute(x, BATCH_AXES, to_next), tree)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        sums, block, left = carry
        # both transfers are independent of this visit: they go on while it computes
        following, left = send(block), send(left)
        sums, new = _in_chunks(visit, sums, block)
        return (sums, following, add(left, new)), None

    (sums, block, left), _ = jax.lax.scan(step, (sums, block, left), length=count - 1)
    sums, new = _in_chunks(visit, sums, block)
    return sums, send(add(send(left), new))


def _in_chunks(visit: Visit, sums: Any, block: Any) -> tuple[Any, jax.Array]:
    """Visits a block CHUNK rows at a time, and those that remain."""
    rows = len(jax.tree.leaves(block)[0])
    if rows <= CHUNK:
        return visit(sums, block)
    whole = rows - rows % CHUNK
    chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, CHUNK, *x.shape[1:]), block)
    sums, left = jax.lax.scan(visit, sums, chunks)
    left = left.reshape(whole, *left.shape[2:])
    if whole == rows:
        return sums, left
    sums, last = visit(sums, jax.tree.map(lambda x: x[whole:], block))
    return sums, jnp.concatenate([left, last])
