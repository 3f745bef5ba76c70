"""Writing files and directories so that readers see the old or the new, never a part."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.errors import UserError


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Replaces the file at `path` by `text` (UTF-8); as `write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replaces the file at `path` by `content`, creating parent directories.

    The content goes to a temporary file in the same directory, which is then renamed; a kill at any
    moment leaves either the old file or the new one.

    Raises:
      UserError: the directory or the file cannot be written; the message names it and says why.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name without content
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def appearing_directory(path: Path) -> Iterator[Path]:
    """An empty directory that takes the name ``path`` when the block ends without an error.

    Raises:
      UserError: ``path`` is there and not an empty directory, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not an empty directory; name another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as parent:
            # A directory of its own gets the usual permissions; the temporary one is private.
            staged = Path(parent) / path.name
            staged.mkdir()
            yield staged
            staged.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
