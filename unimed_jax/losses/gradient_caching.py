"""Maps a function over a batch in microbatches, with the memory of one microbatch.

Followed by a loss over all rows, this is gradient caching (GradCache, arXiv 2101.06983). The
forward pass keeps only the results of the rows, so the gradient of the loss with respect to them is
exact. The backward pass recomputes and differentiates one microbatch after the other and sums their
gradients. Nothing is approximated; only the order of summation differs from that of one batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_rows(
    function: Callable[[Any, jax.Array], Any], rows: Any, rng: jax.Array, count: int
) -> Any:
    """Computes ``function(rows, rng)`` in ``count`` microbatches, each with its random key.

    Microbatch a holds the rows a, a + count, a + 2 count, ...: with a stride, so that each device
    already holds its share of every microbatch.

    Args:
      function: (tree of (n, ...) arrays, key) -> tree of (n, ...) arrays. Each row of the result
        may depend only on the same row of the input and on the key. It may close over parameters.
      rows: tree of (B, ...) arrays.
      rng: random key of the batch.
      count: number of microbatches, a divisor of B; 1: an ordinary call that keeps its activations.

    Returns:
      Tree of (B, ...) arrays, in the order of ``rows``.
    """
    if count == 1:
        return function(rows, rng)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    # inside a loop, XLA cannot merge the recomputation with the forward pass: no barrier needed
    rematerialized = jax.checkpoint(function, prevent_cse=False)
    keys = jax.random.split(rng, count)
    _, results = jax.lax.scan(
        lambda _, inputs: (None, rematerialized(*inputs)), None, (jax.tree.map(split, rows), keys)
    )
    return jax.tree.map(join, results)
