"""Reads the parts of one step of a checkpoint, WORKDIR/checkpoints/STEP/{state, data, meta}.

Not through Orbax's manager: it waits for all processes, and one that cannot read a file would never
arrive.
"""

import logging
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from input_pipeline.io.errors import UserError
from unimed_jax.distributed import sharding
from unimed_jax.weights import checkpoint_folders

ARRAYS = "arrays"  # key of ``meta``: path -> fingerprint

checkpoint_folders.repair_glob()


def _ignore_late_callbacks(unraisable: Any, show: Any = sys.unraisablehook) -> None:
    """Hides what TensorStore prints once per array that it reads after another has failed."""
    said = str(unraisable.exc_value)
    if said != "Event loop is closed" and "TensorStore details" not in said:
        show(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
    """False for what asyncio logs of further arrays after the reading of one has failed."""
    said = record.getMessage()
    return not ("exception was never retrieved" in said and "TensorStore" in said)


sys.unraisablehook = _ignore_late_callbacks
logging.getLogger("asyncio").addFilter(_is_news)


def read_json(path: Any, item: str) -> dict[str, Any]:
    """``data`` or ``meta`` of a step folder."""
    return ocp.JsonCheckpointHandler().restore(epath.Path(str(path)) / item)


def read_meta(path: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """``meta`` as given to ``save``, and the fingerprints of arrays; older ones have none."""
    meta = read_json(path, "meta")
    return meta, meta.pop(ARRAYS, {})


def stored_shapes(path: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every array in the state of a step folder."""
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(str(path)) / "state").tree
    return {
        sharding.path_string(key): tuple(leaf.shape)
        for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def read_state(path: Any, abstract_state: Any, shardings: Any) -> Any:
    """The state in a step folder, on any mesh; every process reads its part.

    Args:
      path: the step folder.
      abstract_state: ShapeDtypeStructs; only the parts named here are read (e.g. params alone).
      shardings: a tree of the same structure.

    Raises:
      UserError: names the parameters that are absent or have another shape.
      Exception: of Orbax or TensorStore, where files are missing or damaged.
    """
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_state, shardings
    )
    stored = stored_shapes(path)
    for key, wanted in jax.tree_util.tree_leaves_with_path(target):
        name = sharding.path_string(key)
        shape = stored.get(name, "absent")
        if shape != wanted.shape:
            raise UserError(
                f"checkpoint {path} does not fit the model: {name} has shape {shape}, the model "
                f"needs {wanted.shape}"
            )
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(str(path)) / "state", args=args)
