"""Contrastive losses over the global batch, as pure functions of normalized embeddings.

All losses sum over all image-text pairs of the batch without ever holding the B x B matrix of
similarities: with a mesh (``jax.set_mesh``), the texts circulate among the devices (``ring``). The
backward pass makes a second round and recomputes the similarities.

Memory per device, in float32 numbers: about 3 b min(b, CHUNK) for similarities and 6 b e for
embeddings of width e and their gradients, independent of the number of devices. Each device sends
about n b (e + 2) numbers in the forward pass and n b (2 e + 2) in the backward pass.

Label sets
----------
In a batch of labelled images, many of the "negatives" of an image show the same finding. With label
sets (B, L) and ``same_label``, this is told to the loss. Let o_ij in [0, 1] be the overlap
(intersection over union) of the label sets of image i and text j, and o_ii = 1.

============  ======================================================================================
``negative``  CLIP: every other text of the batch is a negative; label sets are not looked at
``ignored``   pairs with equal label sets are left out of the negatives (KEEP, arXiv 2412.13126)
``positive``  pairs with equal label sets are positives (UniCL, arXiv 2204.03610)
``overlap``   every pair is positive to the degree o_ij (MGLL, arXiv 2511.15943)
============  ======================================================================================

The label sets travel with the texts, L numbers per text, and a device holds four more tiles.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unimed_jax.distributed.sharding import BATCH_SPEC
from unimed_jax.losses import ring

SAME_LABEL = ("negative", "ignored", "positive", "overlap")
"""What pairs with common labels can be; see the module docstring."""


def normalize(x: jax.Array) -> jax.Array:
    """x / max(||x||_2, 1e-12) along the last dim, in float32."""
    x = x.astype(jnp.float32)
    # clamped before the square root, so that the gradient is finite at zero
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def softmax_contrastive_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    logit_scale: jax.Array,
    *,
    labels: jax.Array | None = None,
    same_label: str = "negative",
) -> jax.Array:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020), with targets by label sets.

    With the logits l_ij = s <u_i, w_j>, targets t_ij and a mask m_ij of the pairs that count,

    L = 1/(2B) sum_i [ log sum_j m_ij exp(l_ij) - sum_j t_ij l_ij / sum_j t_ij ] + the same over
    columns.

    ============  ==================================  ============================
    same_label    t_ij                                m_ij
    ============  ==================================  ============================
    ``negative``  1 if i = j, else 0                  1
    ``ignored``   1 if i = j, else 0                  0 if o_ij = 1, i != j; else 1
    ``positive``  1 if o_ij = 1, else 0               1
    ``overlap``   o_ij                                1
    ============  ==================================  ============================

    Args:
      image_embeddings: u, float32 (B, e), rows of unit length.
      text_embeddings: w, float32 (B, e), rows of unit length; row i belongs to image i.
      logit_scale: s, float32 (), the inverse temperature itself (not its logarithm).
      labels: uint32 (B, L), the labels of each pair, as numbers above 0, each once; filled up with
        0. A pair without any is like no other. Not needed for ``negative``.
      same_label: one of SAME_LABEL.

    Returns:
      The loss, float32 ().
    """
    pairwise = _SOFTMAX if same_label in ("negative", "ignored") else _SOFTMAX_TARGETS
    no_bias = jnp.zeros((), jnp.float32)
    return _loss(
        pairwise, same_label, image_embeddings, text_embeddings, logit_scale, no_bias, labels
    )


