"""The boundary between libraries and users: a library's error of a known cause becomes one line.

Every command and the Python interface (``unimed_jax.load``) run inside ``user_errors``. It knows
causes outside the program, such as a full disk or a network that is down. Anything else is taken
for a fault of the program and keeps its traceback.
"""

import contextlib
import errno
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator

from input_pipeline.io.errors import UserError

TRACEBACK = "UNIMED_JAX_TRACEBACK"  # environment variable: print tracebacks of library errors

# packages through which fsspec and TensorFlow talk to buckets
_CLIENTS = (
    "adlfs",
    "aiohttp",
    "azure",
    "botocore",
    "gcsfs",
    "google.api",
    "google.auth",
    "requests",
    "s3fs",
)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXT = re.compile("|".join(re.escape(os.strerror(code)) for code in _FULL))
_REMEDIES = {
    errno.EMFILE: "raise the limit, as with `ulimit -n 65536`",
    errno.ENFILE: "raise the limit, as with `ulimit -n 65536`",
    errno.ENOMEM: "close other programs, or use a machine with more memory",
}
# how messages of TensorFlow, TensorStore and XLA begin
_STATUS = re.compile(
    r"(NOT_FOUND|DATA_LOSS|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|"
    r"UNAUTHENTICATED|ABORTED|FAILED_PRECONDITION): "
)
_QUOTED_PATH = re.compile(r"""["']((?:/|gs://)[^"']+)["']""")
_LONGEST = 300  # characters of a library's message


class LibraryError(UserError):
    """A library failed for a cause outside the program; ``__cause__`` is its error.

    Attributes:
      temporary: whether the same command may succeed later, as when a network is down.
    """

    temporary = False


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors of libraries into LibraryError where their cause is known; also a decorator."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        found = LibraryError(message)
        found.temporary = any(map(_is_temporary, _chain(error)))
        raise found from error


def show(error: UserError) -> None:
    """Prints an error on one line; before it the traceback, if the environment asks for it."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    hint = f" ({TRACEBACK}=1 shows the traceback)" if isinstance(error, LibraryError) else ""
    print(f"error: {' '.join(str(error).split())}{hint}", file=sys.stderr)


def explain(error: BaseException) -> str | None:
    """What happened, in one line; None if neither the error nor its causes are known."""
    for link in _chain(error):
        for known in _KNOWN:
            if message := known(link):
                return message
    return None


def brief(error: BaseException) -> str:
    """The first line of the original error, without pages of specifications."""
    *_, first = _chain(error)
    if isinstance(first, KeyError):  # whose text is the key alone
        return f"{first} is missing"
    line = (str(first).strip() or repr(first)).splitlines()[0].partition(" [")[0]
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then its cause, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        hidden = None if link.__suppress_context__ else link.__context__
        link = link.__cause__ or hidden


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    code = getattr(error, "code", None)  # of HTTP
    if isinstance(code, int) and code >= 500:
        return True
    kind = type(error).__name__
    return kind in ("DeadlineExceededError", "UnavailableError", "ClientConnectorError") or str(
        error
    ).startswith(("UNAVAILABLE: ", "DEADLINE_EXCEEDED: "))


def _of_user(error: BaseException) -> str | None:
    return str(error) if isinstance(error, UserError) else None


def _full_disk(error: BaseException) -> str | None:
    text = str(error)
    code = error.errno if isinstance(error, OSError) else None
    found = _FULL_TEXT.search(text)
    if code not in _FULL and not found:
        return None
    reason = found[0] if found else os.strerror(code or errno.ENOSPC)
    return (
        f"cannot write {_path(error)}: {reason}; make room, then run the same command again: what "
        "was complete is kept"
    )


def _out_of_memory(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return f"this machine has too little memory: {brief(error)}"
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and (
        "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    ):
        return (
            f"a device has too little memory ({brief(error)}); make batch_size smaller, or raise "
            "optimizer.accumulate_steps, or set model.remat=full"
        )
    return None


def _no_backend(error: BaseException) -> str | None:
    if isinstance(error, RuntimeError) and "nable to initialize backend" in str(error):
        return f"JAX finds no device: {brief(error)}; JAX_PLATFORMS=cpu uses the processor"
    return None


def _bucket(error: BaseException) -> str | None:
    if any(kind.__module__.startswith(_CLIENTS) for kind in type(error).__mro__):
        return f"the bucket cannot be used: {brief(error)}"
    return None


def _system(error: BaseException) -> str | None:
    if isinstance(error, BrokenPipeError) and not error.filename:
        return "nothing reads the output any more"
    if not isinstance(error, OSError) or error.errno is None:
        return None
    remedy = _REMEDIES.get(error.errno)
    reason = f"{error.strerror or error}{f'; {remedy}' if remedy else ''}"
    if error.filename is not None:
        return f"{_decoded(error.filename)}: {reason}"
    return reason if remedy or isinstance(error, ConnectionError | TimeoutError) else None


def _status(error: BaseException) -> str | None:
    """A status of TensorFlow or TensorStore that stands for the state of files or network."""
    named = type(error).__module__.startswith("tensorflow") and type(error).__name__ in (
        "AbortedError DataLossError DeadlineExceededError NotFoundError PermissionDeniedError "
        "ResourceExhaustedError UnavailableError UnauthenticatedError"
    )
    if named or (isinstance(error, ValueError) and _STATUS.match(str(error))):
        return _STATUS.sub("", brief(error), count=1)
    return None


_KNOWN: tuple[Callable[[BaseException], str | None], ...] = (
    _of_user,
    _full_disk,
    _out_of_memory,
    _no_backend,
    _bucket,
    _system,
    _status,
)


def _path(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return _decoded(error.filename)
    found = _QUOTED_PATH.search(str(error))
    return found[1] if found else "a file"


def _decoded(name: str | bytes | int) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)
