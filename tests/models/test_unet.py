"""U-Nets: published sizes, torchvision's encoders on copied weights, statistics, prompts."""

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

from unimed_jax.distributed import sharding
from unimed_jax.models.config import VisualConfig
from unimed_jax.models.conv import STATISTICS
from unimed_jax.models.efficientnet import B2_STAGES, EfficientNetEncoder, MBConv, MBConvStage
from unimed_jax.models.layers import block_outputs
from unimed_jax.models.resnet import RESNET34_BLOCKS, RESNET34_WIDTHS, ResNetEncoder
from unimed_jax.models.segmentation import SegmentationModel
from unimed_jax.models.unet import UNetConfig
from unimed_jax.models.vit import VisionTransformer

SMALL = UNetConfig(image_size=32, text_dim=12, width_factor=0.125, blocks=(1, 1, 1, 1))


def leaves(tree):
    return {
        sharding.path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def num_parameters(tree):
    return sum(x.size for path, x in leaves(tree).items() if not re.search(STATISTICS, f"/{path}"))


def test_parameter_counts_are_the_published_ones():
    fundus = jax.eval_shape(SegmentationModel(UNetConfig()).init, jax.random.key(0))
    assert num_parameters(fundus["network"]) == 22_010_818
    assert num_parameters(fundus["style_projector"]) == 134_223_384
    config = UNetConfig(
        network="efficientnet_b2", image_size=192, in_channels=1, num_outputs=5,
        channel_prompts=False,
    )  # fmt: skip
    abdomen = jax.eval_shape(SegmentationModel(config).init, jax.random.key(0))
    network = abdomen["network"]
    # the published 7,700,418 count the head convolution 352 -> 1408 and its norm, which is unused
    unused_head = 352 * 1408 + 2 * 1408
    assert num_parameters(network["encoder"]) == 7_700_418 - unused_head
    assert num_parameters(network["head"]) == 725
    decoder = {key: value for key, value in network.items() if key.startswith("decoder")}
    assert num_parameters(decoder) == 2_345_152
    assert num_parameters(abdomen["text_projector"]) == 180_736


def resnet_name(path):
    """A parameter of ours -> torchvision's."""
    path = re.sub(r"layer(\d)_(\d+)/", r"layer\1.\2.", path)
    return path.replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")


def efficientnet_name(path):
    if path.startswith("stem"):
        return path.replace("stem_conv", "features.0.0").replace("stem_bn", "features.0.1")
    index, rest = re.fullmatch(r"block(\d+)/(.*)", path).groups()
    index, stage = int(index), 0
    while index >= B2_STAGES[stage].blocks:
        index, stage = index - B2_STAGES[stage].blocks, stage + 1
    parts = ["expand", "depthwise", "squeeze", "project"][B2_STAGES[stage].expansion == 1 :]
    layer, *tail = rest.split("/")
    kind = "squeeze" if layer in ("squeeze", "excite") else layer.split("_")[0]
    name = f"features.{stage + 1}.{index}.block.{parts.index(kind)}."
    if kind == "squeeze":
        name += {"squeeze": "fc1", "excite": "fc2"}[layer]
    else:
        name += {"conv": "0", "bn": "1"}[layer.split("_")[1]]
    return "/".join([name, *tail])


def to_torch(params, name_of):
    """Parameters and statistics as torchvision's tensors."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    tensors = {}
    for path, leaf in leaves(params).items():
        *layer, kind = name_of(path).replace("/", ".").split(".")
        value = np.asarray(leaf)
        value = value.transpose(3, 2, 0, 1) if kind == "kernel" else value
        tensors[".".join([*layer, names.get(kind, kind)])] = value
    return tensors


def random_like(abstract):
    """Random weights; norms whose scales and statistics differ from 1 and 0 in every channel."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = 0.1 if kind != "kernel" else (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(draw, abstract)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "efficientnet_b2"])
@pytest.mark.parity
def test_encoders_agree_with_torchvision_on_copied_weights(name, tmp_path):
    if name == "resnet34":
        make = lambda: ResNetEncoder(3, RESNET34_BLOCKS, RESNET34_WIDTHS, nnx.Rngs(0))  # noqa: E731
        name_of = resnet_name
    else:
        make = lambda: EfficientNetEncoder(3, B2_STAGES, 32, 0.2, False, nnx.Rngs(0))  # noqa: E731
        name_of = efficientnet_name
    graphdef, state = nnx.split(nnx.eval_shape(make))
    params = random_like(nnx.to_pure_dict(state))
    images = np.random.default_rng(1).normal(size=(2, 64, 96, 3)).astype(np.float32)
    np.savez(tmp_path / "in.npz", images=images, **to_torch(params, name_of))
    script = Path(__file__).parents[1] / "helpers" / "encoders_reference.py"
    command = [sys.executable, script, name, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, timeout=900)

    def features(params, images):
        encoder = nnx.merge(graphdef, params)
        arguments = (False,) if name == "resnet34" else (False, None)
        return encoder.features(encoder.stem(images), *arguments)

    # in float64: with random weights and statistics, float32 loses up to 1e-2 in the last stages,
    # theirs as ours
    with jax.enable_x64(True):
        in_float64 = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, images))
        got = jax.tree.map(np.asarray, jax.jit(features)(*in_float64))
    want = np.load(tmp_path / "out.npz")
    assert [x.shape[1] for x in got] == [32, 16, 8, 4, 2]
    for index, ours in enumerate(got):
        theirs = want[str(index)]
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-9, err_msg=str(index))


