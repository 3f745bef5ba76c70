"""Embeddings kept in files, so that what was embedded once is not embedded again."""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, read_bytes, write_bytes_atomically
from unimed_jax.distributed import sharding
from unimed_jax.models.config import ModelConfig


def tower_digest(config: ModelConfig, params: Mapping[str, Any], tower: str) -> str:
    """SHA-256 of what a tower's embeddings depend on besides its input: config and parameters."""
    described = dataclasses.asdict(config)
    described.pop("text" if tower == "visual" else "visual")
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params[tower]):
        array = np.asarray(leaf)
        digest.update(f"{sharding.path_string(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def load(path: AnyPath, stamp: str) -> dict[str, np.ndarray] | None:
    """The arrays that `save` was given; None where there is no file, or it has another stamp.

    Raises:
      UserError: the file is not one of embeddings.
    """
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(read_bytes(path))) as kept:
            if str(kept["stamp"]) != stamp:
                return None
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a file of embeddings, delete it: {error}") from error


def save(path: AnyPath, stamp: str, **arrays: np.ndarray) -> None:
    """Writes what `load` reads; `stamp` says what else the arrays depend on."""
    buffer = io.BytesIO()
    np.savez(buffer, stamp=stamp, **arrays)
    write_bytes_atomically(path, buffer.getvalue())
