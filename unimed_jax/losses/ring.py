"""Sums over all texts of the global batch, without ever holding more than a block of them.

Each of the n devices that hold rows keeps its b = B / n images while the texts circulate in a ring,
one block of b texts at a time, as in SigLIP (arXiv 2303.15343, section 3.3); within a block, CHUNK
texts are processed at a time. Values that a text accumulates over all devices (its log-partition,
its gradient) travel with it and are complete when it is back on its device.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unimed_jax.distributed.sharding import BATCH_AXES

CHUNK = 1024
"""Number of texts whose similarities to the images of a device are in memory at a time."""

Accumulate = Callable[[Any, Any], tuple[Any, Any]]
"""(sums, block of texts) -> (sums including the block, contributions to each text)."""


def on_each_device(function: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """Maps ``function`` over the rows of each device; without a mesh, returns it unchanged."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    # the communication is explicit, so JAX need not check which values vary over devices
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _num_devices() -> int:
    """Number of devices that hold different rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def sum_over_devices(x: jax.Array) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.psum(x, BATCH_AXES)


def all_texts(
    accumulate: Accumulate,
    sums: Any,
    block: Any,
    text_sums: Any,
    add: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
    """Accumulates over the texts of all devices; each device starts with its local texts.

    Args:
      accumulate: see ``Accumulate``.
      sums: initial sums of this device.
      block: local texts and their data, arrays of b rows.
      text_sums: initial values of the sums per local text, arrays of b rows.
      add: adds two contributions to texts.

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


def _in_chunks(accumulate: Accumulate, sums: Any, block: Any) -> tuple[Any, Any]:
    """Accumulates over a block, CHUNK rows at a time."""
    rows = len(jax.tree.leaves(block)[0])
    if rows <= CHUNK:
        return accumulate(sums, block)
    full = rows - rows % CHUNK
    chunks = jax.tree.map(lambda x: x[:full].reshape(-1, CHUNK, *x.shape[1:]), block)
    sums, new = jax.lax.scan(accumulate, sums, chunks)
    new = jax.tree.map(lambda x: x.reshape(full, *x.shape[2:]), new)
    if full == rows:
        return sums, new
    sums, last = accumulate(sums, jax.tree.map(lambda x: x[full:], block))
    return sums, jax.tree.map(lambda *parts: jnp.concatenate(parts), new, last)
