"""Contrastive losses over the global batch, as pure functions of normalised embeddings.

Under ``jax.jit`` the rows of both embeddings are divided over the devices; the compiler gathers
what the B x B similarities need, and differentiating the one global expression gives the exact
global gradient.
"""

import jax
import jax.numpy as jnp


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
    logits = logit_scale * image_embeddings @ text_embeddings.T
    matched = jnp.diagonal(logits)
    per_image = jax.nn.logsumexp(logits, axis=1) - matched
    per_text = jax.nn.logsumexp(logits, axis=0) - matched
    return jnp.mean(per_image + per_text) / 2


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
    logits = logit_scale * image_embeddings @ text_embeddings.T + logit_bias
    signs = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / logits.shape[0]
