"""Losses and their gradients on eight devices against closed forms in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import expit, logsumexp, softmax

from unimed_jax.distributed import sharding
from unimed_jax.losses import contrastive

B, E = 32, 12


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal((2, B, E))
    return u / np.linalg.norm(u, axis=1, keepdims=True), w / np.linalg.norm(
        w, axis=1, keepdims=True
    )


def softmax_reference(u, w, s):
    """L and dL/du, dL/dw, dL/ds of the symmetric InfoNCE, all float64."""
    logits = s * u @ w.T
    diagonal = np.diagonal(logits)
    value = np.mean(logsumexp(logits, axis=1) + logsumexp(logits, axis=0) - 2 * diagonal) / 2
    d = (softmax(logits, axis=1) + softmax(logits, axis=0) - 2 * np.eye(B)) / (2 * B)
    return value, s * d @ w, s * d.T @ u, np.sum(d * (u @ w.T))


def sigmoid_reference(u, w, s, b):
    """L and dL/du, dL/dw, dL/ds, dL/db of the pairwise sigmoid loss, all float64."""
    z = 2 * np.eye(B) - 1
    logits = s * u @ w.T + b
    value = np.sum(np.logaddexp(0, -z * logits)) / B
    d = -z * expit(-z * logits) / B
    return value, s * d @ w, s * d.T @ u, np.sum(d * (u @ w.T)), np.sum(d)


def gradients_on(mesh, kind, embeddings, scalars):
    """The compiled value and gradients of a loss whose rows are divided over a mesh."""
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    function = {
        "softmax": contrastive.softmax_contrastive_loss,
        "sigmoid": contrastive.sigmoid_contrastive_loss,
    }[kind]
    step = jax.jit(
        jax.value_and_grad(function, argnums=tuple(range(2 + len(scalars)))),
        in_shardings=(rows, rows) + (whole,) * len(scalars),
    )
    with jax.set_mesh(mesh):
        return step.lower(*embeddings, *scalars).compile()


def mesh_of(shape):
    axes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    return sharding.make_mesh(axes, jax.devices()[: np.prod(shape)])


# 1024: all of a block at once; 2: a whole number of chunks; 3: rows remain
@pytest.mark.parametrize("chunk", [1024, 2, 3])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parity
def test_sharded_loss_and_gradients_equal_the_global_ones(
    embeddings, shape, kind, chunk, monkeypatch
):
    monkeypatch.setattr(contrastive, "CHUNK", chunk)
    scalars = (14.0,) if kind == "softmax" else (10.0, -4.0)
    inputs = [x.astype(np.float32) for x in embeddings], [np.float32(x) for x in scalars]
    value, gradients = gradients_on(mesh_of(shape), kind, *inputs)(*inputs[0], *inputs[1])
    reference = softmax_reference if kind == "softmax" else sigmoid_reference
    expected, *expected_gradients = reference(*embeddings, *scalars)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parity
def test_extreme_logits_stay_finite_and_exact(embeddings):
    """The largest scale, pairs that fit perfectly, and rows that fit nothing."""
    u, _ = embeddings
    w = u.copy()
    w[: B // 2] = -u[: B // 2]
    arrays = [x.astype(np.float32) for x in (u, w)]
    for kind, scalars, reference in (
        ("softmax", (100.0,), softmax_reference),
        ("sigmoid", (100.0, -10.0), sigmoid_reference),
    ):
        numbers = [np.float32(x) for x in scalars]
        compiled = gradients_on(mesh_of((4, 1, 1)), kind, arrays, numbers)
        value, gradients = compiled(*arrays, *numbers)
        expected, *expected_gradients = reference(u, w, *scalars)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_memory_of_a_device_does_not_grow_with_the_mesh(kind):
    """256 rows per device; the similarities of one device to all are what must not be held."""
    rows, scalars = 256, [np.float32(1.0)] * (1 if kind == "softmax" else 2)
    used = {}
    for devices in (2, 4, 8):
        batch = [jax.ShapeDtypeStruct((rows * devices, E), np.float32)] * 2
        compiled = gradients_on(mesh_of((devices, 1, 1)), kind, batch, scalars)
        used[devices] = compiled.memory_analysis().temp_size_in_bytes
    assert used[8] <= 1.02 * used[2], used
    assert used[8] < 4 * 4 * rows * rows, used  # a few blocks of b x b similarities


def test_normalize_has_unit_rows_and_a_finite_gradient_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(contrastive.normalize(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: contrastive.normalize(x).sum())(x)
    assert np.isfinite(gradient).all()


def test_batch_rows_are_divided_over_data_and_fsdp():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert sharding.batch_sharding(mesh) == NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
