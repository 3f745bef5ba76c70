"""A model as a directory that stock open_clip opens: names, configurations, weights."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.io.errors import UserError
from unimed_jax.models.config import ModelConfig, VisualConfig
from unimed_jax.weights import layouts, safetensors_file
from unimed_jax.weights.lazy_tensors import LazyTensor
from unimed_jax.weights.pretrained import PARTS, Pretrained

WEIGHTS_FILE = "open_clip_model.safetensors"
CONFIG_FILE = "open_clip_config.json"

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_HF_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
# timm's vision transformers by (width, layers, heads), the MLP four times as wide, and their names
_TIMM_SIZES = {
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
}
_TIMM_NAME = r"vit_(tiny|small|base|large)_patch16_(224|384)|vit_(small|base)_patch32_(224|384)"


def state_dict(pretrained: Pretrained, text: str = "text.") -> dict[str, LazyTensor]:
    """The whole model under open_clip's names; nothing is read before a tensor is loaded.

    Args:
        pretrained: weights with both towers.
        text: prefix of the text tower; "text_encoder." gives UniMed-CLIP's names.

    Raises:
        UserError: a tower is missing.
    """
    prefixes = {"visual": "visual.", "text": text, "logits": ""}
    tensors: dict[str, LazyTensor] = {}
    for name in PARTS:
        part = pretrained.parts.get(name)
        if part is None or part.layout not in (
            *layouts.VISUAL.values(),
            layouts.HF_TEXT,
            layouts.LOGITS,
        ):
            raise UserError(
                f"{pretrained.source} ({pretrained.kind}) has no {name} that open_clip can take "
                "beside the rest"
            )
        tensors |= {f"{prefixes[name]}{key}": tensor for key, tensor in part.tensors.items()}
    return tensors


def write(
    directory: Path, pretrained: Pretrained, config: ModelConfig, tokenizer_dir: Path, name: str
) -> None:
    """Fills an empty directory for `create_model_and_transforms("local-dir:DIRECTORY")`.

    Args:
        directory: an existing, empty directory.
        pretrained: the weights; written as float32.
        config: the config of the model.
        tokenizer_dir: contains `tokenizer.json` or `vocab.txt`.
        name: transformers looks BERT's config.json up by it: the final absolute path of the
            directory, or the id of a hub repository.

    Raises:
        UserError: the tokenizer is missing (open_clip would silently create an empty one), or
            open_clip has no name for the architecture.
    """
    files = [tokenizer_dir / file for file in _TOKENIZER_FILES]
    files = [path for path in files if path.is_file()]
    if not {"tokenizer.json", "vocab.txt"} & {path.name for path in files}:
        raise UserError(f"{tokenizer_dir} holds neither tokenizer.json nor vocab.txt")
    write_config(directory, config, name)
    _write_json(directory / "config.json", bert_config(config))
    for path in files:
        shutil.copyfile(path, directory / path.name)
    safetensors_file.write(directory / WEIGHTS_FILE, state_dict(pretrained))


def write_config(directory: Path, config: ModelConfig, name: str) -> None:
    """Writes `open_clip_config.json`, or rewrites it for another `name`."""
    _write_json(directory / CONFIG_FILE, open_clip_config(config, name))


def open_clip_config(config: ModelConfig, name: str) -> dict[str, Any]:
    """The content of `open_clip_config.json`; `name` as in `write`."""
    text = config.text
    model_cfg: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.visual.activation == "quick_gelu",
        "vision_cfg": _vision_config(config.visual),
        "text_cfg": {
            "hf_model_name": name,
            # Ignored for a local directory, but without it open_clip takes CLIP's own tokenizer.
            "hf_tokenizer_name": name,
            "hf_model_pretrained": False,
            "hf_proj_type": None if text.projection == "none" else text.projection,
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": text.context_length,
        },
    }
    if config.logit_bias_init is not None:
        model_cfg["init_logit_bias"] = config.logit_bias_init
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": {
            "mean": list(config.image_mean),
            "std": list(config.image_std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def _vision_config(visual: VisualConfig) -> dict[str, Any]:
    if visual.variant == "timm":
        size = _TIMM_SIZES.get((visual.width, visual.layers, visual.heads), "?")
        name = f"vit_{size}_patch{visual.patch_size}_{visual.image_size}"
        standard = (visual.mlp_width, visual.activation, visual.layer_norm_eps)
        if not re.fullmatch(_TIMM_NAME, name) or standard != (4 * visual.width, "gelu", 1e-6):
            raise UserError(f"open_clip has no name for this image tower of timm's form: {visual}")
        return {
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": visual.image_size,
        }
    vision_cfg: dict[str, Any] = {
        "image_size": visual.image_size,
        "patch_size": visual.patch_size,
        "layers": visual.layers,
        "width": visual.width,
        "head_width": visual.width // visual.heads,
        "mlp_ratio": visual.mlp_width / visual.width,
        "norm_kwargs": {"eps": visual.layer_norm_eps},
    }
    if visual.activation == "gelu_tanh":
        vision_cfg["act_kwargs"] = {"approximate": "tanh"}
    return vision_cfg


def bert_config(config: ModelConfig) -> dict[str, Any]:
    """The content of Hugging Face's `config.json` for the text tower."""
    text = config.text
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "intermediate_size": text.mlp_width,
        "hidden_act": _HF_ACTIVATIONS[text.activation],
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "max_position_embeddings": text.max_positions,
        "type_vocab_size": text.num_token_types,
        "initializer_range": 0.02,
        "layer_norm_eps": text.layer_norm_eps,
        "pad_token_id": text.pad_id,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
