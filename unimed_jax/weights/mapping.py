"""Converts torch tensors to our parameters and back, by the tables of layouts.py.

Each weight is a reshape and a transpose, so a round trip returns the same bits.
"""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline.io.errors import WeightsError
from unimed_jax.weights.layouts import Entry
from unimed_jax.weights.lazy_tensors import LazyTensor, Tensors


def to_params(
    tensors: Tensors,
    layout: Iterable[Entry],
    abstract: Any,
    source: str,
    expected: Sequence[str] = (),
) -> dict[str, Any]:
    """Our parameters from torch tensors.

    Args:
        tensors: all tensors of the part, by state-dict name.
        layout: the entries whose paths exist in `abstract` are used.
        abstract: nested dict of anything with shape and dtype; the structure of the result.
        source: the file, for messages.
        expected: regular expressions over names of tensors that may be missing, unexpected or of
            another shape; their parameters are left out of the result.

    Returns:
        numpy arrays in the structure, shapes and dtypes of `abstract`.

    Raises:
        WeightsError: listing every tensor that is missing, unexpected or of another shape.
    """
    wanted = _flat(abstract)
    entries = {entry.path: entry for entry in layout if entry.path in wanted}
    if unmapped := wanted.keys() - entries.keys():
        raise ValueError(f"the layout has no entry for {', '.join(sorted(unmapped))}")
    shapes = {
        path: {
            name: shape
            for names in _layer_names(entry, wanted[path].shape)
            for name, shape in zip(names, _torch_shapes(entry, wanted[path].shape), strict=True)
        }
        for path, entry in entries.items()
    }
    misfits = _misfits(tensors, {k: v for part in shapes.values() for k, v in part.items()})
    excused = {name for name in misfits if any(re.search(e, name) for e in expected)}
    if problems := [text for name, text in misfits.items() if name not in excused]:
        raise WeightsError(
            f"{source} does not fit the model ({len(problems)} tensors):\n  "
            + "\n  ".join(problems)
        )

    params: dict[str, Any] = {}
    for path, entry in entries.items():
        if excused & shapes[path].keys():
            continue
        leaf = wanted[path]
        sizes = _sizes(entry, leaf.shape)
        array = np.empty(leaf.shape, leaf.dtype)
        rows = array if _stacked(entry) else array[None]
        for row, names in enumerate(_layer_names(entry, leaf.shape)):
            joined = _join([tensors[name].load() for name in names])
            rows[row] = _rearrange(joined, entry.torch_layout, entry.layout, sizes)
        _insert(params, path, array)
    return params


def _misfits(tensors: Tensors, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """A description of every mismatch."""
    problems = {
        name: f"missing: {name}, shape {shape}"
        for name, shape in wanted.items()
        if name not in tensors
    }
    for name, tensor in tensors.items():
        if name not in wanted:
            problems[name] = f"unexpected: {name}, shape {tensor.shape}"
        elif tensor.shape != wanted[name]:
            problems[name] = (
                f"shape: {name} is {tensor.shape} in the file, {wanted[name]} in the model"
            )
    return problems


def to_tensors(params: Mapping[str, Any], layout: Iterable[Entry]) -> dict[str, LazyTensor]:
    """The inverse of `to_params`: tensors by state-dict name, in the params' dtypes.

    Nothing is copied before a tensor is loaded. Raises ValueError for a parameter that the layout
    does not have.
    """
    arrays = _flat(params)
    tensors: dict[str, LazyTensor] = {}
    for entry in layout:
        if entry.path not in arrays:
            continue
        array = arrays.pop(entry.path)
        shapes = _torch_shapes(entry, array.shape)
        for row, names in enumerate(_layer_names(entry, array.shape)):
            for piece, (name, shape) in enumerate(zip(names, shapes, strict=True)):
                load = functools.partial(_to_tensor, array, entry, row, piece)
                tensors[name] = LazyTensor(shape, load)
    if arrays:
        raise ValueError(f"the layout has no entry for {', '.join(sorted(arrays))}")
    return tensors


def _to_tensor(array: Any, entry: Entry, row: int, piece: int) -> np.ndarray:
    host_array = np.asarray(array)  # no copy of a JAX array in host memory
    ours = host_array[row] if _stacked(entry) else host_array
    tensor = _rearrange(ours, entry.layout, entry.torch_layout, _sizes(entry, array.shape))
    pieces = len(entry.names)
    return tensor if pieces == 1 else np.split(tensor, pieces)[piece]


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
    sizes = {"u": 1, "v": 1}
    dims = shape[1:] if _stacked(entry) else shape
    for group, size in zip(entry.layout.split(), dims, strict=True):
        if group == "pqc":  # square patches of three channels
            sizes.update(p=math.isqrt(size // 3), q=math.isqrt(size // 3), c=3)
        else:
            sizes[group.lstrip("uv")] = size
    return sizes


def _torch_shapes(entry: Entry, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    sizes = _sizes(entry, shape)
    shape = tuple(math.prod(sizes[letter] for letter in dim) for dim in entry.torch_layout.split())
    pieces = len(entry.names)
    return [shape if pieces == 1 else (shape[0] // pieces, *shape[1:])] * pieces


def _join(pieces: list[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _rearrange(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    letters, wanted = source.replace(" ", ""), target.replace(" ", "")
    split = array.reshape([sizes[letter] for letter in letters])
    moved = split.transpose([letters.index(letter) for letter in wanted])
    return moved.reshape([math.prod(sizes[letter] for letter in dim) for dim in target.split()])
