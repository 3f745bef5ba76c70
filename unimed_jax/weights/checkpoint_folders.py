"""Names of folders that checkpoints can be kept in, and a repair of what misreads some of them.

Orbax finds its files with ``epath.Path.glob``, which takes the name of the folder for a part of the
pattern: it finds nothing in ``run [a]``, and in ``a*b`` the files of ``axb`` as well. TensorStore
turns a backslash into a slash, and thereby writes elsewhere.
"""

import glob
from collections.abc import Iterator
from typing import Any

from etils.epath import gpath

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, is_local

_PROBLEMS = {
    "\\": "a backslash, which TensorStore reads as a slash",
    "://": "'://', which stands for a URL",
}
# Google's clients take these for a generation or a query, or drop them
_PROBLEMS_IN_BUCKETS = {
    "#": "'#'",
    "?": "'?'",
    "\n": "a line break",
    "\r": "a line break",
    "\t": "a tab",
}


def check_name(folder: AnyPath) -> None:
    """Refuses a work directory whose checkpoints would end up elsewhere, or could not be read.

    Args:
      folder: the absolute path, with all of its parents.

    Raises:
      UserError: says which character is not possible.
    """
    name = str(folder) if is_local(folder) else folder.path
    problems = _PROBLEMS if is_local(folder) else {**_PROBLEMS, **_PROBLEMS_IN_BUCKETS}
    if is_local(folder) and any(part.endswith(":") for part in folder.parts):
        problems = {**problems, ":/": "a part that ends in a colon, as URLs begin"}
        name += "/"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        problems = {**problems, "": "a byte that is not UTF-8"}
    for text, problem in problems.items():
        if text in name:
            raise UserError(
                f"checkpoints cannot be kept in {str(folder)!a}: its name has {problem}; "
                "rename it, or choose another --workdir"
            )


def _glob(self: Any, pattern: str) -> Iterator[Any]:
    """``epath.Path.glob``, with the name of the folder taken literally."""
    found = self._backend.glob(self._PATH.join(glob.escape(self._path_str), pattern))
    return (self._new(path) for path in found)


def repair_glob() -> None:
    """Makes ``epath.Path.glob`` take the names of folders literally, in this process."""
    gpath._GPath.glob = _glob
