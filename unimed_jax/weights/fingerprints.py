"""Fingerprints of arrays, stored with a checkpoint: TensorStore does not notice a flipped bit.

The fingerprint is the sum of the array's words, each times an odd number that depends on its place,
modulo 2^32. A changed word always changes it. It is computed where the array is, and does not
depend on the mesh.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unimed_jax.distributed import sharding


def of(tree: Any) -> dict[str, str]:
    """Path -> ``DTYPE:SUM`` of every array of a tree. All hosts call it, with global arrays."""
    leaves = {
        sharding.path_string(path): jnp.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    sums = jax.device_get(_sums(leaves))
    return {name: f"{leaf.dtype}:{int(sums[name])}" for name, leaf in leaves.items()}


def differing(tree: Any, stored: Mapping[str, str]) -> list[str]:
    """Paths of the arrays of a tree that are not what was stored.

    An array without a stored fingerprint, or of another dtype than it was stored with, is skipped.
    """
    return [
        name
        for name, found in of(tree).items()
        if name in stored
        and stored[name] != found
        and stored[name].partition(":")[0] == found.partition(":")[0]
    ]


@jax.jit
def _sums(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _sum(leaf) for name, leaf in leaves.items()}


def _sum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        words = array.astype(jnp.uint32)
    else:
        unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
        words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    index = jnp.zeros(array.shape, jnp.uint32)
    for dim, size in enumerate(array.shape):  # no reshape, which would move shards
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, dim)
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)
