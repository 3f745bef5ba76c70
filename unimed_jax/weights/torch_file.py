"""Reads files of torch.save and torch.jit.save, without torch and without running their code.

A `.pt` file is a pickle that names the functions that would rebuild its objects. None of them is
called here: a tensor becomes a description of its location in the file, a few harmless types become
inert stand-ins, and a file that names anything else is refused.
"""

import functools
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from input_pipeline.io.errors import WeightsError
from unimed_jax.weights.lazy_tensors import LazyTensor

_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "DoubleStorage": "<f8",
        "FloatStorage": "<f4",
        "HalfStorage": "<f2",
        "BFloat16Storage": ml_dtypes.bfloat16,
        "LongStorage": "<i8",
        "IntStorage": "<i4",
        "ShortStorage": "<i2",
        "CharStorage": "i1",
        "ByteStorage": "u1",
        "BoolStorage": "?",
    }.items()
}
# Objects that training scripts keep beside the weights: read as inert stand-ins, never made.
_INERT_MODULES = ("argparse", "numpy", "pathlib", "_codecs", "datetime")
_INERT_NAMES = {
    ("torch", "device"),
    ("torch", "Size"),
    ("torch", "dtype"),
    ("torch.serialization", "_get_layout"),
    ("__builtin__", "set"),
    ("builtins", "set"),
    ("collections", "defaultdict"),
    ("builtins", "dict"),
}
# A file from before torch 1.6 is a sequence of pickles that begins with this number.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_NOT_A_FILE = "is no file of torch.save or torch.jit.save"


class _Module(dict):
    """The attributes of a module in a file of torch.jit.save."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {})


class _Inert:
    """Replaces an object that is not needed; accepts whatever a pickle does to it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int  # elements


@dataclass(frozen=True)
class _View:
    """A tensor: a strided view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _View:
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= storage.size):
        raise WeightsError(f"a tensor of shape {shape} lies outside its storage {storage.key}")
    return _View(storage, offset, shape, strides)


def _rebuild_parameter(data: _View, *_: Any) -> _View:
    return data


class _Unpickler(pickle.Unpickler):
    """Accepts tensors, ordered dicts and a few inert types; refuses every other name."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils":
            if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
                return _rebuild_tensor
            if name == "_rebuild_parameter":
                return _rebuild_parameter
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module.partition(".")[0] in _INERT_MODULES or (module, name) in _INERT_NAMES:
            return _Inert
        if module == "torch.jit._pickle":
            return _Inert
        raise WeightsError(
            f"{self._path} asks to load {module}.{name}, which is no tensor: refused, as a pickle "
            "can run any code; if you trust the file, load it with torch and save its state dict"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise WeightsError(f"{self._path}: a storage of unknown kind {pid!r}")
        return _Storage(str(key), dtype, int(size))


def read(path: Path) -> tuple[dict[str, LazyTensor], bool]:
    """The tensors of a file by state-dict name, and whether torch.jit.save wrote it.

    A dict under "state_dict", "model" or "model_state_dict" is taken if there is one, as in
    training checkpoints.

    Raises:
        WeightsError: not such a file, truncated, without tensors, or requiring code to be run.
    """
    try:
        if zipfile.is_zipfile(path):
            content, views = _read_zip(path)
        else:
            content, views = _read_legacy(path)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # pickle and zipfile raise nearly anything on damaged data
        raise WeightsError(f"{path} {_NOT_A_FILE}, or damaged: {error}") from error
    named = dict(_flatten(_state_dict(content)))
    if not named:
        raise WeightsError(f"{path} holds no tensors")
    tensors = {
        name: LazyTensor(view.shape, functools.partial(views.load, view))
        for name, view in named.items()
    }
    return tensors, isinstance(content, _Module)


def _state_dict(content: Any) -> Any:
    for key in ("state_dict", "model_state_dict", "model"):
        inner = content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict) and any(isinstance(v, _View) for v in inner.values()):
            return inner
    return content


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, _View]]:
    """(dotted name, tensor) of a state dict, or of the modules of a TorchScript file."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, _View):
            yield f"{prefix}{key}", value
        elif isinstance(value, _Module):
            yield from _flatten(value, f"{prefix}{key}.")


@dataclass(frozen=True)
class _Storages:
    """Where the bytes of each storage begin in a file."""

    path: Path
    offsets: Mapping[str, int]

    def load(self, view: _View) -> np.ndarray:
        dtype = view.storage.dtype
        last = sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
        count = 0 if 0 in view.shape else last + 1
        begin = self.offsets[view.storage.key] + view.offset * dtype.itemsize
        try:
            flat = np.fromfile(self.path, dtype, count, offset=begin)
        except OSError as error:
            raise WeightsError(f"cannot read {self.path}: {error.strerror or error}") from error
        if flat.size != count:
            raise WeightsError(f"{self.path} is cut off: storage {view.storage.key} is incomplete")
        strides = [s * dtype.itemsize for s in view.strides]
        return np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False)


def _read_zip(path: Path) -> tuple[Any, _Storages]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise WeightsError(f"{path} {_NOT_A_FILE}: the archive holds no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise WeightsError(f"{path} was written on a big-endian machine: not supported")
        offsets = {}
        for info in archive.infolist():
            key = info.filename.removeprefix(f"{root}data/")
            if key != info.filename and info.compress_type == zipfile.ZIP_STORED:
                # the lengths of name and padding in the local header; the directory's may differ
                file.seek(info.header_offset + 26)
                name, extra = np.frombuffer(file.read(4), "<u2")
                offsets[key] = info.header_offset + 30 + int(name) + int(extra)
        content = _Unpickler(io.BytesIO(archive.read(pickles[0])), path).load()
    return content, _Storages(path, offsets)


def _read_legacy(path: Path) -> tuple[Any, _Storages]:
    with path.open("rb") as file:
        if file.read(1) != b"\x80":  # every binary pickle begins with it
            raise WeightsError(f"{path} {_NOT_A_FILE}")
        file.seek(0)
        # Read through one unpickler after the other; each leaves the file behind its pickle.
        if _Unpickler(file, path).load() != _LEGACY_MAGIC:
            raise WeightsError(f"{path} {_NOT_A_FILE}: a pickle of something else")
        for _ in ("protocol", "system"):
            _Unpickler(file, path).load()
        storages: dict[str, _Storage] = {}

        class Recording(_Unpickler):
            def persistent_load(self, pid: Any) -> _Storage:
                storage = super().persistent_load(pid)
                return storages.setdefault(storage.key, storage)

        content = Recording(file, path).load()
        keys = _Unpickler(file, path).load()
        offsets, size = {}, path.stat().st_size
        for key in map(str, keys):
            count = int.from_bytes(file.read(8), "little")
            offsets[key] = file.tell()
            if count != storages[key].size:
                raise WeightsError(f"{path} is damaged: storage {key} has {count} elements")
            file.seek(count * storages[key].dtype.itemsize, io.SEEK_CUR)
        if file.tell() > size:
            raise WeightsError(f"{path} is cut off: {size} bytes of {file.tell()}")
    return content, _Storages(path, offsets)
