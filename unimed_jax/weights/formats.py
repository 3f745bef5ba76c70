"""Recognition of weights files: the format, and the part of the model of every tensor.

A format is recognized by the names of the tensors. Every tensor either belongs to a part of the
model or is left out by name (poolers, language-model heads, CLIP's original text tower); anything
else stops the import. Settings that names and shapes do not show, such as the activation, are read
from the JSON beside the weights, if there is one.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.io.errors import WeightsError
from unimed_jax.weights import layouts, safetensors_file, torch_file, wrappers
from unimed_jax.weights.lazy_tensors import LazyTensor, Tensors
from unimed_jax.weights.pretrained import Part, Pretrained

BIOMEDBERT = "hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
"""The vocabulary of the published medical CLIPs, which do not include it."""

# Preferred first; otherwise, a directory must contain exactly one weights file.
_WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

# A buffer of old versions of transformers, BERT's pooler, heads of pretraining and fine-tuning.
_NOT_IN_BERT = r"embeddings\.position_ids$|pooler\.|cls\.|classifier\.|qa_outputs\."
# CLIP's text tower, under the names of OpenAI, open_clip's CustomTextCLIP, and transformers.
_CLIP_TEXT = (
    r"(text\.)?(positional_embedding$|token_embedding\.|text_projection|ln_final\."
    r"|transformer\.resblocks\.|attn_mask$|cls_emb$)"
    r"|(input_resolution|context_length|vocab_size)$|text_model\."
    r"|vision_model\.embeddings\.position_ids$"
)
# LayerNorm as the first BERT checkpoints, converted from TensorFlow, name it.
_LEGACY_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def open_pretrained(path: Path) -> Pretrained:
    """Recognizes a weights file, or the one in a directory, and reads the config beside it.

    Raises:
        WeightsError: not a weights file, truncated, of an unknown format, or with tensors of no
            known part.
    """
    file = _weights_file(path) if path.is_dir() else path
    if file.suffix == ".safetensors":
        tensors, is_torchscript = safetensors_file.read(file), False
    else:
        tensors, is_torchscript = torch_file.read(file)
    tensors = wrappers.unwrapped(tensors, str(file))
    names = tensors.keys()

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    if has("text_encoder.transformer."):
        return _unimed(file, tensors)
    if has("visual."):
        return _open_clip(file, tensors, is_torchscript)
    if has("vision_model."):
        return _hugging_face_clip(file, tensors)
    if has("embeddings.word_embeddings.") or has("bert.embeddings.word_embeddings."):
        return _bert(file, tensors)
    raise WeightsError(
        f"{file} has no known layout: its first tensors are {', '.join(sorted(names)[:3])}; "
        "known are CLIP (OpenAI, MetaCLIP, open_clip, transformers), UniMed-CLIP, BiomedCLIP, BERT"
    )


# --- layouts ------------------------------------------------------------------------------------


def _unimed(file: Path, tensors: Tensors) -> Pretrained:
    visual, text, logits = _divide(file, tensors, "visual.", "text_encoder.", _NOT_IN_BERT)
    certain = {"activation": "quick_gelu", "layer_norm_eps": 1e-5}
    return _assemble(
        file,
        "UniMed-CLIP",
        {"visual": Part(layouts.CLIP_VISUAL, visual, "visual.", certain),
         "text": Part(layouts.HF_TEXT, text, "text_encoder.", _bert_config({})),
         "logits": logits},
        tokenizer=BIOMEDBERT,
    )  # fmt: skip


def _open_clip(file: Path, tensors: Tensors, is_torchscript: bool) -> Pretrained:
    """OpenAI, MetaCLIP, open_clip; with a BERT or a text tower that is left out."""
    timm = any(name.startswith("visual.trunk.") for name in tensors)
    with_bert = any(name.startswith("text.transformer.embeddings.") for name in tensors)
    ignored = _NOT_IN_BERT if with_bert else _CLIP_TEXT
    visual, text, logits = _divide(
        file, tensors, "visual.", "text." if with_bert else None, ignored
    )
    sidecar = _read_json(file.with_name("open_clip_config.json"))
    settings = sidecar.get("model_cfg", {})
    text_settings = settings.get("text_cfg", {})
    visual_config = {} if not settings else _open_clip_visual_config(settings, timm)
    if timm:
        visual_config |= {"activation": "gelu", "layer_norm_eps": 1e-6}
    elif is_torchscript:  # only OpenAI published such files
        visual_config |= {"activation": "quick_gelu", "layer_norm_eps": 1e-5}
    parts = {
        "visual": Part(
            layouts.TIMM_VISUAL if timm else layouts.CLIP_VISUAL, visual, "visual.", visual_config
        ),
        "logits": logits,
    }
    if with_bert:
        pooler = text_settings.get("hf_pooler_type", "cls_last_hidden_state_pooler")
        if pooler != "cls_last_hidden_state_pooler":
            raise WeightsError(
                f"{file}: its text tower pools by {pooler!r}; only "
                "'cls_last_hidden_state_pooler' is supported"
            )
        bert = _bert_config(_read_json(file.with_name("config.json")))
        if "context_length" in text_settings:
            bert["context_length"] = text_settings["context_length"]
        parts["text"] = Part(layouts.HF_TEXT, text, "text.", bert)
    preprocessing = sidecar.get("preprocess_cfg", {})
    config = {
        ours: tuple(preprocessing[theirs])
        for ours, theirs in (("image_mean", "mean"), ("image_std", "std"))
        if theirs in preprocessing
    }
    local = any((file.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    tokenizer = str(file.parent) if local else BIOMEDBERT if timm else ""
    kind = "timm image tower in open_clip" if timm else "open_clip"
    return _assemble(file, kind, parts, config, tokenizer if with_bert else "")


def _hugging_face_clip(file: Path, tensors: Tensors) -> Pretrained:
    visual, _, logits = _divide(
        file, tensors, ("vision_model.", "visual_projection."), None, _CLIP_TEXT
    )
    settings = _read_json(file.with_name("config.json")).get("vision_config", {})
    activation = settings.get("hidden_act", "quick_gelu")
    visual_config = {
        "activation": _ACTIVATIONS.get(activation, activation),
        "layer_norm_eps": settings.get("layer_norm_eps", 1e-5),
    }
    if "num_attention_heads" in settings:
        visual_config["heads"] = settings["num_attention_heads"]
    part = Part(layouts.HF_CLIP_VISUAL, visual, "", visual_config)
    return _assemble(file, "transformers CLIPModel", {"visual": part, "logits": logits})


def _bert(file: Path, tensors: Tensors) -> Pretrained:
    bare = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    text = {
        _modern_norm(name): tensor
        for name, tensor in bare.items()
        if not re.match(_NOT_IN_BERT, name)
    }
    settings = _read_json(file.with_name("config.json"))
    if settings.get("model_type", "bert") != "bert":
        raise WeightsError(
            f"{file}: its config.json is of a {settings['model_type']!r}, not a BERT"
        )
    part = Part(layouts.BERT, text, "", _bert_config(settings))
    return _assemble(file, "BERT", {"text": part}, tokenizer=str(file.parent))


def _divide(
    file: Path,
    tensors: Tensors,
    visual_prefix: str | tuple[str, ...],
    text_prefix: str | None,
    ignored: str,
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor], Part]:
    """Tensors of the image tower, of the text tower, and the two scalars."""
    visual, text, scalars, strange = {}, {}, {}, []
    for name, tensor in tensors.items():
        if name in ("logit_scale", "logit_bias"):
            scalars[name] = _as_scalar(tensor)
        elif name.startswith(visual_prefix):
            # one prefix is removed, several belong to the names
            if isinstance(visual_prefix, str):
                name = name.removeprefix(visual_prefix)
            visual[name] = tensor
        elif text_prefix and name.startswith(text_prefix):
            inner = name.removeprefix(text_prefix)
            if not re.match(rf"(transformer\.)?({ignored})", inner):
                text[_modern_norm(inner)] = tensor
        elif not re.match(ignored, name):
            strange.append(f"{name}, shape {tensor.shape}")
    if strange:
        raise WeightsError(
            f"{file} has tensors that belong to no part of the model:\n  " + "\n  ".join(strange)
        )
    return visual, text, Part(layouts.LOGITS, scalars)


def _as_scalar(tensor: LazyTensor) -> LazyTensor:
    """Old versions of open_clip kept the scale in an array of one element."""
    if tensor.shape == (1,):
        return LazyTensor((), lambda: tensor.load().reshape(()))
    return tensor


def _modern_norm(name: str) -> str:
    for old, new in _LEGACY_NORM.items():
        name = name.replace(old, new)
    return name


# --- configurations -----------------------------------------------------------------------------


def _assemble(
    file: Path,
    kind: str,
    parts: Mapping[str, Part],
    config: Mapping[str, Any] | None = None,
    tokenizer: str = "",
) -> Pretrained:
    """Adds the settings that follow from the shapes of the tensors."""
    config = dict(config or {})
    parts = dict(parts)
    if "visual" in parts:
        shape = _Shapes(file, parts["visual"])
        side = math.isqrt(shape("positional_embedding", "n") - 1)
        patch = shape("patch_embedding/kernel", "p")
        timm = parts["visual"].layout is layouts.TIMM_VISUAL
        seen = {
            "image_size": side * patch,
            "patch_size": patch,
            "width": shape("patch_embedding/kernel", "d"),
            "layers": shape.num_layers(),
            "mlp_width": shape("blocks/mlp/c_fc/kernel", "o"),
            "variant": "timm" if timm else "clip",
        }
        config["embed_dim"] = shape("proj", "e")
        parts["visual"] = _with_config(parts["visual"], seen)
    if "text" in parts:
        shape = _Shapes(file, parts["text"])
        seen = {
            "vocab_size": shape("word_embeddings/embedding", "n"),
            "width": shape("word_embeddings/embedding", "d"),
            "max_positions": shape("position_embeddings/embedding", "n"),
            "num_token_types": shape("token_type_embeddings/embedding", "n"),
            "layers": shape.num_layers(),
            "mlp_width": shape("blocks/mlp/c_fc/kernel", "o"),
            "projection": "mlp"
            if shape.has("proj/c_fc/kernel")
            else "linear"
            if shape.has("proj/kernel")
            else "none",
        }
        # published models pad to 256, or to what the position embeddings allow
        seen["context_length"] = min(
            parts["text"].config.get("context_length", 256), seen["max_positions"]
        )
        config.setdefault("embed_dim", seen["width"])
        parts["text"] = _with_config(parts["text"], seen)
    if "logits" in parts and "logit_bias" in parts["logits"].tensors:
        config["logit_bias_init"] = -10.0
    if "logits" in parts and not parts["logits"].tensors:
        del parts["logits"]
    return Pretrained(str(file), kind, parts, config, tokenizer)


def _with_config(part: Part, seen: Mapping[str, Any]) -> Part:
    return dataclasses.replace(part, config={**part.config, **seen})


class _Shapes:
    """Sizes of a part, by our parameter and the letter of its dim in torch's layout."""

    def __init__(self, file: Path, part: Part) -> None:
        self._file, self._part = file, part
        self._entries = {entry.path: entry for entry in part.layout if entry.path}

    def has(self, path: str) -> bool:
        return path in self._entries and self._entries[path].names[0] in self._part.tensors

    def __call__(self, path: str, letter: str) -> int:
        entry = self._entries[path]
        name = entry.names[0].format(layer=0)
        if name not in self._part.tensors:
            raise WeightsError(f"{self._file} is incomplete: it lacks {self._part.prefix}{name}")
        shape, dims = self._part.tensors[name].shape, entry.torch_layout.split()
        if len(shape) != len(dims):
            raise WeightsError(
                f"{self._file}: {self._part.prefix}{name} has shape {shape}, not {len(dims)} dims"
            )
        return shape[dims.index(letter)]

    def num_layers(self) -> int:
        name = self._entries["blocks/ln_1/scale"].names[0]
        pattern = re.escape(name).replace(r"\{layer\}", r"(\d+)")
        return sum(re.fullmatch(pattern, key) is not None for key in self._part.tensors)


