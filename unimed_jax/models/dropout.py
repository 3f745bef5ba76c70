"""Dropout with masks that do not depend on the mesh."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest by 1/(1 - rate).

    `key` None means no dropout. The rate is rounded to a multiple of 2⁻¹⁶, and the scale with it,
    so that the expectation is exact: two decisions share one 32-bit random word, which halves the
    cost of the generator. The mask is a function of key and shape alone, hence the same on every
    mesh (jax's partitionable threefry).
    """
    threshold = round(rate * 2**16)
    if key is None or threshold == 0:
        return x
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    # The low halves decide the first features, the high halves the others: to take them in turns,
    # as a bitcast would, moves every number to another lane of a TPU (docs/tpu.md).
    halves = [words & 0xFFFF, words >> 16]
    keep = jnp.concatenate([half >= threshold for half in halves], axis=-1)[..., : x.shape[-1]]
    scale = 1.0 / (1.0 - threshold / 2**16)
    return jnp.where(keep, x * scale, 0)
