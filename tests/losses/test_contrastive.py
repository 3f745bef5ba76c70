"""Losses and their gradients on eight devices against closed forms in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import expit, logsumexp, softmax

from unimed_jax.distributed import sharding
from unimed_jax.losses import contrastive, ring

B, E = 32, 12


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal((2, B, E))
    return u / np.linalg.norm(u, axis=1, keepdims=True), w / np.linalg.norm(
        w, axis=1, keepdims=True
    )


def targets_and_mask(same_label, labels):
    """t_ij and m_ij from the sets of labels themselves."""
    own, everything = np.eye(B), np.ones((B, B), bool)
    if same_label == "negative":
        return own, everything
    sets = [set(row[row > 0]) for row in labels]
    overlap = np.array([[len(a & b) / max(len(a | b), 1) for b in sets] for a in sets])
    np.fill_diagonal(overlap, 1)
    if same_label == "ignored":
        return own, (overlap < 1) | (own == 1)
    return (overlap if same_label == "overlap" else overlap == 1.0), everything


def softmax_reference(u, w, s, same_label="negative", labels=None):
    """L and dL/du, dL/dw, dL/ds of the symmetric InfoNCE, all float64."""
    t, m = targets_and_mask(same_label, labels)
    logits = s * u @ w.T
    value, d = 0.0, np.zeros((B, B))
    for axis in (0, 1):
        shares = t / t.sum(axis, keepdims=True)
        seen = np.where(m, logits, -np.inf)
        value += np.mean(logsumexp(seen, axis) - (shares * logits).sum(axis)) / 2
        d += (softmax(seen, axis) - shares) / (2 * B)
    return value, s * d @ w, s * d.T @ u, np.sum(d * (u @ w.T))


def sigmoid_reference(u, w, s, b, same_label="negative", labels=None):
    """L and dL/du, dL/dw, dL/ds, dL/db of the pairwise sigmoid loss, all float64."""
    t, m = targets_and_mask(same_label, labels)
    logits = s * u @ w.T + b
    value = np.sum(m * (np.logaddexp(0, logits) - t * logits)) / B
    d = m * (expit(logits) - t) / B
    return value, s * d @ w, s * d.T @ u, np.sum(d * (u @ w.T)), np.sum(d)


def gradients_on(mesh, kind, embeddings, scalars, same_label="negative", labels=None):
    """The compiled value and gradients of a loss whose rows are divided over a mesh."""
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    function = {
        "softmax": contrastive.softmax_contrastive_loss,
        "sigmoid": contrastive.sigmoid_contrastive_loss,
    }[kind]
    if labels is not None:
        labels = jax.device_put(labels, rows)
    function = functools.partial(function, labels=labels, same_label=same_label)
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
    monkeypatch.setattr(ring, "CHUNK", chunk)
    scalars = (14.0,) if kind == "softmax" else (10.0, -4.0)
    inputs = [x.astype(np.float32) for x in embeddings], [np.float32(x) for x in scalars]
    value, gradients = gradients_on(mesh_of(shape), kind, *inputs)(*inputs[0], *inputs[1])
    reference = softmax_reference if kind == "softmax" else sigmoid_reference
    expected, *expected_gradients = reference(*embeddings, *scalars)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.fixture
def labels():
    """Sets of 0 to 3 of 6 labels; some of them are equal, and two pairs have none."""
    rng = np.random.default_rng(1)
    sets = [rng.choice(6, size, replace=False) + 1 for size in rng.integers(1, 4, B)]
    sets[3] = sets[30] = np.array([], int)
    return np.array([np.pad(row, (0, 3 - len(row))) for row in sets], np.uint32)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("same_label", contrastive.SAME_LABEL)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parity
def test_label_sets_give_the_stated_targets(
    embeddings, labels, shape, kind, same_label, monkeypatch
):
    monkeypatch.setattr(ring, "CHUNK", 3)
    scalars = (14.0,) if kind == "softmax" else (10.0, -4.0)
    inputs = [x.astype(np.float32) for x in embeddings], [np.float32(x) for x in scalars]
    compiled = gradients_on(mesh_of(shape), kind, *inputs, same_label, labels)
    value, gradients = compiled(*inputs[0], *inputs[1])
    reference = softmax_reference if kind == "softmax" else sigmoid_reference
    expected, *expected_gradients = reference(*embeddings, *scalars, same_label, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=2e-5)


@pytest.mark.parametrize("same_label", contrastive.SAME_LABEL[1:])
def test_a_batch_of_different_labels_has_clips_loss(embeddings, same_label):
    inputs = [jnp.array(x, jnp.float32) for x in embeddings]
    labels = jnp.arange(1, B + 1, dtype=jnp.uint32)[:, None]
    found = contrastive.softmax_contrastive_loss(
        *inputs, 14.0, labels=labels, same_label=same_label
    )
    np.testing.assert_allclose(
        found, contrastive.softmax_contrastive_loss(*inputs, 14.0), rtol=1e-6
    )
    with pytest.raises(ValueError, match="needs the labels"):
        contrastive.softmax_contrastive_loss(*inputs, 14.0, same_label=same_label)


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


@pytest.mark.parametrize("same_label", ["negative", "ignored", "overlap"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_memory_of_a_device_does_not_grow_with_the_mesh(kind, same_label):
    """256 rows per device; the similarities of one device to all are what must not be held."""
    rows, scalars = 256, [np.float32(1.0)] * (1 if kind == "softmax" else 2)
    used = {}
    for devices in (2, 4, 8):
        batch = [jax.ShapeDtypeStruct((rows * devices, E), np.float32)] * 2
        labels = np.zeros((rows * devices, 4), np.uint32)
        compiled = gradients_on(mesh_of((devices, 1, 1)), kind, batch, scalars, same_label, labels)
        used[devices] = compiled.memory_analysis().temp_size_in_bytes
    assert used[8] <= 1.02 * used[2], used
    tiles = 4 if same_label == "negative" else 8  # of b x b numbers
    assert used[8] < tiles * 4 * rows * rows, used


def test_normalize_has_unit_rows_and_a_finite_gradient_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(contrastive.normalize(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: contrastive.normalize(x).sum())(x)
    assert np.isfinite(gradient).all()


def test_batch_rows_are_divided_over_data_and_fsdp():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert sharding.batch_sharding(mesh) == NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
