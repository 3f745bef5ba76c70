"""Locks of directories: two commands that write the same one exclude each other.

On a disk, the kernel locks the file ``.lock`` (flock) and frees it when the process ends, however
it ends. On NFS this holds between hosts; on a file system without locks, within one host at most.

In a Google bucket, ``.lock`` is an object, written only if it has the generation that the writer
expects, so that one of several writers succeeds. Its owner writes it again every few seconds. One
that does not change was left behind by a crash and is replaced. Clocks of hosts are not compared.
Other stores are not locked.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from upath import UPath

from input_pipeline.io import files, threads
from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath

FILE = ".lock"

_BEAT_SECONDS = 5
_EXPIRY_SECONDS = 30  # a lock that did not change for so long is nobody's
_NFS_SECONDS = 100  # within which an NFS server frees the locks of a host that crashed
# of file systems that have no locks
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class LockedError(UserError):
    """Another process writes the directory."""


@contextlib.contextmanager
def exclusive(folder: AnyPath) -> Iterator[None]:
    """Locks a directory for this process; creates it on a disk.

    Raises:
      LockedError: another process has it; the message names its host, its process and since when.
      UserError: the directory cannot be written.
    """
    with contextlib.ExitStack() as locked:
        if files.is_local(folder):
            locked.enter_context(_on_disk(folder))
        elif "gs" in folder.protocol:
            locked.enter_context(_in_bucket(folder / FILE))
        yield


def _owner() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "namespace": _pid_namespace(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.argv)[:200],
    }


def _pid_namespace() -> str:
    """What tells containers apart, in which pids begin anew; "" where the system has none."""
    try:
        return str(pathlib.Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _refuse(folder: AnyPath, content: bytes) -> NoReturn:
    try:
        owner = json.loads(content)
        who = "process {pid} on host {host} since {since} ({command})".format(**owner)
    except (ValueError, LookupError, TypeError):  # being written just now
        who = "another process"
    raise LockedError(f"{folder} is in use by {who}; wait for its end, or choose another directory")


def _is_of_this_host(content: bytes) -> bool:
    """Whether the owner is a process of this host, and of this container."""
    try:
        owner = json.loads(content)
        return (owner["host"], owner["namespace"]) == (socket.gethostname(), _pid_namespace())
    except (ValueError, LookupError, TypeError):
        return False


def _say_that_it_waits(folder: AnyPath, seconds: float) -> None:
    print(
        f"{folder} is locked by another host; watching for {seconds} s whether it lives",
        file=sys.stderr,
        flush=True,
    )


@contextlib.contextmanager
def _on_disk(folder: pathlib.Path) -> Iterator[None]:
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _open_locked(path)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds, without a name
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(_owner()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # the directory was removed
            path.unlink(missing_ok=True)  # before the lock is freed, so that it is still ours
        os.close(lock)


def _open_locked(path: pathlib.Path) -> int:
    """The descriptor of the locked file. Raises LockedError, OSError."""
    deadline = None
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            content = os.pread(lock, 10_000, 0)
            if error.errno in _UNSUPPORTED:
                logging.warning("%s is on a file system without locks", path.parent)
                return lock
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise
            if _is_of_this_host(content) or (deadline and time.monotonic() > deadline):
                _refuse(path.parent, content)
            if deadline is None:
                deadline = time.monotonic() + _NFS_SECONDS
                _say_that_it_waits(path.parent, _NFS_SECONDS)
            time.sleep(_BEAT_SECONDS / 5)
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)  # its owner removed it in between: this file is nobody's lock


@contextlib.contextmanager
def _in_bucket(path: UPath) -> Iterator[None]:
    owner = {**_owner(), "beat": 0}
    generation = _acquire(path, owner)

    def beat() -> None:
        nonlocal generation
        owner["beat"] += 1
        try:
            written = _write(path, owner, generation)
            if written is None:
                written, content = _read(path)
                if not _is_of(owner, content):
                    _end_process(path)
                # else an earlier beat arrived, and its answer did not
            generation = written
        except UserError as error:
            logging.info("%s: %s", path, error)  # the next beat may succeed

    try:
        with threads.repeated(beat, _BEAT_SECONDS, "lock"):
            yield
    finally:
        _remove(path, generation)


def _acquire(path: UPath, owner: dict[str, Any]) -> str:
    """Creates the object, or replaces one that does not change; its generation."""
    deadline, seen = time.monotonic() + _EXPIRY_SECONDS, None
    while True:
        generation, content = _read(path)
        if generation == "0" or (generation == seen and time.monotonic() > deadline):
            written = _write(path, owner, generation)
            if written is not None:
                return written
            continue
        if seen is None:
            seen = generation
            if _is_dead(content):
                deadline = 0.0
                continue
            _say_that_it_waits(path.parent, _EXPIRY_SECONDS)
        elif generation != seen:
            _refuse(path.parent, content)
        time.sleep(_BEAT_SECONDS / 5)


def _is_dead(content: bytes) -> bool:
    """Whether the owner was a process of this host that has ended."""
    if not _is_of_this_host(content):
        return False
    try:
        os.kill(int(json.loads(content)["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _is_of(owner: dict[str, Any], content: bytes) -> bool:
    """Whether a lock was written by this owner, at any beat."""
    try:
        return {**json.loads(content), "beat": 0} == {**owner, "beat": 0}
    except (ValueError, TypeError):
        return False


def _end_process(path: UPath) -> NoReturn:
    """Another process has taken the lock: this one was frozen for longer than it lasts."""
    print(
        f"error: {path.parent} was taken over by another process, because this one did not respond",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _encoded(owner: dict[str, Any]) -> bytes:
    return json.dumps(owner).encode()


def _split(path: UPath) -> tuple[str, str]:
    bucket, _, key = path.path.partition("/")
    return bucket, key


def _read(path: UPath) -> tuple[str, bytes]:
    """Generation and content of the object; "0" if there is none. Raises UserError."""
    bucket, key = _split(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            found = path.fs.call("GET", "b/{}/o/{}", bucket, key, json_out=True)
            return found["generation"], path.fs.cat_file(path.path)
        return "0", b""
    except Exception as error:  # of the bucket's client, of many kinds
        raise UserError(f"cannot read {path}: {error}") from error


def _write(path: UPath, owner: dict[str, Any], generation: str) -> str | None:
    """Replaces the object if it has this generation; its new one, None if it has another."""
    bucket, key = _split(path)
    url = f"{path.fs._location}/upload/storage/v1/b/{bucket}/o"
    conditions = {"uploadType": "media", "name": key, "ifGenerationMatch": generation}
    try:
        _, answer = path.fs.call("POST", url, data=_encoded(owner), **conditions)
    except FileExistsError:  # gcsfs' word for a condition that does not hold
        return None
    except FileNotFoundError as error:
        raise UserError(f"cannot write to {path.parent}: {files.reason(error)}") from error
    except Exception as error:  # of the bucket's client, of many kinds
        raise UserError(f"cannot write to {path.parent}: {error}") from error
    return json.loads(answer)["generation"]


def _remove(path: UPath, generation: str) -> None:
    bucket, key = _split(path)
    with contextlib.suppress(Exception):  # it then expires
        path.fs.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=generation)
