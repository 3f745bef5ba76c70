"""The ``model`` section of a config as frozen dataclasses, validated before compilation."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from input_pipeline.io.errors import ConfigError

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
Projection = Literal["mlp", "linear", "none"]
DType = Literal["float32", "bfloat16"]
Remat = Literal["none", "full", "dots"]
AttentionImpl = Literal["auto", "plain"]
VisualVariant = Literal["clip", "timm"]


@dataclasses.dataclass(frozen=True)
class VisualConfig:
    """The image tower; the defaults are ViT-B/16.

    Attributes:
      image_size: side of the images in pixels.
      patch_size: side of a patch in pixels.
      variant: "clip" has a norm before the blocks and a patch embedding without bias; "timm" (as in
        BiomedCLIP) has no such norm and a bias.
      patch_dropout: share of the patches of each image that a train step leaves out, drawn anew for
        every image (FLIP, arXiv 2212.00794); the step gets cheaper by about as much.
      architecture: a key of ``registry.IMAGE_TOWERS``.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    variant: VisualVariant = "clip"
    patch_dropout: float = 0.0
    architecture: str = "vit"

    @property
    def num_tokens(self) -> int:
        """Patches plus the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower; the defaults are BERT-base with the projection of UniMed-CLIP.

    Attributes:
      context_length: number of tokens that the tokenizer pads to.
      buckets: lengths, ascending, the last one ``context_length``. A train step sorts the captions
        of a batch by length and cuts groups of them to the smallest that holds them; see
        ``models/text_buckets.py``. (): all are padded to ``context_length``.
      bucket_groups: number of groups, at least ``optimizer.accumulate_steps``; unused without
        buckets.
      architecture: a key of ``registry.TEXT_TOWERS``.
    """

    vocab_size: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    num_token_types: int = 2
    activation: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    context_length: int = 256
    buckets: tuple[int, ...] = ()
    bucket_groups: int = 4
    pad_id: int = 0
    projection: Projection = "mlp"
    architecture: str = "bert"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A dual encoder; the defaults are UniMed-CLIP's ViT-B/16 with BiomedBERT-base.

    Attributes:
      logit_scale_init: initial value of the logarithm of the logit scale.
      logit_bias_init: initial logit bias (-10 in SigLIP); None: no bias (softmax loss).
      remat: rematerialization: "full" stores only the input of each block, "dots" also the products
        with weights; "none" stores everything.
      attention_impl: "auto" uses a fused kernel in train steps on TPU, "plain" never does.
      scan_layers: loop over the blocks; False unrolls them, which compiles more slowly and
        sometimes runs faster.
    """

    embed_dim: int = 512
    visual: VisualConfig = VisualConfig()
    text: TextConfig = TextConfig()
    logit_scale_init: float = math.log(1 / 0.07)
    logit_bias_init: float | None = None
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    compute_dtype: DType = "float32"
    param_dtype: DType = "float32"
    remat: Remat = "none"
    attention_impl: AttentionImpl = "auto"
    scan_layers: bool = True

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Reads and validates a nested mapping (dict, ConfigDict); missing keys get defaults.

        Raises:
          ConfigError: a key is unknown, has a wrong type or is out of range, or two keys contradict
            each other; the message names the key.
        """
        config = _read(cls, mapping, "model")
        _check(config)
        return config


def _read(cls: type, mapping: Any, prefix: str) -> Any:
    if not hasattr(mapping, "keys"):
        raise ConfigError(f"{prefix}: expected a mapping, got {mapping!r}")
    hints = typing.get_type_hints(cls)
    if unknown := [key for key in mapping.keys() if key not in hints]:  # noqa: SIM118
        raise ConfigError(
            f"unknown config key {', '.join(f'{prefix}.{key}' for key in unknown)}; "
            f"the keys of {prefix} are {', '.join(hints)}"
        )
    return cls(
        **{
            key: _value(hint, mapping[key], f"{prefix}.{key}")
            for key, hint in hints.items()
            if key in mapping
        }
    )


def _value(hint: Any, value: Any, key: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _read(hint, value, key)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(repr, choices))}")
        return value
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        any_number = items[-1] is ...
        if isinstance(value, (list, tuple)) and (any_number or len(value) == len(items)):
            return tuple(_value(items[0], item, key) for item in value)
        valid = "a list of whole numbers" if any_number else "three numbers"
        raise ConfigError(f"{key}: expected {valid}, got {value!r}")
    optional = hint == float | None
    if optional and value is None:
        return None
    expected = float if optional else hint
    # Python counts bool as int, which a config must not; an int is a valid float.
    accepted = (int, float) if expected is float else expected
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{key}: expected {expected.__name__}, got {value!r}")
    return expected(value)


def _check(config: ModelConfig) -> None:
    visual, text = config.visual, config.text

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(message)

    shares = ("dropout", "patch_dropout", "pad_id")  # may be 0
    positive: dict[str, float] = {"model.embed_dim": config.embed_dim}
    for name, tower in (("visual", visual), ("text", text)):
        for field in dataclasses.fields(tower):
            value = getattr(tower, field.name)
            if isinstance(value, int | float) and field.name not in shares:
                positive[f"model.{name}.{field.name}"] = value
        require(
            tower.heads > 0 and tower.width % tower.heads == 0,
            f"model.{name}.width {tower.width} is not divisible by model.{name}.heads "
            f"{tower.heads}",
        )
    positive["model.image_std"] = min(config.image_std)
    for key, value in positive.items():
        require(value > 0, f"{key}: expected a positive number, got {value}")
    require(
        visual.image_size % visual.patch_size == 0,
        f"model.visual.image_size {visual.image_size} is not divisible by "
        f"model.visual.patch_size {visual.patch_size}",
    )
    require(
        text.context_length <= text.max_positions,
        f"model.text.context_length {text.context_length} exceeds "
        f"model.text.max_positions {text.max_positions}",
    )
    buckets = text.buckets
    require(
        not buckets
        or (buckets[0] > 0 and buckets[-1] == text.context_length and _ascending(buckets)),
        f"model.text.buckets {buckets}: expected ascending lengths, the last one "
        f"model.text.context_length {text.context_length}, or () for none",
    )
    require(
        0 <= text.pad_id < text.vocab_size,
        f"model.text.pad_id {text.pad_id} is outside the vocabulary of "
        f"model.text.vocab_size {text.vocab_size}",
    )
    require(0.0 <= text.dropout < 1.0, f"model.text.dropout {text.dropout} is not in [0, 1)")
    require(
        0.0 <= visual.patch_dropout < 1.0,
        f"model.visual.patch_dropout {visual.patch_dropout} is not in [0, 1)",
    )
    require(
        text.projection != "none" or text.width == config.embed_dim,
        f"model.text.projection 'none' needs model.text.width {text.width} equal to "
        f"model.embed_dim {config.embed_dim}; use 'mlp' or 'linear'",
    )


def _ascending(numbers: Sequence[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(numbers))
