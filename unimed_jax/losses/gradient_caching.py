"""A function of a batch's rows, some rows at a time, so that memory is that of a few rows.

This is gradient caching (GradCache, arXiv 2101.06983) when a loss over all rows follows: forwards,
only the results of the rows are kept; the gradient of the loss with respect to these is exact; and
backwards every microbatch is computed again and differentiated, its part of the parameters'
gradient being added up. Nothing is approximated: only the order of sums differs from one batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_rows(
    function: Callable[[Any, jax.Array], Any], rows: Any, rng: jax.Array, count: int
) -> Any:
    """``function(rows, rng)`` computed in ``count`` microbatches, each with a key of its own.

    Microbatch a holds the rows a, a + count, a + 2 count, ...: they are taken with a stride, so
    that each device finds its share of every microbatch among its own rows.

    Args:
      function: (tree of (n, ...) arrays, key) -> tree of (n, ...) arrays; row by row, each result
        depends on its row and the key alone. It may close over parameters.
      rows: tree of (B, ...) arrays.
      rng: key of the whole batch.
      count: divides B. 1: an ordinary call, whose activations are kept for the backward pass.

    Returns:
      Tree of (B, ...) arrays, in the order of ``rows``.
    """
    if count == 1:
        return function(rows, rng)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    # inside a loop nothing can be merged with the forward pass, so no barrier is needed
    again = jax.checkpoint(function, prevent_cse=False)
    keys = jax.random.split(rng, count)
    _, results = jax.lax.scan(
        lambda _, inputs: (None, again(*inputs)), None, (jax.tree.map(split, rows), keys)
    )
    return jax.tree.map(join, results)
