"""Resolves URIs of weights and vocabularies to paths."""

import importlib.util
import re
from pathlib import Path

from input_pipeline.io.errors import WeightsError
from input_pipeline.io.files import AnyPath, to_path

_WEIGHTS, _OTHER_WEIGHTS = ("*.safetensors",), ("*.bin", "*.pt")
_SMALL_FILES = ("*.json", "vocab.txt")


def resolve(uri: str, *, weights: bool = True) -> AnyPath:
    """The directory or file of a URI, local or in a bucket.

    Args:
        uri: a path, or gs://BUCKET/PATH; `pkg:PACKAGE/PATH`, a path inside an installed Python
            package (which is not imported); `hf:ORG/NAME[@REVISION]`, or `ORG/NAME` where there is
            no such path: a snapshot of a Hugging Face repository, downloaded or from the local
            cache.
        weights: False leaves weights out of a download (only a tokenizer is needed).

    Raises:
        WeightsError: nothing was found; one line.
    """
    scheme, separator, rest = uri.partition(":")
    if separator and scheme == "pkg":
        return _in_package(uri, rest)
    if separator and scheme == "hf":
        return _from_hub(uri, rest, weights)
    path = to_path(uri).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", uri):
        return _from_hub(uri, uri, weights)
    raise WeightsError(
        f"no file or directory {uri}; valid: a path, pkg:PACKAGE/PATH or hf:ORG/NAME"
    )


def _in_package(uri: str, rest: str) -> Path:
    package, _, inner = rest.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"{uri}: no Python package {package!r} is installed (pip names often have - for _)"
        )
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise WeightsError(f"{uri}: the package {package} holds no {inner}")
    return path


def _from_hub(uri: str, rest: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = rest.partition("@")

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*patterns]))

    try:
        if not weights:
            return fetch(*_SMALL_FILES)
        directory = fetch(*_SMALL_FILES, *_WEIGHTS)
        # many repositories hold the same weights twice; those in pickles only where it must be
        return directory if any(directory.glob(_WEIGHTS[0])) else fetch(*_OTHER_WEIGHTS)
    except Exception as error:  # of many kinds: hub, HTTP client, OS, bad names
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{uri}: no such local path, and not available on the Hugging Face hub: {reason}"
        ) from error
