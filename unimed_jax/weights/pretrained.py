"""Opened weights of any supported format, converted to parameters of our models."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from input_pipeline.io.errors import WeightsError
from unimed_jax.models.config import ModelConfig
from unimed_jax.weights import layouts
from unimed_jax.weights.layouts import Layout
from unimed_jax.weights.lazy_tensors import LazyTensor, Tensors
from unimed_jax.weights.mapping import to_params

PARTS = ("visual", "text", "logits")

# Both are bicubic: open_clip's with a = -0.5 and antialiasing, as for images; UniMed-CLIP's with
# a = -0.75, the corners of both grids on each other.
POSITION_RULES = ("open_clip", "corners")

# Settings of a tower that its tensors do not show.
_UNSEEN = ("heads", "activation", "layer_norm_eps")


@dataclass(frozen=True)
class Part:
    """One part of a model ("visual", "text" or "logits") in a file.

    Attributes:
        layout: the table of tensor names.
        tensors: the tensors by name, without the prefix of the part.
        prefix: the prefix in the file, for messages.
        config: the known keys of `model.visual` or `model.text`.
        ours: the parameters, if the checkpoint is one of ours.
    """

    layout: Layout
    tensors: Tensors
    prefix: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    ours: Any = None


@dataclass(frozen=True)
class Pretrained:
    """Opened weights; tensors are read when `params` is called.

    Attributes:
        source: the file, for messages.
        kind: the name of its layout, for messages.
        parts: the parts it has, out of "visual", "text", "logits".
        config: the known keys of `model`, without those of the towers.
        tokenizer: a directory or URI; "" if unknown.
        record: for our checkpoints, the "step", the "config" of the training, and the "scores" of
            that step by metric name.
    """

    source: str
    kind: str
    parts: Mapping[str, Part]
    config: Mapping[str, Any]
    tokenizer: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)

    def model_config(self, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
        """The config of the model in the file; a missing tower has the defaults.

        Args:
            overrides: dotted keys below `model`, such as {"visual.activation": "quick_gelu"}.

        Raises:
            WeightsError: the activation is neither in the file nor given.
        """
        config = {**self.config}
        for name, tower in self._towers().items():
            # heads of 64 up to L/14 and BERT-large; H/14 and larger keep their number
            heads = min(max(tower.config["width"] // 64, 1), 16)
            config[name] = {"heads": heads, **tower.config}
        for key, value in (overrides or {}).items():
            section, _, name = key.rpartition(".")
            (config.setdefault(section, {}) if section else config)[name] = value
        for name in self._towers():
            if "activation" not in config[name]:
                raise WeightsError(
                    f"{self.source} does not say which activation its {name} tower has: give "
                    f"{name}.activation=quick_gelu (OpenAI, MetaCLIP) or gelu (LAION, most others)"
                )
        return ModelConfig.from_mapping(config)

    def params(
        self,
        abstract: Mapping[str, Any],
        config: ModelConfig,
        expected: Sequence[str] = (),
        position_rule: str = "open_clip",
    ) -> dict[str, Any]:
        """Numpy arrays for the parts that `abstract` names, checked tensor by tensor.

        Args:
            abstract: arrays, or shapes and dtypes, of any sub-tree of the parameters.
            config: the config of the model that receives the parameters.
            expected: regular expressions over names of tensors that may be missing, unexpected or
                of another shape; their parameters are left out.
            position_rule: how position embeddings of another grid are resized, one of
                POSITION_RULES.

        Raises:
            WeightsError: a part is missing, contradicts `config`, or has tensors that do not fit.
        """
        params: dict[str, Any] = {}
        for name in PARTS:
            wanted = {k: v for k, v in abstract.items() if part_of(k) == name}
            if not wanted:
                continue
            if name not in self.parts:
                have = ", ".join(self.parts)
                raise WeightsError(f"{self.source} ({self.kind}) has no {name}, only {have}")
            part = self.parts[name]
            if name != "logits":
                self._check_unseen(name, config)
                wanted = wanted[name]
                if part.layout is layouts.BERT:  # a bare language model has no projection
                    wanted = {k: v for k, v in wanted.items() if k != "proj"}
            if _same_shapes(part.ours, wanted):
                arrays = part.ours
            else:
                arrays = self._mapped(name, wanted, config, expected, position_rule)
            params.update(arrays if name == "logits" else {name: arrays})
        return params

    def _mapped(
        self,
        name: str,
        wanted: Any,
        config: ModelConfig,
        expected: Sequence[str],
        position_rule: str,
    ) -> dict[str, Any]:
        part = self.parts[name]
        tensors = dict(part.tensors)
        if name == "visual":
            _resize_positions(part, tensors, config, self.source, position_rule)
        return to_params(
            {f"{part.prefix}{key}": tensor for key, tensor in tensors.items()},
            layouts.under("", part.prefix, part.layout),
            wanted,
            self.source,
            expected,
        )

    def _towers(self) -> dict[str, Part]:
        return {name: part for name, part in self.parts.items() if name != "logits"}

    def _check_unseen(self, name: str, config: ModelConfig) -> None:
        for key in _UNSEEN:
            stored = self.parts[name].config.get(key)
            value = getattr(getattr(config, name), key)
            if stored is not None and stored != value:
                raise WeightsError(
                    f"{self.source}: the {name} tower has {key} {stored!r}, but model.{name}.{key} "
                    f"is {value!r}; set it to {stored!r}"
                )


def _same_shapes(ours: Any, wanted: Any) -> bool:
    def describe(tree: Any) -> Any:
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    return ours is not None and describe(ours) == describe(wanted)


def part_of(key: str) -> str:
    """The part of a top-level key of the parameters."""
    return "logits" if key.startswith("logit_") else key


def resize_positions(positions: np.ndarray, num_tokens: int, rule: str = "open_clip") -> np.ndarray:
    """(1 + n², D) -> (num_tokens, D) float32: keeps the class row and interpolates the grid.

    Args:
        positions: the embeddings of a class token and a square grid.
        num_tokens: 1 and a square.
        rule: one of POSITION_RULES.
    """
    grid, size = math.isqrt(len(positions) - 1), math.isqrt(num_tokens - 1)
    width = positions.shape[1]
    square = np.asarray(positions[1:], np.float32).reshape(grid, grid, width)
    if rule == "open_clip":
        resized = np.asarray(jax.image.resize(square, (size, size, width), "cubic", antialias=True))
    else:
        weights = _weights_between_corners(grid, size)
        resized = np.einsum("ia,jb,abd->ijd", weights, weights, square.astype(np.float64))
    return np.concatenate([positions[:1], resized.reshape(-1, width)]).astype(np.float32)


def _weights_between_corners(old: int, new: int) -> np.ndarray:
    """(new, old) float64: cubic convolution with a = -0.75 (Keys 1981), corners on corners.

    At the border, the outermost value is repeated.
    """
    places = np.arange(new) * ((old - 1) / max(new - 1, 1))
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        neighbours = np.floor(places).astype(int) + offset
        x = np.abs(places - neighbours)
        near = (1.25 * x - 2.25) * x * x + 1
        far = ((-0.75 * x + 3.75) * x - 6) * x + 3
        value = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        np.add.at(weights, (np.arange(new), np.clip(neighbours, 0, old - 1)), value)
    return weights


def _resize_positions(
    part: Part, tensors: dict[str, LazyTensor], config: ModelConfig, source: str, rule: str
) -> None:
    entry = next(entry for entry in part.layout if entry.path == "positional_embedding")
    name = entry.names[0]
    if name not in tensors:
        return
    shape, num_tokens = tensors[name].shape, config.visual.num_tokens
    squares = all(math.isqrt(n - 1) ** 2 == n - 1 for n in (shape[-2], num_tokens))
    if shape[-2] == num_tokens or not squares:
        return
    original = tensors[name]
    logging.info("%s: position embeddings resized, %d -> %d", source, shape[-2], num_tokens)

    def load() -> np.ndarray:
        resized = resize_positions(original.load().reshape(shape[-2:]), num_tokens, rule)
        return resized.reshape(*shape[:-2], *resized.shape)

    tensors[name] = LazyTensor((*shape[:-2], num_tokens, shape[-1]), load)
