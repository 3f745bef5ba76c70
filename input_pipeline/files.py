"""Writing a file so that readers see the old content or the new one, never a part."""

import os
from pathlib import Path

from input_pipeline.errors import UserError


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Replaces the file at `path` by `text` (UTF-8), creating parent directories.

    The text goes to a temporary file in the same directory, which is then renamed; a kill at any
    moment leaves either the old file or the new one.

    Raises:
      UserError: the directory or the file cannot be written; the message names it and says why.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name without content
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
