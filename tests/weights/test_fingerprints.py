"""Fingerprints of arrays: those of NumPy, on any mesh, and changed by any bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unimed_jax.weights import fingerprints


def reference(array: np.ndarray) -> int:
    bits = array.view(f"uint{8 * array.itemsize}") if array.dtype != bool else array
    words = [int(word) for word in bits.ravel()]
    return sum(word * (2 * place + 1) for place, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 8)])
def test_they_are_those_of_numpy_and_of_any_mesh(dtype, shape):
    values = np.random.default_rng(0).normal(0, 50, shape)
    array = np.asarray(jnp.asarray(values).astype(dtype))
    expected = {"a": f"{dtype}:{reference(array)}"}
    assert fingerprints.of({"a": array}) == expected
    if array.ndim == 3:
        mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
        placed = jax.device_put(array, NamedSharding(mesh, P(None, "x", "y")))
        assert fingerprints.of({"a": placed}) == expected


def test_what_differs_is_named_and_what_was_cast_is_skipped():
    tree = {"a": jnp.arange(6.0), "b": {"c": jnp.zeros(3)}}
    stored = fingerprints.of(tree)
    assert not fingerprints.differing(tree, stored)
    tree["b"]["c"] = tree["b"]["c"].at[2].set(-0.0)  # one bit
    assert fingerprints.differing(tree, stored) == ["b/c"]
    assert not fingerprints.differing({"a": tree["a"].astype(jnp.bfloat16)}, stored)
    assert not fingerprints.differing({"new": jnp.ones(1)}, stored)