def sigmoid_contrastive_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    *,
    labels: jax.Array | None = None,
    same_label: str = "negative",
) -> jax.Array:
    """Pairwise sigmoid loss (SigLIP, arXiv 2303.15343), with targets by label sets.

    L = 1/B sum_i sum_j m_ij (softplus(l_ij) - t_ij l_ij), l_ij = s <u_i, w_j> + b

    with t_ij and m_ij as in ``softmax_contrastive_loss``: the binary cross-entropy between t_ij and
    sigmoid(l_ij).

    Args:
      image_embeddings: u, float32 (B, e), rows of unit length.
      text_embeddings: w, float32 (B, e), rows of unit length.
      logit_scale: s, float32 ().
      logit_bias: b, float32 ().
      labels, same_label: as in ``softmax_contrastive_loss``.

    Returns:
      The loss, float32 ().
    """
    return _loss(
        _SIGMOID, same_label, image_embeddings, text_embeddings, logit_scale, logit_bias, labels
    )


def overlaps(labels: jax.Array, others: jax.Array) -> jax.Array:
    """Intersection over union of label sets, (n, L), (m, L) -> float32 (n, m)."""
    common = sum(
        jnp.any((labels[:, None, k, None] == others[None]) & (others[None] > 0), axis=-1)
        for k in range(labels.shape[1])
    )
    sizes, other_sizes = (jnp.sum(x > 0, axis=-1) for x in (labels, others))
    union = sizes[:, None] + other_sizes[None, :] - common
    return common / jnp.maximum(union, 1).astype(jnp.float32)


# --- the losses by tiles --------------------------------------------------------------------------


class _Tile(NamedTuple):
    """Some of the image-text pairs of the batch.

    Attributes:
      same_label: one of SAME_LABEL.
      logits: l_ij, float32 (n images, m texts).
      pairs: bool (n, m), True where image and text belong together.
      overlap: o_ij, float32 (n, m); without label sets, 1 where ``pairs`` and 0 elsewhere.
    """

    same_label: str
    logits: jax.Array
    pairs: jax.Array
    overlap: jax.Array

    @property
    def targets(self) -> jax.Array:
        """t_ij (n, m), bool or float32."""
        if self.same_label == "overlap":
            return self.overlap
        return self.overlap == 1 if self.same_label == "positive" else self.pairs

    def kept(self, values: jax.Array, other: float) -> jax.Array:
        """``values`` (n, m) where m_ij = 1, else ``other``."""
        if self.same_label != "ignored":
            return values
        return jnp.where(self.pairs | (self.overlap < 1), values, other)


class _Term(NamedTuple):
    """A number of each row or column of the similarity matrix that tiles contribute to."""

    start: float
    add: Callable[[jax.Array, jax.Array], jax.Array]


_SUM, _LOG_SUM_EXP = _Term(0.0, jnp.add), _Term(-jnp.inf, jnp.logaddexp)

Terms = tuple[jax.Array, ...]


class _Pairwise(NamedTuple):
    """A loss over tiles: 1/B sum_i ``per_pair``(terms of image i, terms of text i)."""

    image_terms: tuple[_Term, ...]
    text_terms: tuple[_Term, ...]
    terms: Callable[[_Tile], tuple[Terms, Terms]]
    """Tile -> terms of its images, each (n,), and of its texts, each (m,)."""
    per_pair: Callable[[Terms, Terms, jax.Array], jax.Array]
    """(image terms, text terms, logits of the pairs), each (b,) -> (b,)."""
    slope: Callable[[_Tile, Terms, Terms], jax.Array]
    """(tile, final image terms, final text terms) -> B dL/dl, float32 (n, m)."""


def _softmax_terms(tile: _Tile) -> tuple[Terms, Terms]:
    logits = tile.kept(tile.logits, -jnp.inf)
    return (jax.nn.logsumexp(logits, axis=1),), (jax.nn.logsumexp(logits, axis=0),)


def _softmax_slope(tile: _Tile, image_terms: Terms, text_terms: Terms) -> jax.Array:
    return _probabilities(tile, image_terms, text_terms) / 2 - tile.pairs


def _probabilities(tile: _Tile, image_terms: Terms, text_terms: Terms) -> jax.Array:
    """The softmax over texts plus that over images."""
    logits = tile.kept(tile.logits, -jnp.inf)
    return jnp.exp(logits - image_terms[0][:, None]) + jnp.exp(logits - text_terms[0][None, :])


