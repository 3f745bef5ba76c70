"""Where the records of a split lie in its shards: ``SPLIT.index.safetensors``, beside the manifest.

With it, any record is read without those before it. Conversion writes the index; for a corpus
without one, it is made by reading the lengths of all records once.

A TFRecord file frames each record by its length and two checksums (tensorflow.org/tutorials/
load_data/tfrecord): uint64 length, uint32 checksum of the length, the record, uint32 checksum of
the record; numbers are little-endian, checksums CRC-32C, masked.
"""

import contextlib
import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from tqdm import tqdm

from input_pipeline import manifest as manifest_lib
from input_pipeline.io import files, threads
from input_pipeline.io.errors import CorpusError, UserError
from input_pipeline.io.files import AnyPath, PathLike, to_path

SUFFIX = ".index.safetensors"
FRAME_BYTES = 16  # that a record takes in its shard beyond its own length

_HEADER = struct.Struct("<QI")  # length and its checksum
_CHECKSUM = struct.Struct("<I")
_OFFSETS, _FINGERPRINT = "offsets", "fingerprint"


def file_name(split: str) -> str:
    """Name of the index of a split."""
    return f"{split}{SUFFIX}"


@dataclass(frozen=True)
class RecordIndex:
    """The records of a split, numbered through its shards in order.

    Attributes:
      directory: directory of the corpus.
      shards: the shards of the split.
      offsets: int64 (num_samples,), the byte of its shard at which each record begins.
    """

    directory: AnyPath
    shards: tuple[manifest_lib.Shard, ...]
    offsets: np.ndarray

    @functools.cached_property
    def first_records(self) -> np.ndarray:
        """int64 (shards + 1,), the number of the first record of each shard, and of all records."""
        return np.cumsum([0, *(shard.num_samples for shard in self.shards)])

    @functools.cached_property
    def _shard_bytes(self) -> np.ndarray:
        return np.array([shard.num_bytes for shard in self.shards])

    def bytes_of(self, shard: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """The bytes of runs of records, each inside one shard.

        Args:
          shard: int (n,), indices of shards.
          first: int (n,), number of the first record in the whole split.
          count: int (n,), numbers of records, at least 1.

        Returns:
          int64 (n, 2), first byte and the byte after the last one.
        """
        ends = first + count
        inside = ends < self.first_records[shard + 1]
        # the last record of a shard ends where the shard does
        begins = self.offsets[np.minimum(ends, len(self.offsets) - 1)]
        following = np.where(inside, begins, self._shard_bytes[shard])
        return np.stack([self.offsets[first], following], axis=1)

    def read(self, shard: int, begin: int, end: int) -> list[bytes]:
        """The records in a span of bytes of a shard.

        Raises:
          CorpusError: the shard was altered after the manifest was written, or cannot be read.
        """
        path = self.directory / self.shards[shard].file
        try:
            data = files.read_bytes(path, (begin, end - begin))
        except OSError as error:
            raise CorpusError(f"cannot read shard {path}: {files.reason(error)}") from error
        if len(data) < end - begin:
            raise CorpusError(
                f"shard {path} is truncated: {begin + len(data)} bytes, the manifest says "
                f"{self.shards[shard].num_bytes}"
            )
        found = []
        position = 0
        while position < len(data):
            length, checksum = _HEADER.unpack_from(data, position)
            start = position + _HEADER.size
            record = data[start : start + length]
            position = start + length + _CHECKSUM.size
            if (
                position > len(data)
                or checksum != _masked_crc(data[start - _HEADER.size : start - _CHECKSUM.size])
                or _CHECKSUM.unpack_from(data, position - _CHECKSUM.size)[0] != _masked_crc(record)
            ):
                raise CorpusError(
                    f"shard {path} is altered: the record at byte {begin + start - _HEADER.size} "
                    "does not have its checksum; copy or convert the corpus again"
                )
            found.append(record)
        return found

    def runs(self, first: int, stop: int, max_records: int) -> Iterator[tuple[int, int, int]]:
        """Spans that hold the records ``first`` <= n < ``stop``, in order.

        Yields:
          Shard, first byte and the byte after the last one of ``max_records`` records at most.
        """
        while first < stop:
            shard = int(np.searchsorted(self.first_records, first, side="right")) - 1
            end = min(stop, first + max_records, int(self.first_records[shard + 1]))
            span = self.bytes_of(np.array([shard]), np.array([first]), np.array([end - first]))[0]
            yield shard, int(span[0]), int(span[1])
            first = end


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def load(directory: PathLike, manifest: manifest_lib.Manifest, split: str) -> RecordIndex:
    """The index of a split: from its file, or else made and stored for the next time.

    Raises:
      CorpusError: a shard is missing or its records do not have the lengths that it states.
    """
    directory, shards = to_path(directory), manifest.splits[split].shards
    path = directory / file_name(split)
    fingerprint = np.frombuffer(bytes.fromhex(manifest.fingerprint), np.uint8)
    try:
        content = safetensors.numpy.load(files.read_bytes(path))
        if np.array_equal(content[_FINGERPRINT], fingerprint):
            return RecordIndex(directory, shards, content[_OFFSETS])
    except (OSError, SafetensorError, KeyError):
        pass  # missing, or of another version: it is made again
    offsets = []
    with tqdm(
        total=manifest.splits[split].num_samples,
        unit=" records",
        desc=f"indexing {directory.name}",
        delay=2,
        disable=None,
    ) as bar:
        paths = ((directory / shard.file, shard) for shard in shards)
        count = 1 if files.is_local(directory) else threads.BUCKET_THREADS
        for part in threads.map_ahead(lambda job: _scan(*job), paths, count):
            offsets.append(part)
            bar.update(len(part))
    index = RecordIndex(directory, shards, np.concatenate(offsets))
    with contextlib.suppress(UserError):  # the corpus is read-only: made again at every start
        save(index, manifest, split)
    return index


def save(index: RecordIndex, manifest: manifest_lib.Manifest, split: str) -> None:
    """Writes the file of an index atomically. Raises UserError if the directory is read-only."""
    content = {
        _OFFSETS: index.offsets,
        _FINGERPRINT: np.frombuffer(bytes.fromhex(manifest.fingerprint), np.uint8),
    }
    path = index.directory / file_name(split)
    files.write_bytes_atomically(path, safetensors.numpy.save(content))


def offsets_of(record_bytes: Sequence[int]) -> np.ndarray:
    """int64 (n,), the byte at which each record of a shard begins, from their lengths."""
    ends = np.cumsum(np.asarray(record_bytes, np.int64) + FRAME_BYTES)
    return np.concatenate([np.zeros(min(len(ends), 1), np.int64), ends[:-1]])


def _scan(path: AnyPath, shard: manifest_lib.Shard) -> np.ndarray:
    """The offsets of a shard, from the lengths in it."""
    offsets = np.empty(shard.num_samples, np.int64)
    position = 0
    try:
        with files.open_to_read(path) as file:
            for number in range(shard.num_samples):
                header = file.read(_HEADER.size)
                length, checksum = _HEADER.unpack(header)
                if checksum != _masked_crc(header[:8]):
                    raise CorpusError(f"shard {path} is altered: record {number} has no length")
                offsets[number] = position
                position += FRAME_BYTES + length
                file.seek(length + _CHECKSUM.size, 1)
    except (OSError, struct.error) as error:
        raise CorpusError(f"cannot read shard {path}: {error}") from error
    if position != shard.num_bytes:
        raise CorpusError(
            f"shard {path}: its {shard.num_samples} records have {position} bytes, the manifest "
            f"says {shard.num_bytes}"
        )
    return offsets