@pytest.fixture(scope="module")
def small():
    model = SegmentationModel(SMALL)
    params = jax.jit(model.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    return model, params, images


def test_a_step_updates_the_statistics_by_the_batch(small):
    model, params, images = small
    train = jax.jit(lambda p, x: model.apply(p, x, train=True))
    output, statistics = train(params, images)
    assert output.logits.shape == (4, 32, 32, 2)
    assert output.tokens.shape == (4, 1, 12)
    found = leaves(statistics)
    assert all(re.search(STATISTICS, f"/{path}") for path in found)
    wanted = {p for p in leaves(params) if re.search(STATISTICS, f"/{p}")}
    assert set(found) == wanted
    share = model.config.width(64)
    content = output.stem * jax.nn.softmax(params["network"]["channel_prompt"] / 0.1, axis=0)[0]
    mean = np.asarray(content).mean((0, 1, 2))
    assert mean.shape == (share,)
    np.testing.assert_allclose(found["network/encoder/bn1/mean"], 0.1 * mean, atol=1e-5)
    still, same = jax.jit(lambda p, x: model.apply(p, x, train=False))(params, images)
    for path, leaf in leaves(same).items():
        np.testing.assert_array_equal(leaf, leaves(params)[path])
    assert np.abs(np.asarray(still.logits - output.logits)).max() > 1e-3


def test_content_and_style_reach_the_prompts_and_the_projector_only(small):
    model, params, images = small

    def loss(params):
        stem = model.apply(params, images, train=True)[0].stem
        content, style, _ = model.content_and_style(params, stem)
        return jnp.abs(content - content[::-1]).sum() - jnp.abs(style - style[::-1]).sum()

    moved = {p for p, g in leaves(jax.jit(jax.grad(loss))(params)).items() if np.abs(g).max() > 0}
    assert "network/channel_prompt" in moved
    assert {p.split("/")[0] for p in moved - {"network/channel_prompt"}} == {"style_projector"}


def test_drop_path_drops_whole_branches_in_training_only():
    block = MBConv(8, MBConvStage(1, 3, 1, 1, 8), 1, 0.75, False, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (64, 4, 4, 8))

    graphdef, state = nnx.split(block)
    state = nnx.to_pure_dict(state)

    @functools.partial(jax.jit, static_argnums=1)
    def kept(key, train):
        return jnp.abs(nnx.merge(graphdef, state)(x, train, key) - x).max((1, 2, 3)) > 0

    a, again, b = (kept(jax.random.key(seed), True) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert (a != b).any()
    assert 4 <= a.sum() <= 28  # of 64, a quarter is expected: 16, deviation 3.5
    assert kept(jax.random.key(0), False).all()


def test_every_parameter_has_axes():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    kernels = {
        SMALL: "layer1_0/conv1/kernel",
        UNetConfig(network="efficientnet_b2", channel_prompts=False): "block0/project_conv/kernel",
        UNetConfig(network="vit", channel_prompts=False): "patch_embedding/kernel",
    }
    for config, kernel in kernels.items():
        abstract = {"params": jax.eval_shape(SegmentationModel(config).init, jax.random.key(0))}
        shardings = sharding.state_shardings(
            abstract, SegmentationModel(config).parameter_axes, mesh
        )
        found = leaves(shardings)[f"params/network/encoder/{kernel}"]
        assert found.spec[-1] == "fsdp"


TOWER = VisualConfig(patch_size=8, width=24, layers=4, heads=2, mlp_width=48)


def test_the_tower_of_a_unet_is_that_of_a_dual_encoder():
    config = UNetConfig(
        network="vit", image_size=16, text_dim=12, width_factor=0.1, channel_prompts=False,
        tower=TOWER,
    )  # fmt: skip
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: VisionTransformer(config.tower_model(), nnx.Rngs(0)))
    )
    weights = random_like(nnx.to_pure_dict(state))
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    mean, std = (
        np.array(x) for x in (config.tower_model().image_mean, config.tower_model().image_std)
    )
    pixels = jnp.asarray((images / 255 - mean) / std, jnp.float32)

    @jax.jit
    def outputs_of_the_tower(weights, pixels, images):
        tower = nnx.merge(graphdef, weights)
        outputs = block_outputs(
            tower.blocks,
            tower._embed(pixels),
            lambda b, x: b(x, mask=None, dropout_key=None, num_queries=None),
        )
        last = tower.ln_post(outputs[-1])
        embedding = last[:, 0] @ tower.proj[...]
        return tower.features(pixels, (1, 3)), outputs, last, embedding, tower(images)

    (early, late), outputs, last, embedding, whole = outputs_of_the_tower(weights, pixels, images)
    assert early.shape == late.shape == (3, 2, 2, 24)
    np.testing.assert_allclose(embedding, whole, atol=1e-5)
    np.testing.assert_allclose(late[:, 0, 1], last[:, 2], atol=1e-6)
    np.testing.assert_allclose(early[:, 1, 0], outputs[1][:, 3], atol=1e-6)

    model = SegmentationModel(config)
    params = jax.jit(model.init)(jax.random.key(0))
    output, _ = jax.jit(lambda p, x: model.apply(p, x, train=True))(params, pixels)
    assert output.logits.shape == (3, 16, 16, 2)
    assert output.tokens.shape == (3, 4, 12)
    theirs = set(leaves(weights)) - {"proj"}
    assert theirs == set(leaves(params["network"]["encoder"]))
