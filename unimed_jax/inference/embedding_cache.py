"""Embeddings cached in files, named by what they depend on."""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, read_bytes, write_bytes_atomically
from unimed_jax.distributed import sharding
from unimed_jax.models.config import ModelConfig

# How images become the pixels that the image tower takes; part of the keys of cached embeddings.
PILLOW_PREPROCESSING = "8 bit, RGB, shortest side bicubic, centre crop; version 2"
PUBLISHED_PREPROCESSING = (
    "8 bit, shortest side bicubic, centre crop in the mode of the file, RGB; version 1"
)
TENSORFLOW_PREPROCESSING = (
    "8 bit, RGB, shortest side bicubic, centre crop, in TensorFlow; version 1"
)

_CHUNK = 1 << 26  # bytes sent from the first process at a time


def tower_digest(config: ModelConfig, params: Mapping[str, Any], tower: str) -> str:
    """SHA-256 of the config and parameters of a tower, which its embeddings depend on."""
    described = dataclasses.asdict(config)
    described.pop("text" if tower == "visual" else "visual")
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params[tower]):
        array = np.asarray(leaf)
        digest.update(f"{sharding.path_string(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def load(path: AnyPath, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of ``save``; None if there is no file, or its key differs.

    Every process calls it and gets the same result: the first process reads the file and sends it
    to the others, which need no access to it.

    Raises:
      UserError: the file does not hold embeddings.
    """
    content = b""
    if jax.process_index() == 0:
        try:
            content = read_bytes(path) if path.is_file() else b""
        except OSError as error:  # the other processes must not wait for the first one
            content = str(error).encode()
    content = _from_first_process(content)
    if not content:
        return None
    try:
        with np.load(io.BytesIO(content)) as file:
            if str(file["stamp"]) != key:
                return None
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a file of embeddings, delete it: {error}") from error


def save(path: AnyPath, key: str, **arrays: np.ndarray) -> None:
    """Writes a file for ``load``, on the first process; ``key``: what the arrays depend on."""
    if jax.process_index() == 0:
        buffer = io.BytesIO()
        # The stubs take any of the arrays for the flag allow_pickle.
        np.savez(buffer, stamp=key, **arrays)  # type: ignore[arg-type]
        write_bytes_atomically(path, buffer.getvalue())


def _from_first_process(content: bytes) -> bytes:
    """The first process's bytes, on every process."""
    if jax.process_count() == 1:
        return content
    size = multihost_utils.broadcast_one_to_all(np.array(divmod(len(content), _CHUNK), np.int32))
    num_chunks, rest = size.tolist()
    first = jax.process_index() == 0
    chunks = []
    for index, length in enumerate([_CHUNK] * num_chunks + [rest] * (rest > 0)):
        begin = index * _CHUNK
        mine = np.frombuffer(content[begin : begin + length], np.uint8) if first else None
        sent = np.zeros(length, np.uint8) if mine is None else mine
        chunks.append(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())
    return b"".join(chunks)
