"""UNETR beside MONAI's on copied weights, UNETR++'s attention beside loops, published sizes."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.unetr_names import jax_leaves, to_monai

from unimed_jax.distributed import sharding
from unimed_jax.models import volumetric
from unimed_jax.models.conv import STATISTICS, Conv, UpConv
from unimed_jax.models.unetr import UNETRConfig
from unimed_jax.models.unetr_pp import PairedAttention, UNETRPPConfig
from unimed_jax.models.volumetric import VolumetricConfig, VolumetricModel

LUNG = {
    "stem": (1, 4, 4),
    "shared_projection": False,
    "residual_blocks": 2,
    "attention_dropout": 0.1,
}
TINY_UNETR = UNETRConfig(width=24, layers=4, heads=2, mlp_width=32, features=4)
TINY_PP = UNETRPPConfig(
    stem=(1, 2, 2), widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1), projections=(6, 5, 4, 3),
    features=4, heads=2,
)  # fmt: skip


def abstract(config):
    return jax.eval_shape(VolumetricModel(config).init, jax.random.key(0))


def count(tree):
    return sum(x.size for path, x in shapes(tree) if not re.search(STATISTICS, f"/{path}"))


def shapes(tree):
    return [(sharding.path_string(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)]


def test_parameter_counts_are_the_published_ones():
    unetr = abstract(
        VolumetricConfig("unetr", UNETRConfig(), (96, 96, 96), num_outputs=14, num_sub_volumes=6)
    )
    # published with a class token and the shortcut convolutions of blocks that keep their width
    unused = 768 + 2 * 32**2 + 64**2
    assert count(unetr["order_heads"]) == 18_456
    assert count(unetr) == 92_809_414 - unused
    synapse = VolumetricConfig(
        "unetr_pp", UNETRPPConfig(), (64, 128, 128), num_outputs=14, num_sub_volumes=4
    )
    assert count(abstract(synapse)["order_heads"]) == 1_936
    assert count(abstract(synapse)) == 42_954_786
    lung = VolumetricConfig("unetr_pp", UNETRPPConfig(**LUNG), (32, 192, 192), num_sub_volumes=4)
    assert count(abstract(lung)) == 121_176_734


@pytest.mark.parametrize(
    ("network", "sizes", "crop"),
    [("unetr", TINY_UNETR, (32, 16, 48)), ("unetr_pp", TINY_PP, (8, 16, 32))],
)
def test_any_crop_and_number_of_outputs(network, sizes, crop):
    config = VolumetricConfig(network, sizes, crop, num_outputs=3, num_sub_volumes=1)
    model = VolumetricModel(config)
    params = abstract(config)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    laid_out = sharding.state_shardings({"params": params}, model.parameter_axes, mesh)
    assert any("fsdp" in s.spec for s in jax.tree.leaves(laid_out))
    volumes = jax.ShapeDtypeStruct((2, *crop, 1), jnp.float32)
    output, statistics = jax.eval_shape(lambda p, x: model.apply(p, x, train=True), params, volumes)
    full, *smaller = [logits.shape for logits in output.logits]
    assert full == (2, *crop, 3)
    assert smaller == ([] if network == "unetr" else [(2, 8, 8, 16, 3), (2, 4, 4, 8, 3)])
    assert [logits.shape for logits in output.permutation] == [(2, 1, 1)] * 4
    assert bool(statistics) == (network == "unetr_pp")


@pytest.mark.slow
def test_unetr_agrees_with_monai_on_copied_weights(tmp_path):
    sizes = UNETRConfig(width=24, layers=12, heads=2, mlp_width=32, features=4)
    config = VolumetricConfig("unetr", sizes, (32, 48, 16), num_outputs=3)
    model = VolumetricModel(config)
    params = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), params)
    volumes = rng.normal(size=(2, *config.crop, 1)).astype(np.float32)
    np.savez(
        tmp_path / "in.npz",
        volumes=np.moveaxis(volumes, -1, 1),
        sizes=np.array([*config.crop, 3, 4, 24, 32, 2]),
        **to_monai(params["network"]),
    )
    script = Path(__file__).parents[1] / "helpers" / "unetr_reference.py"
    command = [sys.executable, script, "forward", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, timeout=600)
    theirs = np.moveaxis(np.load(tmp_path / "out.npz")["logits"], 1, -1)
    ours = jax.jit(lambda p, x: model.apply(p, x, train=False)[0].logits[0])(params, volumes)
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def paired_attention_by_loops(params, x, heads, layout):
    """The paper's attention and the released reading of its spatial result, index by index."""
    p = {path: value.astype(np.float64) for path, value in jax_leaves(params)}
    batch, tokens, width = x.shape
    d = width // heads
    out = np.empty(x.shape)
    for b in range(batch):
        channel, spatial = np.empty((tokens, width)), np.empty((heads, tokens, d))
        for j in range(heads):
            q, k, v_channel, v_spatial = (
                np.stack([x[b].astype(np.float64) @ p["qkvv/kernel"][:, s, j, i] for i in range(d)])
                for s in range(4)
            )  # (d, N)
            values = "project_values" if "project_values/kernel" in p else "project_keys"
            k_projected = k @ p["project_keys/kernel"] + p["project_keys/bias"]
            v_projected = v_spatial @ p[f"{values}/kernel"] + p[f"{values}/bias"]
            q = q / np.linalg.norm(q, axis=1, keepdims=True)
            k = k / np.linalg.norm(k, axis=1, keepdims=True)
            weights = np.exp(p["temperature_channel"][j] * q @ k.T)
            weights /= weights.sum(1, keepdims=True)
            channel[:, j * d : (j + 1) * d] = (weights @ v_channel).T
            weights = np.exp(p["temperature_spatial"][j] * q.T @ k_projected)
            weights /= weights.sum(1, keepdims=True)
            spatial[j] = weights @ v_projected.T
        read = np.empty((tokens, width))
        for n in range(tokens):
            for c in range(width):
                if layout == "tokens":
                    read[n, c] = spatial[c // d, n, c % d]
                    continue
                flat = n * width + c
                i, j, other = flat // (heads * tokens), flat // tokens % heads, flat % tokens
                read[n, c] = spatial[j, other, i]
        out[b, :, : width // 2] = read @ p["out_spatial/kernel"] + p["out_spatial/bias"]
        out[b, :, width // 2 :] = channel @ p["out_channel/kernel"] + p["out_channel/bias"]
    return out


@pytest.mark.parametrize("layout", ["released", "tokens"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parity
def test_paired_attention_equals_the_formula(layout, shared):
    sizes = UNETRPPConfig(heads=3, spatial_layout=layout, shared_projection=shared)
    module = PairedAttention(sizes, 10, 12, 5, nnx.Rngs(0))
    graphdef, state = nnx.split(module)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda v: v + 0.5 * rng.normal(size=v.shape), nnx.to_pure_dict(state))
    x = rng.normal(size=(2, 10, 12)).astype(np.float32)
    ours = nnx.merge(graphdef, params)(x, None)
    np.testing.assert_allclose(
        ours, paired_attention_by_loops(params, x, 3, layout), rtol=1e-4, atol=1e-5
    )


def test_positions_are_slabs_of_the_shuffled_axis_or_as_released():
    features = np.random.default_rng(0).normal(size=(2, 4, 3, 8, 5)).astype(np.float32)
    depth = volumetric.pool_positions(features, 2, "depth")
    np.testing.assert_allclose(depth[:, 1], features[:, 2:].mean((1, 2, 3)), atol=1e-6)
    width = volumetric.pool_positions(features, 4, "width")
    np.testing.assert_allclose(width[:, 3], features[:, :, :, 6:].mean((1, 2, 3)), atol=1e-6)
    modulo = volumetric.pool_positions(features, 4, "modulo")
    np.testing.assert_allclose(modulo[:, 1], features[:, :, :, 1::4].mean((1, 2, 3)), atol=1e-6)


@pytest.mark.slow
def test_dropout_and_statistics_are_of_training_only():
    config = VolumetricConfig("unetr_pp", TINY_PP, (8, 16, 16), num_sub_volumes=1)
    model = VolumetricModel(config)
    params = jax.jit(model.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.01, params)
    volumes = jax.random.normal(jax.random.key(1), (2, 8, 16, 16, 1))

    @functools.partial(jax.jit, static_argnums=1)
    def run(key, train):
        output, statistics = model.apply(params, volumes, train=train, key=key)
        return output.logits[0], statistics

    (a, updated), (again, _), (b, _) = (run(jax.random.key(s), True) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert np.abs(np.asarray(a - b)).max() > 1e-4
    before, after = dict(shapes(params)), dict(shapes(updated))
    assert set(after) == {path for path in before if re.search(STATISTICS, f"/{path}")}
    assert all(np.any(np.asarray(x) != before[path]) for path, x in after.items())
    _, same = run(None, False)
    for path, value in shapes(same):
        np.testing.assert_array_equal(value, before[path])


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_by_slabs_is_the_direct_one(bias):
    conv = Conv(3, 4, (3, 3, 3), nnx.Rngs(0), bias=bias)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 7, 3))
    direct = jax.lax.conv_general_dilated(
        x, conv.kernel[...], (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    if bias:
        direct += conv.bias[...]
    np.testing.assert_allclose(conv(x), direct, atol=1e-4)


def test_a_transposed_convolution_of_any_factors_is_that_of_lax():
    up = UpConv(3, 4, nnx.Rngs(0), (1, 2, 4), bias=False)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 5, 3))
    flipped = jnp.flip(
        up.kernel[...], (0, 1, 2)
    )  # lax correlates, a transposed convolution scatters
    want = jax.lax.conv_transpose(
        x, flipped, (1, 2, 4), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    np.testing.assert_allclose(up(x), want, atol=1e-4)
