"""Where the files that a config names really are."""

from ml_collections import ConfigDict

from input_pipeline.errors import ConfigError
from input_pipeline.files import AnyPath, to_path, under
from unimed_jax.porting.resolve import resolve

PHANTOMS = "phantoms"  # the value of data.root that stands for the generated corpus


def corpus_root(config: ConfigDict, workdir: str) -> AnyPath:
    """The directory of ``config.data.root``; the generated corpus is in the work directory."""
    if not config.data.root:
        raise ConfigError(
            "config.data.root is empty; valid: a directory that tools/convert_corpus.py wrote, "
            f"or {PHANTOMS!r} for the generated corpus"
        )
    if config.data.root == PHANTOMS:
        return to_path(workdir) / PHANTOMS
    return to_path(config.data.root)


def locate(uri: str, config: ConfigDict, workdir: str, *, weights: bool = True) -> AnyPath:
    """Path of ``root:PATH`` (in the corpus), or of what ``porting.resolve`` knows.

    ``weights=False`` leaves weights out of a download.
    """
    if uri.startswith("root:"):
        return under(corpus_root(config, workdir), uri.removeprefix("root:"))
    return resolve(uri, weights=weights)


def prepare(config: ConfigDict, workdir: str) -> AnyPath:
    """The corpus root, after generating the phantoms if they are asked for and not there."""
    root = corpus_root(config, workdir)
    if config.data.root == PHANTOMS:
        from input_pipeline import phantoms

        phantoms.write(root, **config.data.phantoms)
    return root
