"""Random number streams for modules that are built while a program is traced."""

import jax
from flax import nnx


class _CountedStream(nnx.RngStream):
    """A stream whose count is a Python integer.

    NNX counts with an array. Under ``jit`` that is a tracer, and each update of it makes JAX write
    an error message that walks through all operations traced so far: building UNETR++ took 8 times
    as long.
    """

    def __init__(self, key: jax.Array) -> None:
        super().__init__(key, tag="default")
        self._num_keys = 0

    def __call__(self) -> jax.Array:
        """The next key, the one that ``nnx.RngStream`` gives."""
        key = jax.random.fold_in(self.key[...], self._num_keys)
        self._num_keys += 1
        return key


def random_streams(key: jax.Array) -> nnx.Rngs:
    """``nnx.Rngs(key)`` with the same keys, whose use is cheap to trace.

    Args:
      key: a typed key, as ``jax.random.key`` makes it.
    """
    rngs = nnx.Rngs(key)
    rngs.default = _CountedStream(key)  # type: ignore[attr-defined]  # streams are attributes
    return rngs
