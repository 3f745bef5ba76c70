"""safetensors files: read tensor by tensor, written tensor by tensor."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import safetensors

from input_pipeline.io.errors import WeightsError
from unimed_jax.weights.lazy_tensors import LazyTensor, Tensors

_ALIGNMENT = 8  # of the first tensor, as the format asks


def read(path: Path) -> dict[str, LazyTensor]:
    """All tensors of a file by name. Raises WeightsError for an invalid or truncated file."""

    def load(name: str) -> np.ndarray:
        # Opened again for each tensor: the pages of a mapped file count as memory in use.
        with safetensors.safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    try:
        with safetensors.safe_open(path, "numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"cannot read {path} as safetensors: {error}") from error
    return {
        name: LazyTensor(shape, functools.partial(load, name)) for name, shape in shapes.items()
    }


def write(path: Path, tensors: Tensors) -> None:
    """Writes tensors as float32, holding one at a time.

    The library's writer takes all of them at once: a second copy of the model. The format is
    eight bytes of header length, a JSON header, and the data.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + 4 * math.prod(tensor.shape)
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.load(), "<f4").data)