# the own pair is the only target
_SOFTMAX = _Pairwise(
    image_terms=(_LOG_SUM_EXP,),
    text_terms=(_LOG_SUM_EXP,),
    terms=_softmax_terms,
    per_pair=lambda image_terms, text_terms, logits: (image_terms[0] + text_terms[0]) / 2 - logits,
    slope=_softmax_slope,
)


def _targets_terms(tile: _Tile) -> tuple[Terms, Terms]:
    logits, targets = tile.logits, tile.targets
    over_texts, over_images = (
        (jax.nn.logsumexp(logits, axis), jnp.sum(targets * logits, axis), jnp.sum(targets, axis))
        for axis in (1, 0)
    )
    return over_texts, over_images


def _targets_per_pair(image_terms: Terms, text_terms: Terms, logits: jax.Array) -> jax.Array:
    del logits
    of_image, of_text = (
        log_sum - weighted / weight for log_sum, weighted, weight in (image_terms, text_terms)
    )
    return (of_image + of_text) / 2


def _targets_slope(tile: _Tile, image_terms: Terms, text_terms: Terms) -> jax.Array:
    shares = 1 / image_terms[2][:, None] + 1 / text_terms[2][None, :]
    return (_probabilities(tile, image_terms, text_terms) - tile.targets * shares) / 2


_SOFTMAX_TARGETS = _Pairwise(
    image_terms=(_LOG_SUM_EXP, _SUM, _SUM),  # of exp l, of t l, of t
    text_terms=(_LOG_SUM_EXP, _SUM, _SUM),
    terms=_targets_terms,
    per_pair=_targets_per_pair,
    slope=_targets_slope,
)


def _sigmoid_terms(tile: _Tile) -> tuple[Terms, Terms]:
    logits, targets = tile.logits, tile.targets
    if targets.dtype == bool:
        losses = jax.nn.softplus(jnp.where(targets, -logits, logits))
    else:
        losses = targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)
    return (tile.kept(losses, 0.0).sum(axis=1),), ()


