"""The dual encoder: sizes, initial values, masking, dropout, precision, remat and scan."""

import contextlib
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.small_model import small_config
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from unimed_jax import config as config_lib
from unimed_jax.distributed import sharding
from unimed_jax.distributed.sharding import path_string
from unimed_jax.models import dual_encoder, vit
from unimed_jax.models.layers import apply_blocks

_KEY = jax.random.key(0)
_BASE = {"vocab_size": 30522, "width": 768, "layers": 12, "heads": 12, "mlp_width": 3072}
_BASE |= {"max_positions": 512, "context_length": 256}
_LARGE = _BASE | {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096}
_VIT_B = {"image_size": 224, "width": 768, "layers": 12, "heads": 12, "mlp_width": 3072}
_VIT_L = {"image_size": 336, "patch_size": 14, "width": 1024, "layers": 24, "heads": 16}
_VIT_L |= {"mlp_width": 4096}


@functools.cache
def _small() -> tuple[dual_encoder.DualEncoder, Any]:
    """The small model and initial parameters; compiling an init costs seconds."""
    model = dual_encoder.build(small_config(logit_bias_init=-10.0))
    return model, jax.jit(model.init)(_KEY)


def _flat(tree: Any) -> dict[str, Any]:
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _axes(path: str) -> tuple[str | None, ...]:
    rules = _small()[0].parameter_axes
    return next(axes for pattern, axes in rules if re.search(pattern, path))


def _inputs(batch: int = 4, length: int = 16) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 99, (batch, length))
    for row, end in enumerate(rng.integers(2, length + 1, batch)):
        ids[row, end:] = 0
    images = rng.integers(0, 256, (batch, 32, 32, 3))
    return jnp.asarray(images, jnp.uint8), jnp.asarray(ids, jnp.int32)


@pytest.mark.parametrize(
    ("embed_dim", "visual", "text", "num_params"),
    [
        (512, _VIT_B | {"patch_size": 16}, _BASE, 195_903_489),
        (512, _VIT_B | {"patch_size": 32}, _BASE, 197_560_065),
        (768, _VIT_L, _BASE, 414_365_185),
        (768, _VIT_L, _LARGE, 639_991_809),
    ],
)
def test_parameter_count_of_the_published_models(
    embed_dim: int, visual: dict, text: dict, num_params: int
) -> None:
    model = dual_encoder.build(small_config(embed_dim=embed_dim, visual=visual, text=text))
    params = _flat(jax.eval_shape(model.init, _KEY))
    assert sum(math.prod(leaf.shape) for leaf in params.values()) == num_params
    if num_params == 195_903_489:
        [pattern] = config_lib.base_config().optimizer.no_decay
        decayed = [leaf for path, leaf in params.items() if not re.search(pattern, path)]
        assert sum(math.prod(leaf.shape) for leaf in decayed) == 195_658_496


@pytest.mark.parametrize("projection", ["mlp", "linear", "none"])
def test_every_parameter_has_one_axis_name_per_dim(projection: str) -> None:
    text = {"projection": projection, "width": 24}
    model = dual_encoder.build(small_config(text=text, logit_bias_init=-10.0))
    params = _flat(jax.eval_shape(model.init, _KEY))
    assert {path: len(_axes(path)) for path in params} == {p: v.ndim for p, v in params.items()}
    for path, leaf in params.items():
        named = dict(zip(_axes(path), leaf.shape, strict=True))
        tower = path.split("/")[0]
        layers = {"visual": 3, "text": 3}.get(tower)
        assert named.get("layers", layers) == layers
        assert named.get("embed", 0) in (0, {"visual": 32, "text": 24}.get(tower))
        assert named.get("heads", 0) in (0, {"visual": 2, "text": 4}.get(tower))
        assert named.get("joint", 24) == 24


def test_init_is_a_plain_tree_and_a_function_of_the_key() -> None:
    model, params = _small()

    def check(node: Any) -> None:
        assert type(node) is dict
        for value in node.values():
            if not isinstance(value, jax.Array):
                check(value)

    check(params)
    assert sorted(params) == ["logit_bias", "logit_scale", "text", "visual"]
    assert params["logit_bias"] == -10
    np.testing.assert_allclose(params["logit_scale"], math.log(1 / 0.07), rtol=1e-6)
    again, other = jax.jit(model.init)(_KEY), jax.jit(model.init)(jax.random.key(1))
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, params, again)))
    assert not jnp.array_equal(params["visual"]["proj"], other["visual"]["proj"])