def _open_clip_visual_config(settings: Mapping[str, Any], timm: bool) -> dict[str, Any]:
    """The settings in open_clip_config.json of a vision transformer of open_clip."""
    if timm:
        return {}
    vision = settings.get("vision_cfg", {})
    tanh = vision.get("act_kwargs", {}) or {}
    plain = "gelu_tanh" if tanh.get("approximate") == "tanh" else "gelu"
    config = {
        "activation": "quick_gelu" if settings.get("quick_gelu") else plain,
        "layer_norm_eps": (vision.get("norm_kwargs") or {}).get("eps", 1e-5),
    }
    if "width" in vision:
        config["heads"] = vision["width"] // vision.get("head_width", 64)
    return config


def _bert_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in BERT's config.json; without one, those common to all BERTs."""
    activation = settings.get("hidden_act", "gelu")
    config = {
        "activation": _ACTIVATIONS.get(activation, activation),
        "layer_norm_eps": settings.get("layer_norm_eps", 1e-12),
        "dropout": settings.get("hidden_dropout_prob", 0.1),
        "pad_id": settings.get("pad_token_id", 0),
    }
    if "num_attention_heads" in settings:
        config["heads"] = settings["num_attention_heads"]
    return config


def _weights_file(directory: Path) -> Path:
    for name in _WEIGHTS_FILES:
        if (directory / name).is_file():
            return directory / name
    files = sorted(file for file in directory.iterdir() if file.suffix in _SUFFIXES)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise WeightsError(
            f"{directory}: expected one weights file ({', '.join(_SUFFIXES)}), found {names}"
        )
    return files[0]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} must hold a JSON object")
    return content
