"""Text in groups of similar length: the step of the padded batch, with fewer FLOPs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.io.errors import ConfigError
from unimed_jax import config as config_lib
from unimed_jax import tasks
from unimed_jax.distributed import sharding
from unimed_jax.losses.contrastive import normalize
from unimed_jax.models import text_buckets
from unimed_jax.models.config import ModelConfig, TextConfig
from unimed_jax.monitoring import flops
from unimed_jax.training import train_step

ROWS, CONTEXT, BUCKETS = 32, 24, (6, 12, 18, 24)
LENGTHS = {
    "mixed": np.random.default_rng(1).permutation(np.linspace(2, CONTEXT, ROWS).astype(int)),
    "short": np.full(ROWS, 5),
    "full": np.full(ROWS, CONTEXT),
    "one long": np.where(np.arange(ROWS) == 17, CONTEXT, 3),
}
# plain gradient descent, so that parameters after a step differ by the gradients alone
CHANGES = {
    "batch_size": ROWS,
    "model__visual__layers": 1,
    "model__text__layers": 2,
    "model__text__dropout": 0.0,
    "optimizer__eps": 1e6,  # Adam divides by it: what is left is proportional to the gradient
    "optimizer__learning_rate": 1e6,
    "optimizer__weight_decay": 0.0,
    "optimizer__warmup_steps": 0,
}


@functools.cache
def batch(kind):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 200, (ROWS, CONTEXT), np.int32)
    ids[np.arange(CONTEXT) >= LENGTHS[kind][:, None]] = 0
    return {"image": rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8), "text": ids}


def stepped(config, kind="mixed", shape=(1, 1, 1)):
    """The metrics of a compiled step on a mesh, and the parameters after it."""
    axes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    config.mesh.update(axes)
    config_lib.validate(config, int(np.prod(shape)))
    mesh = sharding.make_mesh(axes, jax.devices()[: np.prod(shape)])
    program = train_step.TrainStep(tasks.create(config, ""), config, 10, mesh)
    compiled = program.lower().compile()
    state = jax.jit(program.init, out_shardings=program.shardings)(program.key())
    placed = jax.device_put(batch(kind), sharding.batch_sharding(mesh))
    state, metrics = compiled(state, placed, program.key())
    return jax.device_get(metrics), jax.device_get(state["params"])


def assert_same_step(got, want):
    for name in ("loss", "grad_norm"):
        assert got[0][name] == pytest.approx(want[0][name], rel=1e-5), name
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got[1]), jax.tree.leaves(want[1]), strict=True
    ):
        scale = float(np.abs(b).max()) + 1e-8
        np.testing.assert_allclose(a, b, atol=2e-5 * scale, err_msg=str(path))


# (captions, mesh, changes)
CASES = {
    "one device": ("mixed", (1, 1, 1), {}),
    "a mesh": ("mixed", (2, 2, 2), {}),
    "more groups": ("mixed", (4, 1, 1), {"model__text__bucket_groups": 8}),
    "gradient caching": ("mixed", (4, 1, 1), {"optimizer__accumulate_steps": 4}),
    "rematerialized": ("mixed", (1, 1, 1), {"model__remat": "full"}),
    "all short": ("short", (1, 1, 1), {}),
    "all full": ("full", (1, 1, 1), {}),
    "one long caption": ("one long", (2, 2, 2), {"model__scan_layers": False}),
    "two buckets": ("mixed", (1, 1, 1), {"model__text__buckets": (5, CONTEXT)}),
}


@pytest.mark.parametrize(
    "case",
    ["one device", *(pytest.param(case, marks=pytest.mark.slow) for case in list(CASES)[1:])],
)
def test_a_step_in_buckets_is_the_step_of_the_padded_batch(tiny_config, case):
    kind, shape, changes = CASES[case]
    want = stepped(tiny_config(**CHANGES), kind)
    config = tiny_config(**CHANGES | {"model__text__buckets": BUCKETS} | changes)
    got = stepped(config, kind, shape)
    assert_same_step(got, want)
    assert "text_padding_saved" not in want[0]
    # the definition: what is cut off the groups of sorted captions, as a share of the padded step
    task = tasks.create(config, "")
    padded = tiny_config(**CHANGES)
    assert task_flops(config) == task_flops(padded)
    saved = sum(
        tower_flops(task, CONTEXT) - tower_flops(task, size) for size in sizes(kind, config)
    )
    assert got[0]["text_padding_saved"] == pytest.approx(3 * saved / task_flops(padded), rel=1e-6)


def sizes(kind, config):
    """The bucket of every group."""
    text = config.model.text
    longest = np.sort(LENGTHS[kind]).reshape(text.bucket_groups, -1)[:, -1]
    return [min(size for size in text.buckets if size >= length) for length in longest]


def tower_flops(task, length):
    """Of the text tower on a group of captions of this length, forwards."""
    text = task.model.config.text
    ids = jax.ShapeDtypeStruct((ROWS // text.bucket_groups, length), jnp.int32)
    params = jax.eval_shape(task.init, jax.random.key(0))
    return flops.matmul_flops(task.model.encode_text, params, ids)


def task_flops(config):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return train_step.TrainStep(tasks.create(config, ""), config, 10, mesh).model_flops()


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_mesh(tiny_config):
    changes = CHANGES | {"model__text__dropout": 0.3, "model__text__buckets": BUCKETS}
    want = stepped(tiny_config(**changes))
    assert_same_step(stepped(tiny_config(**changes), shape=(2, 2, 2)), want)
    # the masks are those of each group alone
    config = tiny_config(**changes)
    task = tasks.create(config, "")
    params = jax.jit(task.init)(jax.random.key(0))
    ids, rng = batch("mixed")["text"], jax.random.key(5)

    def tower(params, ids, key):
        return normalize(task.model.encode_text(params, ids, dropout_rng=key))

    text = ModelConfig.from_mapping(config.model).text
    got, counts = jax.jit(
        lambda params: text_buckets.encode(tower, params, jnp.asarray(ids), rng, text)
    )(params)
    compiled = jax.jit(tower)
    groups = np.argsort(LENGTHS["mixed"], kind="stable").reshape(text.bucket_groups, -1)
    for rows, key, size in zip(
        groups, jax.random.split(rng, text.bucket_groups), sizes("mixed", config), strict=True
    ):
        np.testing.assert_allclose(got[rows], compiled(params, ids[rows, :size], key), atol=2e-6)
    np.testing.assert_array_equal(
        counts, [sizes("mixed", config).count(size) for size in text.buckets]
    )


@pytest.mark.slow
def test_memory_is_that_of_a_group(tiny_config):
    """No branch that is not taken leaves activations behind."""
    used = {}
    for buckets in ((), (CONTEXT,), BUCKETS):
        changes = {"model__text__layers": 6, "model__visual__layers": 1}
        config = tiny_config(batch_size=ROWS, model__text__buckets=buckets, **changes)
        mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
        program = train_step.TrainStep(tasks.create(config, ""), config, 10, mesh)
        used[buckets] = program.lower().compile().memory_analysis().temp_size_in_bytes
    assert used[BUCKETS] < 1.2 * used[(CONTEXT,)], used
    assert used[BUCKETS] < 0.6 * used[()], used


def test_impossible_groups_are_refused(tiny_config):
    changes = {"model__text__buckets": BUCKETS, "batch_size": 16}
    config = tiny_config(**changes, model__text__bucket_groups=8)
    config_lib.validate(config, 2)
    with pytest.raises(ConfigError, match=r"batch_size=16 .* model.text.bucket_groups = 32"):
        config_lib.validate(config, 4)
    config_lib.validate(tiny_config(batch_size=16, model__text__bucket_groups=8), 4)  # unused
    config = tiny_config(**changes, model__text__bucket_groups=2, optimizer__accumulate_steps=4)
    with pytest.raises(ConfigError, match=r"bucket_groups=2 .* optimizer.accumulate_steps = 4"):
        config_lib.validate(config, 1)


def test_groups_to_expect_of_a_distribution():
    text = TextConfig(context_length=256, buckets=(32, 64, 128, 256), bucket_groups=8)
    # 4 groups end at 20 tokens, 2 at 60, 1 at 100; the last holds the longest
    lengths, shares = (20, 60, 100, 300), (0.5, 0.25, 0.2, 0.05)
    np.testing.assert_array_equal(text_buckets.expected_groups(lengths, shares, text), [4, 2, 1, 1])
    # what a large batch of such captions gives
    drawn = np.random.default_rng(0).choice(lengths, size=32_768, p=shares)
    longest = np.minimum(np.sort(drawn).reshape(8, -1)[:, -1], 256)
    counts = np.bincount(np.searchsorted(text.buckets, longest), minlength=4)
    assert counts[0] in (3, 4) and counts[2:].tolist() == [1, 1]
    np.testing.assert_array_equal(
        text_buckets.expected_groups((32, 33), (0.9, 0.1), text), [7, 1, 0, 0]
    )


def test_ids_are_cut_to_the_longest_caption():
    text = TextConfig(context_length=100, buckets=(40, 100))
    ids = np.zeros((3, 100), np.int32)
    ids[:, 0], ids[1, 39] = 101, 102
    assert text_buckets.cut(ids, text).shape == (3, 40)
    ids[2, 40] = 102
    assert text_buckets.cut(ids, text).shape == (3, 100)
    without = TextConfig(context_length=100)
    assert text_buckets.cut(ids, without).shape == (3, 64)
    assert text_buckets.cut(ids[:, :50], without).shape == (3, 50)
    assert text_buckets.cut(ids[:0], without).shape == (0, 32)
