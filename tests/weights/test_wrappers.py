"""What training wraps a model in is taken off its names, in every container alike."""

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from input_pipeline.io.errors import WeightsError
from unimed_jax.weights.formats import open_pretrained
from unimed_jax.weights.wrappers import unwrapped

NAMES = ("embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight", "a")


@pytest.mark.parametrize(
    "wrapper",
    ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}",
     "model.module.{}", "_fsdp_wrapped_module.{}", "model._orig_mod._fsdp_wrapped_module.{}"],
)  # fmt: skip
def test_wrappers_in_any_order(wrapper):
    named = {wrapper.format(name): index for index, name in enumerate(NAMES)}
    assert unwrapped(named, "f") == {name: index for index, name in enumerate(NAMES)}


def test_wrapped_submodules_and_averages():
    named = {
        "n_averaged": 0,
        "module.visual._orig_mod.proj": 1,
        "module.text._checkpoint_wrapped_module.a": 2,
    }
    assert unwrapped(named, "f") == {"visual.proj": 1, "text.a": 2}
    # a name that only some tensors begin with is the model's own
    assert unwrapped({"model.a": 1, "b": 2}, "f") == {"model.a": 1, "b": 2}


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(WeightsError, match=re.escape("f: a and _orig_mod.a are both 'a'")):
        unwrapped({"a": 1, "_orig_mod.a": 2}, "f")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod."])
def test_every_container_is_unwrapped(tmp_path: Path, suffix: str, prefix: str):
    rng = np.random.default_rng(0)
    arrays = {
        f"{prefix}{name}": rng.normal(size=shape).astype(np.float32)
        for name, shape in {
            "embeddings.word_embeddings.weight": (7, 4),
            "embeddings.position_embeddings.weight": (5, 4),
            "embeddings.token_type_embeddings.weight": (2, 4),
            "encoder.layer.0.intermediate.dense.weight": (6, 4),
            "encoder.layer.0.attention.output.LayerNorm.weight": (4,),
        }.items()
    }
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": {k: torch.from_numpy(v) for k, v in arrays.items()}}, file)
    else:
        safetensors.numpy.save_file(arrays, file)
    found = open_pretrained(file).parts["text"]
    assert found.config["vocab_size"] == 7 and found.config["layers"] == 1
    name = "embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(found.tensors[name].load(), arrays[f"{prefix}{name}"])
