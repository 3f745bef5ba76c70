"""The `model` section of a config as frozen dataclasses, checked before anything is compiled."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self

from input_pipeline.errors import ConfigError

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
Projection = Literal["mlp", "linear", "none"]
DType = Literal["float32", "bfloat16"]
Remat = Literal["none", "full", "dots"]


@dataclasses.dataclass(frozen=True)
class VisualConfig:
    """Sizes of the image tower. Lengths are in pixels (`image_size`, `patch_size`) or features."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation
    layer_norm_eps: float

    @property
    def num_tokens(self) -> int:
        """Patches plus the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower. `context_length` is what the tokenizer pads to."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    num_token_types: int
    activation: Activation
    layer_norm_eps: float
    dropout: float
    context_length: int
    pad_id: int
    projection: Projection


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole dual encoder; `logit_bias_init` is None where there is no bias (softmax loss)."""

    embed_dim: int
    visual: VisualConfig
    text: TextConfig
    logit_scale_init: float
    logit_bias_init: float | None
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    compute_dtype: DType
    param_dtype: DType
    remat: Remat
    scan_layers: bool

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Reads and checks a nested mapping (dict, ConfigDict).

        Raises ConfigError naming the key for an unknown or missing key, a wrong type, a value out
        of range or two values that contradict each other.
        """
        config = _read(cls, mapping, "model")
        _check(config)
        return config


def _read(cls: type, mapping: Any, prefix: str) -> Any:
    if not hasattr(mapping, "keys"):
        raise ConfigError(f"{prefix}: expected a mapping, got {mapping!r}")
    hints = typing.get_type_hints(cls)
    for problem, keys in (
        ("unknown", [key for key in mapping.keys() if key not in hints]),  # noqa: SIM118
        ("missing", [key for key in hints if key not in mapping]),
    ):
        if keys:
            raise ConfigError(
                f"{problem} config key {', '.join(f'{prefix}.{key}' for key in keys)}; "
                f"the keys of {prefix} are {', '.join(hints)}"
            )
    return cls(
        **{key: _value(hint, mapping[key], f"{prefix}.{key}") for key, hint in hints.items()}
    )


def _value(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read(hint, value, key)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(repr, choices))}")
        return value
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)) and len(value) == 3:
            return tuple(_value(float, item, key) for item in value)
        raise ConfigError(f"{key}: expected three numbers, got {value!r}")
    optional = hint == float | None
    if optional and value is None:
        return None
    wanted = float if optional else hint
    # bool is an int to Python, and an int is a fine float; neither the other way round.
    accepted = (int, float) if wanted is float else wanted
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"{key}: expected {wanted.__name__}, got {value!r}")
    return wanted(value)


def _check(config: ModelConfig) -> None:
    visual, text = config.visual, config.text

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(message)

    positive = {"model.embed_dim": config.embed_dim}
    for name, tower in (("visual", visual), ("text", text)):
        for field in dataclasses.fields(tower):
            value = getattr(tower, field.name)
            if field.name not in ("dropout", "pad_id") and not isinstance(value, str):
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
    require(
        0 <= text.pad_id < text.vocab_size,
        f"model.text.pad_id {text.pad_id} is outside the vocabulary of "
        f"model.text.vocab_size {text.vocab_size}",
    )
    require(0.0 <= text.dropout < 1.0, f"model.text.dropout {text.dropout} is not in [0, 1)")
    require(
        text.projection != "none" or text.width == config.embed_dim,
        f"model.text.projection 'none' needs model.text.width {text.width} equal to "
        f"model.embed_dim {config.embed_dim}; use 'mlp' or 'linear'",
    )
