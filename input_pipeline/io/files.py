"""Files on a local disk or in a bucket, written atomically.

A path becomes a `pathlib.Path`, a URL (`gs://bucket/folder`) a `UPath`, which has the same methods
and accesses the bucket through fsspec. Only this module knows how the two differ:

==================  =====================================  =========================================
operation           on a local disk                        in a bucket
==================  =====================================  =========================================
atomic file         temporary file beside it, synced,      temporary local file, then uploaded:
                    renamed                                visible when the upload ends
atomic folder       renamed                                uploaded file by file
appending           at the end of the file                 the whole file is uploaded again
==================  =====================================  =========================================
"""

import atexit
import contextlib
import errno
import functools
import glob
import importlib.util
import io
import os
import pathlib
import re
import shutil
import socket
import stat
import tempfile
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from upath import UPath

from input_pipeline.io.errors import UserError
from input_pipeline.io.library_errors import show

if TYPE_CHECKING:
    from typing_extensions import TypeIs

AnyPath = pathlib.Path | UPath
PathLike = str | os.PathLike[str] | UPath

# scheme of URLs -> the package of fsspec that reads them
_STORES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}
_URL = re.compile(r"(\w[\w+.-]*)://")
_TORN_URL = re.compile(f"({'|'.join(_STORES)}):/(?!/)")
_GOOGLE = "https://storage.googleapis.com"
_CONNECT_SECONDS = 10
_READ_BUFFER = 1 << 20  # bytes


def to_path(path: PathLike) -> AnyPath:
    """The path for a URL in a bucket or for a location on a local disk.

    Raises:
      UserError: a URL of an unknown scheme, or with a missing slash, as after `pathlib.Path(URL)`;
        or Google's servers cannot be reached.
    """
    if isinstance(path, UPath) and not isinstance(path, pathlib.Path):
        return path
    text = os.fspath(path).removeprefix("file://")
    if _TORN_URL.match(text):
        raise UserError(f"{text}: a URL has two slashes, as in gs://bucket/folder")
    url = _URL.match(text)
    if not url:
        return pathlib.Path(text)
    package = _STORES.get(url[1])
    if package is None:
        raise UserError(f"{text}: expected a path, or a URL of {', '.join(_STORES)}")
    if importlib.util.find_spec(package) is None:
        extra = "'unimed_jax[gcs]'" if package == "gcsfs" else package
        raise UserError(f"{text} needs the package {package}: pip install {extra}")
    if url[1] == "gs":
        _require_network(text)
    # No cached listings: other processes write to the bucket as well.
    return UPath(text.rstrip("/"), use_listings_cache=False)


def _require_network(url: str) -> None:
    """Raises UserError unless Google's servers, or the proxy on the way to them, can be reached.

    Without a network, gcsfs tries for most of a minute, and then says that no file exists.
    """
    server = os.environ.get("STORAGE_EMULATOR_HOST") or _GOOGLE
    if not _URL.match(server):
        server = f"http://{server}"
    scheme, host = urllib.parse.urlsplit(server).scheme, urllib.parse.urlsplit(server).hostname
    proxy = urllib.request.getproxies().get(scheme)
    if proxy and not urllib.request.proxy_bypass(host or ""):
        server = proxy if _URL.match(proxy) else f"http://{proxy}"
    try:
        _connect(server)
    except OSError as error:
        raise UserError(
            f"{url}: no connection to {server}: {error.strerror or error}; check the network"
        ) from error


@functools.cache  # a server that was reached once is not asked again
def _connect(server: str) -> None:
    parts = urllib.parse.urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), _CONNECT_SECONDS).close()


def flag(text: str) -> AnyPath:
    """`to_path` as a type for argparse, which would print its usage before the message."""
    try:
        return to_path(text)
    except UserError as error:
        show(error)
        raise SystemExit(2) from error


def is_local(path: AnyPath) -> "TypeIs[pathlib.Path]":
    """Whether a path is on a local disk."""
    return isinstance(path, pathlib.Path)


def under(folder: AnyPath, name: str) -> AnyPath:
    """The path of a name in a table or config: below the folder, unless it is absolute or a URL."""
    url = _URL.match(name)
    if url and url[1] in _STORES:
        return to_path(name)
    if is_local(folder):
        return folder / name
    if name.startswith("/"):
        return pathlib.Path(name)
    parts = pathlib.PurePosixPath(name).parts  # without "."
    return folder.joinpath(*parts).resolve() if ".." in parts else folder.joinpath(*parts)


