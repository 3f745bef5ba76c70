"""Writing a model as a directory that stock open_clip loads offline."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from input_pipeline.errors import UserError
from unimed_jax.models.config import ModelConfig
from unimed_jax.porting import open_clip_map

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_HF_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def export_open_clip(
    params: dict[str, Any], config: ModelConfig, tokenizer_dir: Path, out_dir: Path
) -> None:
    """Writes a directory for `open_clip.create_model_and_transforms("local-dir:OUT_DIR")`.

    It holds `open_clip_model.safetensors` (float32), `open_clip_config.json`, BERT's `config.json`
    and the tokenizer's files, and appears whole or not at all. open_clip looks the BERT config up
    by the absolute path that is written here, so a directory that is moved must be exported again
    (or `hf_model_name` in `open_clip_config.json` edited).

    Args:
        params: of the model; leaves anything that numpy reads.
        config: of the same model.
        tokenizer_dir: holds `tokenizer.json` or `vocab.txt`.
        out_dir: must not exist, or be empty.

    Raises:
        UserError: no tokenizer there (open_clip would make an empty one and say nothing), `out_dir`
            in use, or not writable.
    """
    out_dir = out_dir.absolute()
    tokenizer_files = [tokenizer_dir / name for name in _TOKENIZER_FILES]
    tokenizer_files = [path for path in tokenizer_files if path.is_file()]
    if not {"tokenizer.json", "vocab.txt"} & {path.name for path in tokenizer_files}:
        raise UserError(f"{tokenizer_dir} holds neither tokenizer.json nor vocab.txt")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} exists and is not an empty directory; name another")
    tensors = open_clip_map.to_tensors(params, open_clip_map.OPEN_CLIP)
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}.", dir=out_dir.parent) as parent:
            # A directory of its own gets the usual permissions; the temporary one is private.
            staged = Path(parent) / out_dir.name
            staged.mkdir()
            safetensors.numpy.save_file(tensors, staged / "open_clip_model.safetensors")
            _write_json(staged / "open_clip_config.json", open_clip_config(config, out_dir))
            _write_json(staged / "config.json", bert_config(config))
            for path in tokenizer_files:
                shutil.copyfile(path, staged / path.name)
            staged.replace(out_dir)
    except OSError as error:
        raise UserError(f"cannot write {out_dir}: {error.strerror or error}") from error


def open_clip_config(config: ModelConfig, out_dir: Path) -> dict[str, Any]:
    """The content of `open_clip_config.json` for a directory that will be `out_dir` (absolute)."""
    visual, text = config.visual, config.text
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
    model_cfg: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "quick_gelu": visual.activation == "quick_gelu",
        "vision_cfg": vision_cfg,
        "text_cfg": {
            "hf_model_name": str(out_dir),
            # Ignored for a local directory, but without it open_clip takes CLIP's own tokenizer.
            "hf_tokenizer_name": str(out_dir),
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
