"""Archives beside source data, which may not be unpacked, or only in part."""

import zipfile
from collections.abc import Iterable, Mapping

from input_pipeline.io import files
from input_pipeline.io.files import AnyPath

_PATTERNS = ("*.zip", "*.tgz", "*.tar.gz")
WHOLE, CUT_OFF, UNKNOWN = "whole", "cut off: download it again", "not checked"


def states(raw: AnyPath, beside: Iterable[AnyPath]) -> Mapping[str, str]:
    """Archives in a folder and beside some files below it, by name; and whether they are whole.

    Folders of images are not searched: they may hold millions. A zip ends with its directory, so
    one whose download ended early is seen without reading it.
    """
    folders = dict.fromkeys((raw, *(path.parent for path in beside)))
    found = [path for top in folders for name in _PATTERNS for path in files.sorted_glob(top, name)]
    return {files.relative_name(path, raw): _state(path) for path in found}


def _state(path: AnyPath) -> str:
    if path.suffix != ".zip":
        return UNKNOWN
    try:
        with files.open_to_read(path) as file:
            return WHOLE if zipfile.is_zipfile(file) else CUT_OFF
    except OSError as error:
        return f"cannot be read: {files.reason(error)}"
