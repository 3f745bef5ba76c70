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
    draws = jax.lax.bitcast_convert_type(words, jnp.uint16)
    draws = draws.reshape(*words.shape[:-1], -1)[..., : x.shape[-1]]
    scale = 1.0 / (1.0 - threshold / 2**16)
    return jnp.where(draws >= threshold, x * scale, 0)
