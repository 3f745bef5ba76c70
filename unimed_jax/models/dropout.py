"""Dropout with masks that do not depend on the mesh."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Zeroes each element with probability ``rate`` and scales the rest by ``scale``, 1/(1 - rate).

    Two elements share one 32-bit random word, which halves the cost of the generator. The rate is
    therefore rounded to a multiple of 2⁻¹⁶; the scale follows the rounded rate, so that the
    expectation is exact. The mask depends on key and shape alone and so is the same on every mesh
    (partitionable threefry).

    Attributes:
      rate: dropout probability, in [0, 1).
      key: random key; None disables dropout.
    """

    rate: float
    key: jax.Array | None

    @property
    def _threshold(self) -> int:
        return round(self.rate * 2**16)

    @property
    def scale(self) -> float:
        """Factor of the elements that are kept."""
        return 1.0 / (1.0 - self._threshold / 2**16)

    def _halves(self, shape: Sequence[int]) -> list[jax.Array] | None:
        """Masks of the first and the second half of the features, bool (..., ⌈n/2⌉) each."""
        if self.key is None or self._threshold == 0:
            return None
        words = jax.random.bits(self.key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
        # The low halves are for the first half of the features, the high halves for the second.
        # Interleaving them, as a bitcast would, moves every number to another lane of a TPU
        # (docs/log/tpu.md).
        return [half >= self._threshold for half in (words & 0xFFFF, words >> 16)]

    def keep(self, shape: Sequence[int]) -> jax.Array | None:
        """The mask, bool of the given shape, True where kept; None if nothing is dropped."""
        halves = self._halves(shape)
        return None if halves is None else jnp.concatenate(halves, axis=-1)[..., : shape[-1]]

    def packed(self, shape: Sequence[int]) -> jax.Array | None:
        """The mask of ``keep`` as int8 (..., ⌈n/2⌉).

        Bit 0 is for the first half of the features, bit 1 for the second.
        """
        halves = self._halves(shape)
        if halves is None:
            return None
        first, second = (half.astype(jnp.int8) for half in halves)
        return first | (second << 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        keep = self.keep(x.shape)
        return x if keep is None else jnp.where(keep, x * self.scale, 0)
