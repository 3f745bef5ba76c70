"""Decodes compressed DICOM pixels in a process of its own, because GDCM aborts on damaged files.

The process is this file run as a script. It is started for the first compressed file, takes one
after the other, and is replaced if it dies or takes too long. Uncompressed pixels need none of it.
"""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pydicom

_SECONDS = 120.0  # for one image
_MOST_MEMORY = 16 << 30  # bytes of address space
_PIXELS, _ERROR = b"p", b"e"
_LENGTH = struct.Struct(">cQ")


class _Decoder:
    """The process and the lock that gives it one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __call__(self, request: bytes) -> bytes:
        """The reply to a request. Raises ValueError with the reason, also if the process died."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            watchdog = threading.Timer(_SECONDS, process.kill)
            watchdog.start()
            try:
                _send(process.stdin, _PIXELS, request)
                kind, reply = _receive(process.stdout)
            except (OSError, EOFError):
                process.kill()
                process.wait()
                self._process = None
                raise ValueError("the decoder crashed on it, or did not end") from None
            finally:
                watchdog.cancel()
        if kind == _ERROR:
            raise ValueError(reply.decode())
        return reply

    def _running(self) -> "subprocess.Popen[bytes]":
        inherited = self._owner != os.getpid()  # by a fork
        if self._process is None or inherited or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libraries print about damaged files
            )
            self._owner = os.getpid()
        return self._process


_decoder = _Decoder()


def pixel_array(dataset: "pydicom.Dataset", index: int, **options: Any) -> np.ndarray:
    """`pydicom.pixels.pixel_array` of a frame, which leaves the calling process alone.

    Raises ValueError for what cannot be decoded.
    """
    reply = _decoder(pickle.dumps((pixels_alone(dataset), index, options)))
    return np.load(io.BytesIO(reply), allow_pickle=False)


def pixels_alone(dataset: "pydicom.Dataset") -> "pydicom.Dataset":
    """The groups that hold and describe pixels, and no patient."""
    part = dataset.group_dataset(0x0028)
    part.update(dataset.group_dataset(0x7FE0))
    part.file_meta = dataset.file_meta
    return part


def _send(stream: IO[bytes], kind: bytes, content: bytes) -> None:
    stream.write(_LENGTH.pack(kind, len(content)))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[bytes, bytes]:
    """Raises EOFError if the other side has gone."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    kind, length = _LENGTH.unpack(header)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return kind, content


def _serve() -> None:
    """Answers requests on stdin until it is closed."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print to stdout, too
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    from pydicom.pixels import pixel_array

    while True:
        try:
            _, request = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            part, index, options = pickle.loads(request)
            buffer = io.BytesIO()
            np.save(buffer, pixel_array(part, index=index, **options), allow_pickle=False)
            _send(replies, _PIXELS, buffer.getvalue())
        except Exception as error:  # pydicom and its decoders raise nearly anything
            _send(replies, _ERROR, f"{error or type(error).__name__}".encode())


if __name__ == "__main__":
    _serve()
