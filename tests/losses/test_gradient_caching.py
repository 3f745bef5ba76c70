"""Gradients of a batch embedded in microbatches: those of the whole batch, with less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimed_jax import tasks
from unimed_jax.distributed import sharding
from unimed_jax.losses import contrastive
from unimed_jax.losses.gradient_caching import map_rows
from unimed_jax.training import optimizer as optim
from unimed_jax.training import train_step

ROWS = 32
SMALL = {"batch_size": ROWS, "model__visual__layers": 1, "model__text__layers": 1}


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 200, (ROWS, 24), np.int32)
    for row, end in enumerate(rng.integers(2, 24, ROWS)):
        ids[row, end:] = 0
    return {"image": rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8), "text": ids}


def updates(config, shape):
    """The compiled step on a mesh, its metrics, and the parameters after it."""
    axes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    mesh = sharding.make_mesh(axes, jax.devices()[: np.prod(shape)])
    task = tasks.create(config, "")
    program = train_step.TrainStep(task, config, 10, mesh)
    compiled = program.lower().compile()
    state = jax.jit(program.init, out_shardings=program.shardings)(program.key())
    placed = jax.device_put(batch(), sharding.batch_sharding(mesh))
    state, metrics = compiled(state, placed, program.key())
    return compiled, jax.device_get(metrics), jax.device_get(state["params"])


def assert_close(got, want, tolerance=2e-5):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        scale = float(np.abs(b).max()) + 1e-8
        np.testing.assert_allclose(a, b, atol=tolerance * scale, err_msg=str(path))


def test_rows_keep_their_order_and_microbatches_their_keys():
    rows = {"x": jnp.arange(12.0).reshape(6, 2)}

    def function(rows, key):
        return rows["x"] + jax.random.uniform(key, (len(rows["x"]), 1))

    key = jax.random.key(3)
    got = jax.jit(lambda rows: map_rows(function, rows, key, 3))(rows)
    keys = jax.random.split(key, 3)
    for index in range(3):
        want = function({"x": rows["x"][index::3]}, keys[index])
        np.testing.assert_array_equal(got[index::3], want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_step_in_microbatches_is_the_step_of_the_whole_batch(tiny_config, kind):
    # plain gradient descent, so that parameters after a step differ by the gradients alone
    changes = {
        **SMALL,
        "loss__name": kind,
        "model__text__dropout": 0.0,
        "optimizer__eps": 1e6,  # Adam divides by it: what is left is proportional to the gradient
        "optimizer__learning_rate": 1e6,
        "optimizer__weight_decay": 0.0,
        "optimizer__warmup_steps": 0,
    }
    if kind == "sigmoid":
        changes["model__logit_bias_init"] = -5.0
    _, want, params = updates(tiny_config(**changes), (1, 1, 1))
    for shape, count in (((1, 1, 1), 4), ((2, 2, 2), 2)):
        config = tiny_config(**changes, optimizer__accumulate_steps=count)
        _, got, updated = updates(config, shape)
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-6)
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-5)
        assert_close(updated, params)


@pytest.mark.slow
def test_dropout_and_frozen_towers(tiny_config):
    """The gradients are those of the whole batch whose rows were dropped with the same keys."""
    config = tiny_config(**SMALL, model__text__dropout=0.3, optimizer__accumulate_steps=4)
    task = tasks.create(config, "")
    params = jax.jit(task.init)(jax.random.key(0))
    rng = jax.random.key(5)

    def at_once(params):
        """No loop, no recomputation."""
        keys = jax.random.split(rng, 4)
        texts = [
            task.model.encode_text(params, batch()["text"][i::4], dropout_rng=keys[i])
            for i in range(4)
        ]
        images = task.model.encode_image(params, batch()["image"])
        return contrastive.softmax_contrastive_loss(
            contrastive.normalize(images),
            contrastive.normalize(jnp.stack(texts, axis=1).reshape(ROWS, -1)),
            jnp.exp(params["logit_scale"]),
        )

    want, want_grads = jax.jit(jax.value_and_grad(at_once))(params)
    got, grads = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch(), rng)[0]))(params)
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    assert_close(grads, want_grads)

    config.optimizer.frozen = ("^text/",)
    optimizer = optim.make_optimizer(config.optimizer, 10)
    state = train_step.init_state(task, optimizer, config, rng)
    step = jax.jit(train_step.make_train_step(task, optimizer, config, 10))
    after, _ = step(state, batch(), rng)
    same = jax.tree.map(np.array_equal, after["params"], state["params"])
    assert all(jax.tree.leaves(same["text"]))
    assert not any(jax.tree.leaves(same["visual"]))


@pytest.mark.slow
def test_memory_is_that_of_a_microbatch_and_rows_stay_on_their_device(tiny_config):
    # activations of the batch outweigh everything else
    changes = {"batch_size": ROWS, "model__visual__layers": 6, "model__text__layers": 6}
    used = {}
    for count in (1, 4):
        config = tiny_config(**changes, optimizer__accumulate_steps=count)
        compiled, _, _ = updates(config, (4, 1, 1))
        used[count] = compiled.memory_analysis().temp_size_in_bytes
        # rows of images (uint8) and of ids (int32) are what the batch alone consists of
        exchanged = [
            line
            for line in compiled.as_text().splitlines()
            if any(
                f" {name}" in line for name in ("all-gather", "all-to-all", "collective-permute")
            )
            and ("u8[" in line or ",24]" in line)
        ]
        assert not exchanged, exchanged
    assert used[4] < 0.4 * used[1], used
