"""`manifest.json`: the shards of a corpus, their contents and their checksums.

It is written last, so a directory with a manifest is a complete corpus.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping

from input_pipeline import records
from input_pipeline.io import files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, PathLike, to_path, write_text_atomically

FILE_NAME = "manifest.json"
SHARD_PATTERN = re.compile(r"(\w+)-(\d{5,})-of-(\d{5,})\.tfrecord")

COUNTED_FIELDS = ("source", "modality", "label")
Counts = Mapping[str, Mapping[str, int]]  # field of COUNTED_FIELDS -> value -> number of samples


def shard_name(split: str, index: int, num_shards: int) -> str:
    """File name of a shard, `train-00000-of-00008.tfrecord`."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.tfrecord"


def split_of_shard(file: str) -> str:
    """The split in the name of a shard. Raises ValueError for another file name."""
    match = SHARD_PATTERN.fullmatch(file)
    if match is None:
        raise ValueError(f"{file} is not the name of a shard, such as {shard_name('train', 0, 8)}")
    return match[1]


def add_counts(parts: list[Counts]) -> Counts:
    """Sums counts field by field; values sorted."""
    total: dict[str, collections.Counter[str]] = {
        field: collections.Counter() for field in COUNTED_FIELDS
    }
    for part in parts:
        for field in COUNTED_FIELDS:
            total[field].update(part[field])
    return {field: dict(sorted(counter.items())) for field, counter in total.items()}


@dataclasses.dataclass(frozen=True)
class Shard:
    """A TFRecord file; `sha256` (hex) is the checksum of the file."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of a split, in order, and its numbers of samples by source, modality, label."""

    num_samples: int
    counts: Counts
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`.

    `plan` identifies the inputs and settings of the conversion, `fingerprint` its output.
    `read` is the sum of `written`, `rejected` and `merged`, the rows whose captions were added to
    the sample of an earlier row.
    """

    name: str
    splits: Mapping[str, Split]
    read: int
    written: int
    rejected: int
    plan: str
    schema_version: int = records.SCHEMA_VERSION
    schema: str = records.SCHEMA.name
    merged: int = 0

    @functools.cached_property
    def counts(self) -> Counts:
        """Samples per source, modality and label over all splits."""
        return add_counts([split.counts for split in self.splits.values()])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the schema version and the checksum of every shard.

        Equal for corpora with the same bytes, wherever they are.
        """
        digest = hashlib.sha256(f"schema {self.schema_version}\n".encode())
        for name, split in sorted(self.splits.items()):
            for shard in split.shards:
                digest.update(f"{name} {shard.file} {shard.num_samples} {shard.sha256}\n".encode())
        return digest.hexdigest()


def load(directory: PathLike) -> Manifest:
    """Reads the manifest of a corpus.

    Raises:
      CorpusError: there is no such directory or manifest, it is not valid, or it was written by a
        newer version.
    """
    path = to_path(directory) / FILE_NAME
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        what = "has no manifest.json" if path.parent.is_dir() else "does not exist"
        raise CorpusError(
            f"corpus directory {path.parent} {what}; give the --out of a finished conversion "
            "(an unfinished one continues when its command is run again)"
        ) from None
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    try:
        if content["schema_version"] > records.SCHEMA_VERSION:
            raise CorpusError(
                f"{path}: schema version {content['schema_version']} is newer than the "
                f"{records.SCHEMA_VERSION} that this installation reads"
            )
        fingerprint = content.pop("fingerprint")
        splits = {
            name: Split(
                split["num_samples"],
                split["counts"],
                tuple(Shard(**shard) for shard in split["shards"]),
            )
            for name, split in content.pop("splits").items()
        }
        manifest = Manifest(splits=splits, **content)
    except (KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path} is not a manifest of this format: {error!r}") from error
    if manifest.fingerprint != fingerprint:
        raise CorpusError(f"{path} was edited: its shard list does not match its fingerprint")
    return manifest


def save(directory: PathLike, manifest: Manifest) -> None:
    """Writes the manifest atomically."""
    content = dataclasses.asdict(manifest) | {"fingerprint": manifest.fingerprint}
    if not manifest.merged:  # earlier versions do not know the key
        del content["merged"]
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_text_atomically(to_path(directory) / FILE_NAME, text)


def verify(directory: PathLike, manifest: Manifest, split: str, checksums: bool = False) -> None:
    """Checks the shards of a split against the manifest.

    Sizes take one `stat` per shard; `checksums` reads every byte.

    Raises:
      CorpusError: names the split that is unknown, or the first shard that is missing, empty,
        truncated or altered.
    """
    if split not in manifest.splits:
        remedy = "; convert with --val_fraction to split one off" if split == "val" else ""
        raise CorpusError(
            f"corpus {directory} has no split {split!r}; it has {sorted(manifest.splits)}{remedy}"
        )
    for shard in manifest.splits[split].shards:
        path = to_path(directory) / shard.file
        try:
            num_bytes = path.stat().st_size
        except OSError as error:
            raise CorpusError(f"shard {path} is missing: {files.reason(error)}") from error
        if num_bytes != shard.num_bytes:
            what = "empty" if num_bytes == 0 else "truncated or altered"
            raise CorpusError(
                f"shard {path} is {what}: {num_bytes} bytes, the manifest says {shard.num_bytes}"
            )
        if checksums and file_sha256(path) != shard.sha256:
            raise CorpusError(f"shard {path} is altered: its SHA-256 is not the manifest's")


def file_sha256(path: AnyPath) -> str:
    """SHA-256 (hex) of a file."""
    with files.open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