def test_initial_distributions() -> None:
    params = _flat(_small()[1])
    uniform = 1 / math.sqrt(3)  # standard deviation of a uniform on [-1, 1]
    expected = {
        "visual/class_embedding": 32**-0.5,
        "visual/positional_embedding": 32**-0.5,
        "visual/proj": 32**-0.5,
        "visual/patch_embedding/kernel": uniform * (3 * 8 * 8) ** -0.5,
        "visual/blocks/attn/qkv/kernel": uniform * math.sqrt(6 / (4 * 32)),
        "visual/blocks/attn/out/kernel": uniform * 32**-0.5,
        "visual/blocks/mlp/c_fc/kernel": uniform * 32**-0.5,
        "visual/blocks/mlp/c_fc/bias": uniform * 32**-0.5,
        "visual/blocks/mlp/c_proj/kernel": uniform * 64**-0.5,
        "visual/blocks/mlp/c_proj/bias": uniform * 64**-0.5,
        "text/proj/c_fc/kernel": uniform * 48**-0.5,
        "text/proj/c_proj/kernel": uniform * 36**-0.5,
        "text/word_embeddings/embedding": 0.02,
        "text/position_embeddings/embedding": 0.02,
        "text/blocks/attn/qkv/kernel": 0.02,
        "text/blocks/attn/out/kernel": 0.02,
        "text/blocks/mlp/c_proj/kernel": 0.02,
    }
    for path, value in expected.items():
        # Four standard errors of the deviation of as many normal draws.
        tolerance = 4 / math.sqrt(2 * params[path].size)
        assert float(jnp.std(params[path])) == pytest.approx(value, rel=tolerance), path
    for path, leaf in params.items():
        if path.endswith("/scale"):
            assert (leaf == 1).all(), path
        elif path.endswith("/bias") and path.startswith("text/"):
            assert not leaf.any(), path
    assert not params["visual/blocks/attn/qkv/bias"].any()
    assert not params["visual/blocks/attn/out/bias"].any()
    kernel = params["text/blocks/mlp/c_fc/kernel"]  # of independent blocks
    assert abs(float(jnp.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1])) < 0.07


def test_padding_does_not_change_the_embedding() -> None:
    model, params = _small()
    _, ids = _inputs()
    wider = jnp.pad(ids, ((0, 0), (0, 9)))
    encode = jax.jit(model.encode_text)
    expected = encode(params, ids)
    np.testing.assert_allclose(encode(params, wider), expected, atol=1e-6)
    assert jnp.isfinite(encode(params, jnp.zeros_like(ids))).all()


def test_layers_of_one_block() -> None:
    images, ids = _inputs()
    config = small_config(visual={"layers": 1}, text={"layers": 1}, scan_layers=False)
    model = dual_encoder.build(config)
    params = jax.jit(model.init)(_KEY)
    for got in (
        jax.jit(model.encode_image)(params, images),
        jax.jit(model.encode_text)(params, ids),
    ):
        assert got.shape == (4, 24)
        assert jnp.isfinite(got).all()


@functools.cache
def _value_and_grads(remat: str, scan: bool, on_mesh: bool = False) -> tuple[jax.Array, Any]:
    model = dual_encoder.build(small_config(remat=remat, scan_layers=scan))
    images, ids = _inputs()

    def loss(params: Any) -> jax.Array:
        texts = model.encode_text(params, ids, dropout_rng=jax.random.key(7))
        return jnp.sum(model.encode_image(params, images) * jnp.cos(texts))

    # a mesh of one CPU, as a run has it: MLPs then see one axis of rows
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh) if on_mesh else contextlib.nullcontext():
        return jax.jit(jax.value_and_grad(loss))(_small()[1])


