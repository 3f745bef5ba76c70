"""Where arrays live: a mesh with the axes data, fsdp and tensor, and one table of rules.

Models name the *logical* axis of every parameter dim; ``LOGICAL_TO_MESH`` names the mesh axis, if
any, divides it. Optimiser moments follow their parameter. Changing how a model is laid out is a
change of this table only.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unimed_jax.config import require

# logical axis of a dim -> mesh axis that divides it (None: the dim is not divided)
LOGICAL_TO_MESH: Mapping[str, str | None] = {
    "embed": "fsdp",  # model width
    "heads": "tensor",  # attention heads
    "mlp": "tensor",  # hidden width of MLPs
    "vocab": "tensor",  # rows of the word embedding
    "layers": None,  # stacked blocks, scanned one after the other
    "head_dim": None,
    "positions": None,
    "patch": None,  # pixels of a patch
    "joint": None,  # the shared image-text space
}

# dims of a batch: rows are divided over both axes that hold different data
BATCH_AXES = ("data", "fsdp")
BATCH_SPEC = PartitionSpec(BATCH_AXES)

ParameterAxes = Sequence[tuple[str, tuple[str | None, ...]]]


def host_device() -> jax.Device:
    """A CPU device, whose memory is that of the host, if JAX has one; else its first device."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return jax.local_devices()[0]


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes in the order of ``shape``, by default over all devices of all hosts."""
    return jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        axis_types=(AxisType.Auto,) * len(shape),
        devices=devices,
    )


def path_string(path: Sequence[Any]) -> str:
    """Key path of a pytree leaf as ``visual/blocks/mlp/kernel``."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def replace_leaves(tree: Any, update: Any) -> Any:
    """``tree``, a nested dict, whose leaves are replaced by those of ``update``, a sub-tree."""
    if not isinstance(tree, Mapping):
        return update
    return {k: replace_leaves(v, update[k]) if k in update else v for k, v in tree.items()}


def select_leaves(tree: Any, keep: Callable[[str], bool], prefix: str = "") -> Any:
    """The sub-tree of the leaves whose path is kept, without empty dicts.

    Args:
      tree: a nested dict.
      keep: takes a path as ``path_string`` writes it.
      prefix: of the paths.
    """
    selected = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if inner := select_leaves(value, keep, f"{path}/"):
                selected[key] = inner
        elif keep(path):
            selected[key] = value
    return selected


def check_batch_size(key: str, batch_size: int, mesh: Mesh, *, per_device: bool = False) -> int:
    """The number of rows of a batch on all devices of the mesh.

    Args:
      key: of the config, for the message.
      batch_size: rows of the batch, or of each device that holds different rows.
      mesh: over the devices of all processes.
      per_device: how ``batch_size`` is counted.

    Raises:
      ConfigError: the rows cannot be divided evenly over devices and processes.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    processes = jax.process_count()
    rows = batch_size * shards if per_device else batch_size
    valid = (
        f"at least 1, and, times {shards} devices, a multiple of the {processes} processes"
        if per_device
        else f"a multiple of mesh.data x mesh.fsdp = {shards} and of the {processes} processes"
    )
    require(
        batch_size >= 1 and rows % shards == 0 and rows % processes == 0, key, batch_size, valid
    )
    return rows


def partition_spec(
    path: str, shape: Sequence[int], rules: ParameterAxes, mesh_shape: Mapping[str, int]
) -> PartitionSpec:
    """The first rule whose regular expression is found in the path decides.

    A dim that its mesh axis does not divide evenly is not divided.

    Raises:
      ValueError: no rule matches, or the rule names another number of dims.
    """
    rule = next(((p, axes) for p, axes in rules if re.search(p, path)), None)
    if rule is None:
        raise ValueError(f"no sharding rule matches parameter {path!r} of shape {tuple(shape)}")
    pattern, axes = rule
    if len(axes) != len(shape):
        raise ValueError(f"rule {pattern!r} names {axes} for {path!r} of shape {tuple(shape)}")
    spec = [LOGICAL_TO_MESH[axis] if axis else None for axis in axes]
    return PartitionSpec(
        *(
            a if a and size % mesh_shape[a] == 0 else None
            for a, size in zip(spec, shape, strict=True)
        )
    )


def state_shardings(abstract_state: Any, rules: ParameterAxes, mesh: Mesh) -> Any:
    """NamedShardings for a train state {params, opt_state, step} or {params, ema, opt_state, step}.

    Args:
      abstract_state: pytree of ShapeDtypeStructs.
      rules: (regular expression over the parameter path, logical axis of each dim).

    Returns:
      The same tree with a NamedSharding in place of each leaf. A leaf of ``opt_state`` or ``ema``
      whose path ends in a parameter's path and has its shape is laid out like that parameter; all
      others are replicated.
    """
    specs, shapes = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state["params"]):
        name = path_string(path)
        specs[name] = partition_spec(name, leaf.shape, rules, mesh.shape)
        shapes[name] = leaf.shape

    def assign(path: Sequence[Any], leaf: Any) -> NamedSharding:
        parts = path_string(path).split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in specs and shapes[name] == leaf.shape:
                return NamedSharding(mesh, specs[name])
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(assign, abstract_state)


def describe(abstract_params: Any, rules: ParameterAxes, mesh_shape: Mapping[str, int]) -> str:
    """The resolved table: path, shape, mesh axis of each dim, share of the array on one device."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params):
        name = path_string(path)
        spec = partition_spec(name, leaf.shape, rules, mesh_shape)
        pieces = math.prod(mesh_shape[axis] for axis in spec if axis)
        shown = ", ".join(axis or "-" for axis in spec)
        lines.append(f"{name:<48} {leaf.shape!s:<24} ({shown}) 1/{pieces}")
    return "\n".join(lines)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH_SPEC)


def place_like(values: Any, shardings: Any) -> Any:
    """Host arrays, whole on every host, -> global arrays with the given shardings."""
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index: np.asarray(x)[index]),
        values,
        shardings,
    )