def relative_name(path: AnyPath, folder: AnyPath) -> str:
    """The part of a path below a folder. Raises ValueError if the folder does not contain it."""
    if is_local(path) or is_local(folder):
        return str(path.relative_to(str(folder)))
    return str(path.relative_to(folder))


# --- reading --------------------------------------------------------------------------------------


def open_to_read(path: AnyPath) -> io.BufferedReader:
    """Opens a binary file, buffered: in a bucket, every line would otherwise be a request."""
    if is_local(path):
        return path.open("rb")
    file = path.fs.open(path.path, "rb", cache_type="readahead")
    return io.BufferedReader(file, _READ_BUFFER)


def read_bytes(path: AnyPath, span: tuple[int, int] | None = None) -> bytes:
    """Reads a file or a span (offset, length) of it, in one request; shorter if the file ends.

    Raises:
      OSError: the file is missing or unreadable, a pipe or a device.
      UserError: a bucket did not respond, so nothing is known about the file.
    """
    if is_local(path):
        mode = path.stat().st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):  # may have no end
            raise OSError(errno.EINVAL, "a pipe or device, not a file", str(path))
        with path.open("rb") as file:
            file.seek(span[0] if span else 0)
            return file.read(span[1] if span else -1)
    try:
        begin, end = (span[0], sum(span)) if span else (None, None)
        return path.fs.cat_file(path.path, begin, end)
    except OSError:
        raise
    except Exception as error:  # of the bucket's client, of many kinds
        if getattr(error, "code", None) == 416:  # the file ends before the span
            return b""
        raise UserError(f"cannot read {path}: {error}; run the same command again") from error


def reason(error: OSError) -> str:
    """Why a file cannot be used, in the words of the operating system, for buckets as well."""
    if isinstance(error, FileNotFoundError):
        return os.strerror(errno.ENOENT)
    return error.strerror or str(error) or repr(error)


def walk_files(root: AnyPath) -> Iterator[str]:
    """Files below a folder as `folder/name`, sorted within each folder, without hidden ones.

    Links to folders are followed, but none that leads to a folder above itself.
    """
    walk = os.walk(root, followlinks=True) if is_local(root) else root.fs.walk(root.path)
    top = str(root) if is_local(root) else root.path
    for folder, folders, names in walk:
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _leads_up(folder, name)
        )
        inner = pathlib.PurePath(folder).relative_to(top)
        for name in sorted(names):
            if not name.startswith("."):
                yield (inner / name).as_posix()


def _leads_up(folder: str, name: str) -> bool:
    """Whether a local folder's entry is a link to the folder or one above it."""
    path = pathlib.Path(folder, name)
    if not path.is_symlink():
        return False
    return path.resolve() in [above.resolve() for above in path.parents]


