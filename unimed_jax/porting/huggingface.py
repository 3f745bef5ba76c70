"""BERT weights as Hugging Face stores them."""

import json
import re
from pathlib import Path
from typing import Any

from input_pipeline.errors import WeightsError
from unimed_jax.models.config import TextConfig
from unimed_jax.porting import open_clip_map, safetensors_file

# A buffer that old versions of transformers saved, BERT's pooler, and the pretraining heads.
_IGNORED = re.compile(r"^embeddings\.position_ids$|^pooler\.|^cls\.")
# LayerNorm as the first, TensorFlow-born checkpoints name it.
_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def load_bert(
    source: Path, abstract_text: dict[str, Any], config: TextConfig | None = None
) -> dict[str, Any]:
    """The text tower without its projection from a Hugging Face BERT.

    Ignored by name: `embeddings.position_ids`, `pooler.*`, `cls.*`. A leading `bert.` is dropped.

    Args:
        source: a directory with `model.safetensors`, or such a file.
        abstract_text: params["text"] or its shapes and dtypes.
        config: compared with the `config.json` beside the weights, if there is one: the number of
            heads, activation and epsilon leave no trace in the shapes of the tensors.

    Returns:
        numpy arrays in the structure of `abstract_text` without "proj".

    Raises:
        WeightsError: no weights there, tensors that do not fit (all are listed), or a `config.json`
            that contradicts `config`.
    """
    path = source / "model.safetensors" if source.is_dir() else source
    if not path.is_file():
        others = sorted(file.name for file in source.glob("*.bin")) if source.is_dir() else []
        hint = f"; {', '.join(others)} must be converted to safetensors first" if others else ""
        raise WeightsError(f"no file {path}{hint}")
    if config is not None:
        _check_config(path.with_name("config.json"), config)
    tensors = {}
    for name, tensor in safetensors_file.read(path).items():
        name = name.removeprefix("bert.")
        for old, new in _LEGACY.items():
            name = name.replace(old, new)
        if not _IGNORED.search(name):
            tensors[name] = tensor
    wanted = {key: value for key, value in abstract_text.items() if key != "proj"}
    return open_clip_map.to_params(tensors, open_clip_map.BERT, wanted, str(path))


def _check_config(path: Path, config: TextConfig) -> None:
    if not path.is_file():
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    activation = theirs.get("hidden_act", "gelu")
    for key, name, value, found in (
        ("heads", "num_attention_heads", config.heads, theirs.get("num_attention_heads", 12)),
        ("activation", "hidden_act", config.activation, _ACTIVATIONS.get(activation, activation)),
        (
            "layer_norm_eps",
            "layer_norm_eps",
            config.layer_norm_eps,
            theirs.get("layer_norm_eps", 1e-12),
        ),
    ):
        if value != found:
            raise WeightsError(
                f"{path}: {name} is {theirs.get(name, found)!r}, "
                f"but model.text.{key} is {value!r}; set it to {found!r}"
            )
