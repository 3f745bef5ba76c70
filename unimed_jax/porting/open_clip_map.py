"""One table between our parameters and torch's state-dict names, read in both directions.

A layout is written as dims of letters, one group per dim: torch's fused projection (3·H·K, D) is
"shk d" and our (D, 3, H, K) is "d s h k". Reading a weight is a reshape and a transpose from one to
the other, so a round trip returns the same bits.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from input_pipeline.errors import WeightsError


@dataclass(frozen=True)
class Entry:
    """One parameter of ours and the torch tensors that hold it.

    Attributes:
        path: keys joined by "/"; under "blocks/" our array is stacked on a leading layer axis.
        layout: dims of our array, the layer axis left out.
        names: torch tensors, "{layer}" standing for the index of the block. Several are the pieces
            of one tensor cut along its first dim.
        torch_layout: dims of the torch tensor, the pieces put together.
    """

    path: str
    layout: str
    names: tuple[str, ...]
    torch_layout: str


def _vector(path: str, name: str) -> Entry:
    return Entry(path, "d", (name,), "d")


def _linear(path: str, name: str) -> tuple[Entry, Entry]:
    return (_kernel(f"{path}/kernel", f"{name}.weight"), _vector(f"{path}/bias", f"{name}.bias"))


def _kernel(path: str, name: str) -> Entry:
    return Entry(path, "i o", (name,), "o i")


def _norm(path: str, name: str) -> tuple[Entry, Entry]:
    return (_vector(f"{path}/scale", f"{name}.weight"), _vector(f"{path}/bias", f"{name}.bias"))


def _attention(
    path: str, qkv_weights: tuple[str, ...], qkv_biases: tuple[str, ...], out: str
) -> tuple[Entry, ...]:
    return (
        Entry(f"{path}/qkv/kernel", "d s h k", qkv_weights, "shk d"),
        Entry(f"{path}/qkv/bias", "s h k", qkv_biases, "shk"),
        Entry(f"{path}/out/kernel", "h k d", (f"{out}.weight",), "d hk"),
        _vector(f"{path}/out/bias", f"{out}.bias"),
    )


def _embedding(path: str, name: str) -> Entry:
    return Entry(f"{path}/embedding", "n d", (f"{name}.weight",), "n d")


_RESBLOCK = "transformer.resblocks.{layer}"
VISUAL: tuple[Entry, ...] = (
    Entry("patch_embedding/kernel", "pqc d", ("conv1.weight",), "d c p q"),
    _vector("class_embedding", "class_embedding"),
    Entry("positional_embedding", "n d", ("positional_embedding",), "n d"),
    *_norm("ln_pre", "ln_pre"),
    *_norm("blocks/ln_1", f"{_RESBLOCK}.ln_1"),
    *_attention(
        "blocks/attn",
        (f"{_RESBLOCK}.attn.in_proj_weight",),
        (f"{_RESBLOCK}.attn.in_proj_bias",),
        f"{_RESBLOCK}.attn.out_proj",
    ),
    *_norm("blocks/ln_2", f"{_RESBLOCK}.ln_2"),
    *_linear("blocks/mlp/c_fc", f"{_RESBLOCK}.mlp.c_fc"),
    *_linear("blocks/mlp/c_proj", f"{_RESBLOCK}.mlp.c_proj"),
    *_norm("ln_post", "ln_post"),
    Entry("proj", "d e", ("proj",), "d e"),
)
"""The image tower under the names that OpenAI CLIP, MetaCLIP and open_clip share."""

_LAYER = "encoder.layer.{layer}"
BERT: tuple[Entry, ...] = (
    _embedding("word_embeddings", "embeddings.word_embeddings"),
    _embedding("position_embeddings", "embeddings.position_embeddings"),
    _embedding("token_type_embeddings", "embeddings.token_type_embeddings"),
    *_norm("ln_embeddings", "embeddings.LayerNorm"),
    *_attention(
        "blocks/attn",
        tuple(f"{_LAYER}.attention.self.{part}.weight" for part in ("query", "key", "value")),
        tuple(f"{_LAYER}.attention.self.{part}.bias" for part in ("query", "key", "value")),
        f"{_LAYER}.attention.output.dense",
    ),
    *_norm("blocks/ln_1", f"{_LAYER}.attention.output.LayerNorm"),
    *_linear("blocks/mlp/c_fc", f"{_LAYER}.intermediate.dense"),
    *_linear("blocks/mlp/c_proj", f"{_LAYER}.output.dense"),
    *_norm("blocks/ln_2", f"{_LAYER}.output.LayerNorm"),
)
"""BERT without pooler under Hugging Face's names."""


