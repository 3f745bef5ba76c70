"""Where weights and vocabularies named by a URI are on this machine."""

import importlib.util
from pathlib import Path

from input_pipeline.errors import WeightsError


def resolve(uri: str) -> Path:
    """A local directory or file.

    `uri` is a path; `pkg:PACKAGE/PATH`, a path inside an installed Python package (which is not
    imported); or `hf:ORG/NAME[@REVISION]`, a snapshot of a Hugging Face repository (safetensors,
    JSON and vocabulary files only), downloaded or from the local cache.

    Raises WeightsError, in one line, if there is nothing to be had.
    """
    scheme, separator, rest = uri.partition(":")
    if separator and scheme == "pkg":
        return _in_package(uri, rest)
    if separator and scheme == "hf":
        return _from_hub(uri, rest)
    path = Path(uri).expanduser()
    if not path.exists():
        raise WeightsError(
            f"no file or directory {uri}; valid: a path, pkg:PACKAGE/PATH or hf:ORG/NAME"
        )
    return path


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


def _from_hub(uri: str, rest: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = rest.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=["*.safetensors", "*.json", "vocab.txt"],
            )
        )
    except Exception as error:  # of many kinds: hub, HTTP client, OS, bad names
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{uri}: cannot be fetched from the Hugging Face hub: {reason}"
        ) from error