@pytest.mark.parametrize(
    ("remat", "scan", "on_mesh"),
    [("none", False, False), ("full", True, False), ("dots", False, True)],
)
def test_remat_scan_and_mesh_change_nothing(remat: str, scan: bool, on_mesh: bool) -> None:
    value, grads = _value_and_grads(remat, scan, on_mesh)
    want, want_grads = _value_and_grads("none", True)
    # The same sums in another order: a few units in the last place of float32.
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for (path, got), expected in zip(_flat(grads).items(), _flat(want_grads).values(), strict=True):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(got, expected, atol=1e-5 * scale + 1e-7, err_msg=path)


def test_bfloat16_is_close_and_returns_float32() -> None:
    images, ids = _inputs()
    exact, params = _small()
    model = dual_encoder.build(small_config(compute_dtype="bfloat16"))
    for got, want in (
        [jax.jit(m.encode_image)(params, images) for m in (model, exact)],
        [jax.jit(m.encode_text)(params, ids) for m in (model, exact)],
    ):
        assert got.dtype == jnp.float32
        cosine = (
            jnp.sum(got * want, -1) / jnp.linalg.norm(got, axis=-1) / jnp.linalg.norm(want, axis=-1)
        )
        assert float(cosine.min()) > 0.999
        assert not jnp.array_equal(got, want)
    halved = jax.eval_shape(dual_encoder.build(small_config(param_dtype="bfloat16")).init, _KEY)
    dtypes = {path: leaf.dtype for path, leaf in _flat(halved).items()}
    assert {path for path, dtype in dtypes.items() if dtype != jnp.bfloat16} == {"logit_scale"}


def test_dropout_only_with_a_key_and_the_same_on_every_mesh() -> None:
    model = dual_encoder.build(small_config(text={"dropout": 0.3}))
    _, params = _small()
    _, ids = _inputs(batch=8)
    encode = jax.jit(lambda ids, key: model.encode_text(params, ids, dropout_rng=key))
    alone = encode(ids, jax.random.key(5))
    np.testing.assert_array_equal(encode(ids, jax.random.key(5)), alone)
    assert float(jnp.abs(encode(ids, jax.random.key(6)) - alone).max()) > 1e-3
    assert float(jnp.abs(encode(ids, None) - alone).max()) > 1e-3
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = jax.device_put(ids, NamedSharding(mesh, PartitionSpec("data")))
    spread = encode(rows, jax.random.key(5))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(spread, alone, atol=1e-6)


def test_patch_dropout_is_attention_to_a_part_of_the_patches() -> None:
    model = dual_encoder.build(small_config(visual={"patch_dropout": 0.6}))
    _, params = _small()
    images, _ = _inputs(batch=8)
    encode = jax.jit(lambda images, key: model.encode_image(params, images, dropout_rng=key))
    key = jax.random.key(5)
    found = encode(images, key)
    assert float(jnp.abs(encode(images, jax.random.key(6)) - found).max()) > 1e-3
    np.testing.assert_array_equal(encode(images, None), model.encode_image(params, images))
    # the same, with all tokens and a mask
    tower = vit.VisionTransformer(model.config, nnx.Rngs(0))
    nnx.update(tower, params["visual"])
    count = model.config.visual.num_tokens - 1
    kept = np.asarray(vit._kept_patches(key, 8, count, 0.6))
    assert kept.shape == (8, round(0.4 * count))
    assert len({tuple(row) for row in kept}) == 8
    mask = np.zeros((8, count + 1), bool)
    mask[:, 0] = True
    np.put_along_axis(mask, kept + 1, True, axis=1)
    mean, std = jnp.array(model.config.image_mean), jnp.array(model.config.image_std)
    x = tower._embed((images / 255 - mean) / std)
    x = apply_blocks(tower.blocks, x, mask=jnp.asarray(mask), remat="none", scan_layers=True)
    expected = tower.ln_post(x) @ tower.proj[...]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(encode(rows, key), found, atol=2e-6)


def test_wrong_inputs_are_refused_with_the_shape_wanted() -> None:
    model, params = _small()
    for images in (jnp.zeros((2, 16, 16, 3), jnp.uint8), jnp.zeros((2, 32, 32, 3))):
        with pytest.raises(ValueError, match=r"expected uint8 \(batch, 32, 32, 3\)"):
            jax.eval_shape(model.encode_image, params, images)
    with pytest.raises(ValueError, match=r"at most 40 tokens\), got \(2, 41\)"):
        jax.eval_shape(model.encode_text, params, jnp.zeros((2, 41), jnp.int32))
