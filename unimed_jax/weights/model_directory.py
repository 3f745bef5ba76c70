"""Writes a model as a work directory of one checkpoint, which every command takes for a run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.io import files
from unimed_jax import config as config_lib
from unimed_jax.distributed import sharding
from unimed_jax.weights.checkpoint import Checkpoints


def write(
    out: files.AnyPath,
    params: Any,
    config: ConfigDict,
    meta: Mapping[str, Any],
    save_assets: Callable[[Path], None],
) -> None:
    """Writes config.json, what ``save_assets`` adds, and the checkpoint of step 0; all or nothing.

    Args:
      out: absolute path; must not exist, or be an empty directory.
      params: host arrays, without a moving average.
      config: the config of the run that the model is of.
      meta: of the checkpoint, see ``checkpoint.make_meta``.
      save_assets: writes files into a directory, such as the tokenizer.

    Raises:
      UserError: the directory is in use, or cannot be written.
    """
    params = jax.device_put(params, sharding.host_device())  # Orbax would copy numpy's once more

    def save(workdir: files.AnyPath) -> None:
        checkpoints = Checkpoints(workdir, asynchronous=False)
        checkpoints.save(0, {"params": params}, {}, meta)
        checkpoints.close()

    with files.atomic_directory(out) as staged:
        save_assets(staged)
        (staged / "config.json").write_text(config_lib.to_json(config) + "\n", "utf-8")
        if files.is_local(out):
            save(staged)
    if not files.is_local(out):  # Orbax marks what is complete in a bucket: a copy has no mark
        save(out)
