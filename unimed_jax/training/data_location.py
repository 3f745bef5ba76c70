"""Locations of the files that a config names."""

import dataclasses
import difflib
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.conversion.sources import SOURCES
from input_pipeline.conversion.sources.base import CaptionedSource
from input_pipeline.conversion.write_shards import write_corpus
from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import AnyPath, sorted_glob, to_path, under
from input_pipeline.manifest import FILE_NAME
from unimed_jax import config as config_lib
from unimed_jax.training import stages
from unimed_jax.weights.uri import resolve

PHANTOMS = "phantoms"  # the value of data.root that stands for the generated corpus
_LIMITS = ("max_rejected", "max_suspect")  # arguments of `write_corpus` among the keys of data.raw
CONVERTED = "corpora"  # folder of the work directory for what data.raw names


def corpus_root(config: ConfigDict, workdir: str) -> AnyPath:
    """The directory of ``config.data.root``.

    Corpora that are generated or converted for a run are in its work directory.
    """
    if config.data.get("raw"):  # a checkpoint may be older than the key
        return to_path(workdir) / CONVERTED
    if not config.data.root:
        raise ConfigError(
            "config.data.root is empty; valid: a directory that tools/convert_corpus.py wrote, "
            f"or {PHANTOMS!r} for the generated corpus"
        )
    if config.data.root == PHANTOMS:
        return to_path(workdir) / PHANTOMS
    return to_path(config.data.root)


def locate(uri: str, config: ConfigDict, workdir: str, *, weights: bool = True) -> AnyPath:
    """The path of a URI.

    Args:
      uri: ``root:PATH`` (in the corpus), ``stage:NAME`` (an earlier stage of the run), or anything
        that ``weights.uri.resolve`` takes.
      config: the config of the run.
      workdir: the work directory of the run.
      weights: False leaves weights out of a download.
    """
    if uri.startswith("root:"):
        return under(corpus_root(config, workdir), uri.removeprefix("root:"))
    if uri.startswith("stage:"):
        return stages.directory(to_path(workdir), uri.removeprefix("stage:"))
    return resolve(uri, weights=weights)


def prepare(config: ConfigDict, workdir: str) -> AnyPath:
    """The corpus root, after generating or converting the corpora that are missing.

    These are the phantoms, or the corpora of ``data.raw``: each entry names a source of
    ``tools/convert_corpus.py`` as ``kind`` and gives its flags, among them ``max_rejected`` and
    ``max_suspect``; its folder ``raw`` is relative to ``data.root``.

    Raises:
      CorpusError: the raw data is invalid, most of it is rejected, or it has changed since it was
        converted.
    """
    root = corpus_root(config, workdir)
    for name, settings in config.data.get("raw", {}).items():
        _convert(name, dict(settings), to_path(config.data.root), root / name)
    if config.data.root == PHANTOMS:
        from input_pipeline.conversion.phantom_corpus import write_phantoms

        write_phantoms(root, **config.data.phantoms)
    return root


def without_missing(config: ConfigDict, workdir: str) -> ConfigDict:
    """The config without sources of ``data.optional`` that have no corpus.

    ``data.left_out`` then names them. A directory without a manifest is not missing: its conversion
    is unfinished, and opening it says so. Nor is a source whose corpus seems to be in a folder of a
    similar name.

    Raises:
      ConfigError: no source has a corpus, or the folder of one seems to be misspelt.
    """
    paths = {name: entry.path for name, entry in config.data.sources.items()}
    optional = [name for name in config.data.get("optional", ()) if name in paths]
    root = corpus_root(config, workdir) if optional else None
    if root is None:
        return config
    missing = sorted(name for name in optional if not under(root, paths[name]).is_dir())
    if not missing:
        return config
    there = {file.parent.name for file in sorted_glob(root, f"*/{FILE_NAME}")}
    for folder in sorted(there - set(paths.values())):
        if close := difflib.get_close_matches(folder, [paths[name] for name in missing], n=1):
            raise ConfigError(
                f"{root / folder} is a corpus that no entry of config.data.sources names, and "
                f"there is no {root / close[0]}: rename it, or name it in data.sources"
            )
    if len(missing) == len(paths):
        raise ConfigError(
            f"config.data.root={config.data.root}: there is none of {', '.join(missing)}"
        )
    kept = config.copy_and_resolve_references()
    with config_lib.edit(kept):
        for name in missing:
            del kept.data.sources[name]
    kept.data.optional = tuple(name for name in optional if name not in missing)
    kept.data.left_out = tuple(missing)
    return kept


def _convert(name: str, settings: dict[str, Any], raw_root: AnyPath, out: AnyPath) -> None:
    kind = settings.pop("kind", "")
    source = SOURCES.get(kind)
    if source is None or isinstance(source, CaptionedSource):
        valid = ", ".join(k for k, s in SOURCES.items() if not isinstance(s, CaptionedSource))
        raise ConfigError(f"config.data.raw.{name}.kind={kind!r} is not possible; valid: {valid}")
    limits = {key: settings.pop(key) for key in _LIMITS if key in settings}
    known = {field.name for field in dataclasses.fields(source.options)}
    if unknown := sorted(settings.keys() - known):
        raise ConfigError(
            f"config.data.raw.{name} has no key {unknown[0]!r}; valid: "
            f"{', '.join(sorted({*known, *_LIMITS}))}"
        )
    if "raw" in settings:
        settings["raw"] = under(raw_root, settings["raw"])
    write_corpus(out, source.open(source.options(**settings)), **limits)
