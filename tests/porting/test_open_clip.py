"""Parity with stock open_clip through the exported directory, and the name table itself."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_model import random_params, small_config

from input_pipeline.errors import UserError, WeightsError
from unimed_jax.models import dual_encoder
from unimed_jax.porting import open_clip_map
from unimed_jax.porting.open_clip_directory import export_open_clip

_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "chest", "x", "-", "ray", "of", "##s"]
_VARIANTS = (
    {},
    {
        "visual": {"activation": "gelu", "heads": 4, "mlp_width": 80, "layer_norm_eps": 1e-3},
        "text": {"projection": "linear", "activation": "gelu_tanh", "layer_norm_eps": 1e-3},
        "logit_bias_init": -10.0,
    },
    {
        "visual": {"activation": "gelu_tanh", "layers": 1},
        "text": {"projection": "none", "width": 24, "layers": 1, "pad_id": 3},
    },
)


def _tokenizer(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "vocab.txt").write_text("\n".join(_WORDS) + "\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, dict, dict]:
    """(model, params) of each variant, the inputs, and what open_clip makes of the exports."""
    root = tmp_path_factory.mktemp("open_clip")
    rng = np.random.default_rng(1)
    ids = rng.integers(4, 99, (6, 16))
    ids[0, 2:] = ids[1, 9:] = 0
    ids[2, 5:] = 3
    inputs = {
        "images": rng.integers(0, 256, (6, 32, 32, 3), np.uint8),
        "ids": ids,
        "text": np.array("Chest X-rays of Zebras"),
    }
    np.savez(root / "in.npz", **inputs)
    ours, directories = [], []
    for i, changes in enumerate(_VARIANTS):
        model = dual_encoder.build(small_config(**changes))
        params = random_params(model)
        ours.append((model, params))
        directories.append(root / f"export_{i}")
        export_open_clip(params, model.config, _tokenizer(root / f"tokenizer_{i}"), directories[-1])
    script = Path(__file__).with_name("open_clip_reference.py")
    command = [sys.executable, script, root / "in.npz", root / "out.npz", *directories]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr[-3000:]
    return ours, inputs, dict(np.load(root / "out.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", range(len(_VARIANTS)))
def test_embeddings_agree_with_open_clip(reference: tuple, variant: int) -> None:
    ours, inputs, theirs = reference
    model, params = ours[variant]
    for tower, got in (
        ("image", jax.jit(model.encode_image)(params, inputs["images"])),
        ("text", jax.jit(model.encode_text)(params, inputs["ids"].astype(np.int32))),
    ):
        unit = got / np.linalg.norm(got, axis=-1, keepdims=True)
        np.testing.assert_allclose(unit, theirs[f"{tower}/{variant}"], atol=2e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", range(len(_VARIANTS)))
def test_round_trip_through_torch_returns_the_same_bits(reference: tuple, variant: int) -> None:
    ours, _, theirs = reference
    _, params = ours[variant]
    prefix = f"state/{variant}/"
    state = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    read = open_clip_map.to_params(state, open_clip_map.OPEN_CLIP, params, "state dict")
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    written = open_clip_map.to_tensors(read, open_clip_map.OPEN_CLIP)
    assert written.keys() == state.keys()
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, state[name], err_msg=name, strict=True)


@pytest.mark.slow
def test_exported_tokenizer_is_the_one_given(reference: tuple) -> None:
    _, _, theirs = reference
    expected = [2, 5, 6, 7, 8, 10, 9, 1, 3, 0, 0, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(theirs["ids/0"], [expected])


def test_table_fits_the_published_model() -> None:
    """352 tensors in ViT-B/16 with BERT-base: 1 + 152 + 199."""
    visual = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "heads": 12}
    text = {"vocab_size": 30522, "width": 768, "layers": 12, "heads": 12, "mlp_width": 3072}
    model = dual_encoder.build(
        small_config(embed_dim=512, visual=visual | {"mlp_width": 3072}, text=text)
    )
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(WeightsError) as error:
        open_clip_map.to_params({}, open_clip_map.OPEN_CLIP, abstract, "nothing")
    missing = dict(re.findall(r"missing: (\S+), shape (\(.*\))", str(error.value)))
    assert len(missing) == 352
    assert sum(name.startswith("visual.") for name in missing) == 152
    assert missing["visual.conv1.weight"] == "(768, 3, 16, 16)"
    assert missing["visual.transformer.resblocks.11.attn.in_proj_weight"] == "(2304, 768)"
    assert missing["text.transformer.encoder.layer.0.attention.self.key.bias"] == "(768,)"
    assert missing["text.proj.0.weight"] == "(640, 768)"
    assert missing["logit_scale"] == "()"


def test_every_misfit_is_listed_with_shapes() -> None:
    model = dual_encoder.build(small_config())
    params = random_params(model)
    tensors = open_clip_map.to_tensors(params, open_clip_map.OPEN_CLIP)
    del tensors["visual.proj"]
    tensors["text.pooler.dense.weight"] = np.zeros((3, 3))
    tensors["text.proj.0.weight"] = np.zeros((7, 5))
    with pytest.raises(WeightsError) as error:
        open_clip_map.to_params(tensors, open_clip_map.OPEN_CLIP, params, "some.safetensors")
    assert str(error.value).splitlines() == [
        "some.safetensors does not fit the model (3 tensors):",
        "  missing: visual.proj, shape (32, 24)",
        "  shape: text.proj.0.weight is (7, 5) in the file, (36, 48) in the model",
        "  unexpected: text.pooler.dense.weight, shape (3, 3)",
    ]


def test_export_is_whole_or_not_at_all(tmp_path: Path) -> None:
    model = dual_encoder.build(small_config())
    params = random_params(model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds neither tokenizer\.json nor vocab\.txt"):
        export_open_clip(params, model.config, tmp_path / "empty", tmp_path / "out")
    tokenizer = _tokenizer(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="tokenizer exists and is not an empty directory"):
        export_open_clip(params, model.config, tokenizer, tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "tokenizer"]
    export_open_clip(params, model.config, tokenizer, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "tokenizer"]
    names = ["config.json", "open_clip_config.json", "open_clip_model.safetensors", "vocab.txt"]
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == names
    written = json.loads((tmp_path / "empty" / "open_clip_config.json").read_text())
    assert written["model_cfg"]["text_cfg"]["hf_model_name"] == str(tmp_path / "empty")
