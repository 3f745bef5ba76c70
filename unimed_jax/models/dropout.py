"""Dropout with masks that do not depend on the mesh."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Zeroes each element with probability `rate` and scales the rest by `scale`, 1/(1 - rate).

    The rate is rounded to a multiple of 2⁻¹⁶, and the scale with it, so that the expectation is
    exact: two decisions share one 32-bit random word, which halves the cost of the generator. The
    mask is a function of key and shape alone, hence the same on every mesh (jax's partitionable
    threefry).

    Attributes:
        key: None means no dropout.
    """

    rate: float
    key: jax.Array | None

    @property
    def _threshold(self) -> int:
        return round(self.rate * 2**16)

    @property
    def scale(self) -> float:
        return 1.0 / (1.0 - self._threshold / 2**16)

    def _halves(self, shape: Sequence[int]) -> list[jax.Array] | None:
        """What stays of the first and the second half of the features, bool (..., ⌈n/2⌉) each."""
        if self.key is None or self._threshold == 0:
            return None
        words = jax.random.bits(self.key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
        # The low halves decide the first features, the high halves the others: to take them in
        # turns, as a bitcast would, moves every number to another lane of a TPU (docs/log/tpu.md).
        return [half >= self._threshold for half in (words & 0xFFFF, words >> 16)]

    def keep(self, shape: Sequence[int]) -> jax.Array | None:
        """Bool, True at what stays; None where everything does."""
        halves = self._halves(shape)
        return None if halves is None else jnp.concatenate(halves, axis=-1)[..., : shape[-1]]

    def packed(self, shape: Sequence[int]) -> jax.Array | None:
        """As `keep`, int8 (..., ⌈n/2⌉): bit 0 for the first half of the features, bit 1 for the
        second."""
        halves = self._halves(shape)
        if halves is None:
            return None
        first, second = (half.astype(jnp.int8) for half in halves)
        return first | (second << 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        keep = self.keep(x.shape)
        return x if keep is None else jnp.where(keep, x * self.scale, 0)