def _under(path: str, name: str, table: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(
        replace(
            entry,
            path=f"{path}/{entry.path}",
            names=tuple(f"{name}.{torch_name}" for torch_name in entry.names),
        )
        for entry in table
    )


OPEN_CLIP: tuple[Entry, ...] = (
    *_under("visual", "visual", VISUAL),
    *_under("text", "text.transformer", BERT),
    _kernel("text/proj/c_fc/kernel", "text.proj.0.weight"),
    _kernel("text/proj/c_proj/kernel", "text.proj.2.weight"),
    _kernel("text/proj/kernel", "text.proj.weight"),
    Entry("logit_scale", "", ("logit_scale",), ""),
    Entry("logit_bias", "", ("logit_bias",), ""),
)
"""open_clip's `CustomTextCLIP`, with each of the text projections and an optional bias."""


def to_params(
    tensors: Mapping[str, np.ndarray], table: Iterable[Entry], abstract: Any, source: str
) -> dict[str, Any]:
    """Our parameters from torch tensors.

    Args:
        tensors: arrays by state-dict name, nothing else among them.
        table: entries whose paths exist in `abstract` are used.
        abstract: the nested dict wanted, of anything with shape and dtype.
        source: the file, for messages.

    Returns:
        numpy arrays in the structure, shapes and dtypes of `abstract`.

    Raises:
        WeightsError: listing every tensor that is missing, unexpected or of another shape.
    """
    wanted = _flat(abstract)
    entries = {entry.path: entry for entry in table if entry.path in wanted}
    if untold := wanted.keys() - entries.keys():
        raise ValueError(f"the table has no entry for {', '.join(sorted(untold))}")

    expected = {
        name: shape
        for path, entry in entries.items()
        for names in _layer_names(entry, wanted[path].shape)
        for name, shape in zip(names, _torch_shapes(entry, wanted[path].shape), strict=True)
    }
    problems = [
        f"missing: {name}, shape {shape}" for name, shape in expected.items() if name not in tensors
    ]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"unexpected: {name}, shape {tensor.shape}")
        elif tensor.shape != expected[name]:
            problems.append(
                f"shape: {name} is {tensor.shape} in the file, {expected[name]} in the model"
            )
    if problems:
        raise WeightsError(
            f"{source} does not fit the model ({len(problems)} tensors):\n  "
            + "\n  ".join(problems)
        )

    params: dict[str, Any] = {}
    for path, entry in entries.items():
        leaf = wanted[path]
        sizes = _sizes(entry, leaf.shape)
        layers = [
            _rearrange(
                _join([tensors[name] for name in names]), entry.torch_layout, entry.layout, sizes
            )
            for names in _layer_names(entry, leaf.shape)
        ]
        array = np.stack(layers) if _stacked(entry) else layers[0]
        _insert(params, path, np.asarray(array, leaf.dtype))
    return params


def to_tensors(params: Mapping[str, Any], table: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The inverse of `to_params`: contiguous arrays by state-dict name, in the params' dtypes.

    Raises ValueError for a parameter that the table does not have.
    """
    arrays = _flat(params)
    tensors: dict[str, np.ndarray] = {}
    for entry in table:
        if entry.path not in arrays:
            continue
        array = np.asarray(arrays.pop(entry.path))
        sizes = _sizes(entry, array.shape)
        layers = array if _stacked(entry) else array[None]
        for names, layer in zip(_layer_names(entry, array.shape), layers, strict=True):
            tensor = _rearrange(layer, entry.layout, entry.torch_layout, sizes)
            pieces = [tensor] if len(names) == 1 else np.split(tensor, len(names))
            for name, piece in zip(names, pieces, strict=True):
                tensors[name] = np.ascontiguousarray(piece).reshape(piece.shape)
    if arrays:
        raise ValueError(f"the table has no entry for {', '.join(sorted(arrays))}")
    return tensors


def _flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _insert(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[key] = value


def _stacked(entry: Entry) -> bool:
    return "{layer}" in entry.names[0]


def _layer_names(entry: Entry, shape: tuple[int, ...]) -> list[tuple[str, ...]]:
    layers = shape[0] if _stacked(entry) else 1
    return [tuple(name.format(layer=layer) for name in entry.names) for layer in range(layers)]


def _sizes(entry: Entry, shape: tuple[int, ...]) -> dict[str, int]:
    """The size that each letter of an entry stands for, from the shape of our array."""
    sizes: dict[str, int] = {}
    for group, size in zip(
        entry.layout.split(), shape[1:] if _stacked(entry) else shape, strict=True
    ):
        if group == "pqc":  # square patches of three channels
            sizes.update(p=math.isqrt(size // 3), q=math.isqrt(size // 3), c=3)
        else:
            sizes[group] = size
    return sizes


def _torch_shapes(entry: Entry, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    sizes = _sizes(entry, shape)
    whole = tuple(math.prod(sizes[letter] for letter in dim) for dim in entry.torch_layout.split())
    pieces = len(entry.names)
    return [whole if pieces == 1 else (whole[0] // pieces, *whole[1:])] * pieces


def _join(pieces: list[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _rearrange(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    letters, wanted = source.replace(" ", ""), target.replace(" ", "")
    split = array.reshape([sizes[letter] for letter in letters])
    moved = split.transpose([letters.index(letter) for letter in wanted])
    return moved.reshape([math.prod(sizes[letter] for letter in dim) for dim in target.split()])