def sorted_glob(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """The paths in a folder that match a pattern, sorted; the folder's own name is no pattern."""
    if is_local(folder):
        return sorted(folder.glob(pattern))
    # not `UPath.glob`, to which `run [a]` is a pattern
    found = folder.fs.glob(f"{glob.escape(folder.path)}/{pattern}")
    names = (path.removeprefix(f"{folder.path}/") for path in found)
    return [folder / name for name in sorted(names)]


def find_files(folder: AnyPath) -> list[AnyPath]:
    """All files in a folder and below, sorted."""
    if is_local(folder):
        return [*_find_local_files(folder)]
    names = (name.removeprefix(f"{folder.path}/") for name in folder.fs.find(folder.path))
    return [folder / name for name in sorted(names, key=lambda name: name.split("/"))]


def _find_local_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def local_copy(path: AnyPath) -> pathlib.Path:
    """A local path of a file or folder, for libraries that open files by name.

    Content of a bucket is downloaded to a temporary folder, which is removed at exit.
    """
    if is_local(path):
        return path
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = pathlib.Path(folder) / path.name
    try:
        # lists of both sides, because fsspec takes a single name for a pattern
        found = path.fs.find(path.path)
        if not found:
            raise FileNotFoundError(os.strerror(errno.ENOENT))
        inner = [name.removeprefix(path.path).lstrip("/") for name in found]
        path.fs.get(found, [str(copy / name) for name in inner])
    except Exception as error:  # of the bucket's client, of many kinds
        raise UserError(f"cannot read {path}: {error}") from error
    return copy


# --- writing --------------------------------------------------------------------------------------


def write_text_atomically(path: PathLike, text: str) -> None:
    """Replaces the file at `path` by `text` (UTF-8); as `write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: PathLike, content: bytes) -> None:
    """Replaces the file at `path` by `content`, creating parent directories; see `atomic_file`.

    Raises:
      UserError: the directory or the file cannot be written; the message names it and says why.
    """
    path = to_path(path)
    try:
        if is_local(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def atomic_file(path: AnyPath, scratch: AnyPath | None = None) -> Iterator[pathlib.Path]:
    """A temporary local file that becomes `path` when the block ends without an error.

    A kill at any moment leaves either the old file or the new one.

    Args:
      path: the final path; its folder must exist.
      scratch: folder of the temporary file, on the same disk as `path`; None: the folder of `path`.
        Not used for a bucket.

    Raises:
      OSError: a local file cannot be written.
      UserError: the upload failed.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder) / path.name
            yield temporary
            _upload({temporary: path})
        return
    # A unique name: another process may be writing the same file.
    beside = scratch if scratch is not None and is_local(scratch) else path.parent
    temporary = beside / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power cut may leave the new name without content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_free(path: AnyPath) -> None:
    """Raises UserError unless a directory can be made at ``path``, or is there and empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not an empty directory; name another")


@contextlib.contextmanager
def atomic_directory(path: AnyPath) -> Iterator[pathlib.Path]:
    """A temporary local directory that becomes ``path`` when the block ends without an error.

    In a bucket, its files appear one by one.

    Raises:
      UserError: ``path`` exists and is not an empty directory, or cannot be written.
    """
    require_free(path)
    try:
        if is_local(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.parent if is_local(path) else None
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=beside) as parent:
            # A new directory has the usual permissions; the temporary one is private.
            staged = pathlib.Path(parent) / path.name
            staged.mkdir()
            yield staged
            move_folder(staged, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def move_folder(folder: pathlib.Path, target: AnyPath) -> None:
    """Moves a local folder to `target`, on the same disk or in a bucket.

    A local `target` is replaced. Files that a bucket already has, by name and size, are not sent.
    """
    if is_local(target):
        remove_tree(target)
        folder.replace(target)
        return
    listing = target.fs.find(target.path, detail=True)
    sizes = {name.removeprefix(f"{target.path}/"): info["size"] for name, info in listing.items()}
    places = {}
    for file in _find_local_files(folder):
        name = file.relative_to(folder).as_posix()
        if file.stat().st_size != sizes.get(name):
            places[file] = target / name
    _upload(places)


def create(path: AnyPath, text: str) -> bool:
    """Writes a file unless it exists; returns whether it was written.

    If several processes create the same file in a bucket, one succeeds. On a local disk, the caller
    holds a lock.
    """
    if is_local(path):
        if path.exists():
            return False
        write_text_atomically(path, text)
        return True
    try:
        path.fs.pipe_file(path.path, text.encode(), mode="create")
    except FileExistsError:
        return False
    except Exception as error:  # of the bucket's client, of many kinds
        raise UserError(f"cannot write {path}: {error}") from error
    return True


def remove_tree(folder: AnyPath) -> None:
    """Removes a folder; ignores what is missing or cannot be removed."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError):  # also: removed by another process
        folder.fs.rm(glob.escape(folder.path), recursive=True)  # fsspec takes it for a pattern


class AppendOnlyFile:
    """A file with initial content, to which lines are appended.

    Attributes:
      local: the path to append to: the file, or a local copy if the file is in a bucket.
    """

    def __init__(self, path: AnyPath, content: bytes = b"") -> None:
        """Replaces the file at `path` by `content`. Raises as `write_bytes_atomically`."""
        write_bytes_atomically(path, content)
        self._path = path
        self.local = local_copy(path)

    def publish(self) -> None:
        """Makes everything flushed so far visible to readers. Raises UserError."""
        if not is_local(self._path):
            _upload({self.local: self._path})


def _upload(places: dict[pathlib.Path, UPath]) -> None:
    """Copies local files into a bucket, several at a time. Raises UserError."""
    if not places:
        return
    first = next(iter(places.values()))
    try:
        first.fs.put([str(f) for f in places], [target.path for target in places.values()])
    except Exception as error:  # of the bucket's client, of many kinds
        raise UserError(f"cannot write {first}: {error}") from error