def _sigmoid_slope(tile: _Tile, image_terms: Terms, text_terms: Terms) -> jax.Array:
    del image_terms, text_terms
    logits, targets = tile.logits, tile.targets
    if targets.dtype == bool:
        slope = jnp.where(targets, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
    else:
        slope = (1 - targets) * jax.nn.sigmoid(logits) - targets * jax.nn.sigmoid(-logits)
    return tile.kept(slope, 0.0)


_SIGMOID = _Pairwise(
    image_terms=(_SUM,),
    text_terms=(),
    terms=_sigmoid_terms,
    per_pair=lambda image_terms, text_terms, logits: image_terms[0],
    slope=_sigmoid_slope,
)


# --- sums over the batch --------------------------------------------------------------------------


def _loss(
    pairwise: _Pairwise,
    same_label: str,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    labels: jax.Array | None,
) -> jax.Array:
    if same_label == "negative":
        labels = None
    elif labels is None:
        raise ValueError(f"same_label={same_label!r} needs the labels of the pairs")
    return _accumulated(pairwise, same_label, images, texts, scale, bias, labels)


def _tile(
    same_label: str,
    logits: jax.Array,
    pairs: jax.Array,
    labels: jax.Array | None,
    text_labels: jax.Array | None,
) -> _Tile:
    overlap = pairs.astype(jnp.float32)
    if labels is not None and text_labels is not None:
        overlap = jnp.maximum(overlap, overlaps(labels, text_labels))
    return _Tile(same_label, logits, pairs, overlap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _accumulated(
    pairwise: _Pairwise,
    same_label: str,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    labels: jax.Array | None,
) -> jax.Array:
    return _forward(pairwise, same_label, images, texts, scale, bias, labels)[0]


def _forward(
    pairwise: _Pairwise,
    same_label: str,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    labels: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    """Returns the loss and the residuals of the backward pass."""

    def add(of: tuple[_Term, ...], terms: Terms, more: Terms) -> Terms:
        return tuple(t.add(x, y) for t, x, y in zip(of, terms, more, strict=True))

    def on_device(
        images: jax.Array,
        texts: jax.Array,
        ids: jax.Array,
        labels: jax.Array | None,
        scale: jax.Array,
        bias: jax.Array,
    ) -> tuple[jax.Array, Terms, Terms]:
        def accumulate(image_terms: Terms, block: tuple) -> tuple[Terms, Terms]:
            texts, text_ids, text_labels = block
            logits = scale * _similarities(images, texts) + bias
            pairs = ids[:, None] == text_ids[None, :]
            tile = _tile(same_label, logits, pairs, labels, text_labels)
            more, text_terms = pairwise.terms(tile)
            return add(pairwise.image_terms, image_terms, more), text_terms

        image_terms, text_terms = ring.all_texts(
            accumulate,
            tuple(jnp.full(len(images), term.start) for term in pairwise.image_terms),
            (texts, ids, labels),
            tuple(jnp.full(len(texts), term.start) for term in pairwise.text_terms),
            functools.partial(add, pairwise.text_terms),
        )
        logits = scale * jnp.sum(images * texts, axis=-1) + bias
        total = jnp.sum(pairwise.per_pair(image_terms, text_terms, logits))
        return ring.sum_over_devices(total), image_terms, text_terms

    rows, replicated = BATCH_SPEC, PartitionSpec()
    total, image_terms, text_terms = ring.on_each_device(
        on_device, (rows,) * 4 + (replicated,) * 2, (replicated, rows, rows)
    )(images, texts, jnp.arange(len(images)), labels, scale, bias)
    residuals = (images, texts, labels, scale, bias, image_terms, text_terms)
    return total / len(images), residuals


def _backward(
    pairwise: _Pairwise, same_label: str, residuals: tuple, cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    images, texts, labels, scale, bias, image_terms, text_terms = residuals

    def on_device(
        images: jax.Array,
        texts: jax.Array,
        image_terms: Terms,
        text_terms: Terms,
        ids: jax.Array,
        labels: jax.Array | None,
        scale: jax.Array,
        bias: jax.Array,
        factor: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def accumulate(sums: tuple, block: tuple) -> tuple[tuple, jax.Array]:
            texts, text_terms, text_ids, text_labels = block
            similarities = _similarities(images, texts)
            logits = scale * similarities + bias
            pairs = ids[:, None] == text_ids[None, :]
            tile = _tile(same_label, logits, pairs, labels, text_labels)
            slope = factor * pairwise.slope(tile, image_terms, text_terms)
            more = (
                scale * _product(slope, texts),
                jnp.sum(slope * similarities),
                jnp.sum(slope),
            )
            return jax.tree.map(jnp.add, sums, more), scale * _product(slope.T, images)

        start = (jnp.zeros_like(images), jnp.zeros_like(scale), jnp.zeros_like(bias))
        (d_images, d_scale, d_bias), d_texts = ring.all_texts(
            accumulate, start, (texts, text_terms, ids, labels), jnp.zeros_like(texts), jnp.add
        )
        return d_images, d_texts, ring.sum_over_devices(d_scale), ring.sum_over_devices(d_bias)

    rows, replicated = BATCH_SPEC, PartitionSpec()
    gradients = ring.on_each_device(
        on_device, (rows,) * 6 + (replicated,) * 3, (rows, rows, replicated, replicated)
    )(
        images, texts, image_terms, text_terms, jnp.arange(len(images)), labels, scale, bias,
        cotangent / len(images),
    )  # fmt: skip
    return *gradients, None


_accumulated.defvjp(_forward, _backward)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # by default, a TPU rounds the factors of float32 products to bfloat16
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _similarities(images: jax.Array, texts: jax.Array) -> jax.Array:
    """<u_i, w_j>, (n, e) and (m, e) -> (n, m)."""
    return _product(images, texts.T)
