"""Corpus directories -> batches: the batch at step k is a function of (sources, seed, k) alone.

No iterator state is saved. ``train_batches`` starts at any step: ``sampling_order`` says which
records it has, ``record_reader`` reads them, and one flat ``tf.data`` graph decodes and batches
them. The task's ``decode`` turns a few records into features, given the records and a seed for this
draw of each. How many it is given, the numbers of worker threads and hosts, and interruptions,
change neither the order nor the pixels.
"""

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from input_pipeline import manifest as manifest_lib
from input_pipeline import record_index, record_reader, records, sampling_order
from input_pipeline.io.errors import CorpusError

# decode(serialized (n,), seeds (n, 2), sources (n,)) -> features (n, ...); in-graph
DecodeFn = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]]


def decode_each(
    decode: DecodeFn, serialized: tf.Tensor, seeds: tf.Tensor, sources: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Applies a function of one record to n of them.

    Args:
      decode: (serialized (), seed (2,), source ()) -> features of fixed shapes.
      serialized: string (n,).
      seeds: int64 (n, 2).
      sources: int64 (n,).

    Returns:
      The features, with a leading dimension n.
    """
    arguments = (serialized, seeds, sources)
    one = tf.function(decode).get_concrete_function(
        *(tf.TensorSpec(x.shape[1:], x.dtype) for x in arguments)
    )
    features = {k: tf.TensorSpec(x.shape, x.dtype) for k, x in one.structured_outputs.items()}
    return tf.map_fn(lambda row: one(*row), arguments, fn_output_signature=features)


@dataclass(frozen=True)
class MixtureSource:
    """One component of the mixture: a split of a corpus directory and its share of the draws."""

    name: str
    directory: str
    split: str
    weight: float | None  # None: in proportion to its number of samples


def open_sources(
    sources: Sequence[MixtureSource],
    verify_checksums: bool = False,
    schema: str = records.SCHEMA.name,
) -> list[manifest_lib.Manifest]:
    """Reads and verifies the manifests of a mixture.

    Raises:
      CorpusError: a manifest or shard is missing, truncated or altered, a split is empty, or the
        records are of another schema.
    """
    manifests = []
    for source in sources:
        manifest = manifest_lib.load(source.directory)
        manifest_lib.verify(source.directory, manifest, source.split, checksums=verify_checksums)
        if manifest.schema != schema:
            raise CorpusError(
                f"{source.directory} holds {manifest.schema} records, the task reads {schema}"
            )
        if not manifest.splits[source.split].num_samples:
            raise CorpusError(f"{source.directory}: split {source.split!r} has no samples")
        manifests.append(manifest)
    return manifests


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides which batches a run reads.

    Attributes:
      sources: the mixture; the order and names are part of the stream.
      manifests: manifests of the sources, from ``open_sources``.
      seed: seed of the order and of the seeds that ``decode`` receives.
      batch_size: rows of the global batch.
      block_size: consecutive records that are read together, at most.
    """

    sources: Sequence[MixtureSource]
    manifests: Sequence[manifest_lib.Manifest]
    seed: int
    batch_size: int
    block_size: int

    @property
    def num_samples(self) -> int:
        """Samples in one epoch: those of all sources."""
        return sum(
            manifest.splits[source.split].num_samples
            for source, manifest in zip(self.sources, self.manifests, strict=True)
        )

    @property
    def weights(self) -> list[float]:
        """Weight of every source: as given, or else its number of samples."""
        return [
            float(m.splits[s.split].num_samples if s.weight is None else s.weight)
            for s, m in zip(self.sources, self.manifests, strict=True)
        ]

    @property
    def directories(self) -> dict[str, manifest_lib.Manifest]:
        """Corpus directory -> manifest."""
        return {s.directory: m for s, m in zip(self.sources, self.manifests, strict=True)}

    @functools.cached_property
    def indices(self) -> list[record_index.RecordIndex]:
        """Indices of the records of the sources. Raises CorpusError."""
        return [
            record_index.load(source.directory, manifest, source.split)
            for source, manifest in zip(self.sources, self.manifests, strict=True)
        ]

    @functools.cached_property
    def blocks(self) -> list[sampling_order.Blocks]:
        """Blocks of the sources. Raises CorpusError."""
        total = sum(self.weights)
        return [
            sampling_order.cut(
                index,
                sampling_order.fitting_block_size(
                    self.block_size, len(index.offsets), weight / total, self.batch_size
                ),
            )
            for index, weight in zip(self.indices, self.weights, strict=True)
        ]

    def position(self, step: int) -> dict[str, object]:
        """What decides the batches after ``step``: stored in checkpoints, compared on resume."""
        return {
            "order": sampling_order.VERSION,
            "step": step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            "sources": {
                s.name: {"split": s.split, "weight": weight, "fingerprint": m.fingerprint}
                for s, m, weight in zip(self.sources, self.manifests, self.weights, strict=True)
            },
        }


class RecordSource:
    """Feeds a dataset with records that Python reads; what stopped it is kept in ``error``."""

    _SIGNATURE = (
        tf.TensorSpec((None,), tf.string),
        tf.TensorSpec((None, 2), tf.int64),
        tf.TensorSpec((None,), tf.int64),
    )

    def __init__(
        self, read: Callable[[], Iterator[tuple[Sequence[bytes], np.ndarray, np.ndarray]]]
    ) -> None:
        """``read`` yields serialized records (n,), their seeds (n, 2) and their sources (n,)."""
        self._read = read
        self.error: Exception | None = None

    def dataset(self, count: int) -> tf.data.Dataset:
        """(serialized (count,), seeds (count, 2), sources (count,)) of every ``count`` records."""

        def elements() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            try:
                for serialized, seeds, sources in self._read():
                    # in parts, because TensorFlow copies each as a whole, more than once
                    for begin in range(0, len(serialized), _PART):
                        part = slice(begin, begin + _PART)
                        yield np.array(serialized[part], object), seeds[part], sources[part]
            except Exception as error:  # TensorFlow would only pass its text on
                self.error = error
                raise

        dataset = tf.data.Dataset.from_generator(elements, output_signature=self._SIGNATURE)
        return dataset.rebatch(count, drop_remainder=True)


_PART = 256  # records
_RECORDS_PER_CALL = 16  # of decode, at most: a call from the graph into Python costs 0.1 ms
_FAILURES = 3  # failed batches after which all are read the tolerant way


def _with_valid(decode: DecodeFn) -> DecodeFn:
    def features(
        serialized: tf.Tensor, seeds: tf.Tensor, sources: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        valid = tf.ones_like(sources, tf.bool)
        return {**decode(serialized, seeds, sources), "valid": valid}

    return features


def _decoded(dataset: tf.data.Dataset, decode: DecodeFn, num_threads: int) -> tf.data.Dataset:
    """Decodes records one by one; one that fails becomes zeros, not ``valid``, in its place."""
    features = _with_valid(decode)
    spec = dataset.map(features).element_spec
    blank = {
        key: tf.zeros([0 if d is None else d for d in value.shape], value.dtype)
        if value.dtype != tf.string
        else tf.fill(value.shape, "")
        for key, value in spec.items()
    }

    def decode_or_blank(record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor) -> tf.data.Dataset:
        good = tf.data.Dataset.from_tensors((record, seed, source)).map(features)
        identity = {"id": tf.io.FixedLenFeature((), tf.string, default_value="")}
        failed = {**blank, **tf.io.parse_example(record, identity)}
        return good.ignore_errors().concatenate(tf.data.Dataset.from_tensors(failed)).take(1)

    parallelism = num_threads or tf.data.AUTOTUNE
    # One element per inner dataset: interleave is then an ordered parallel map that tolerates bad
    # records.
    return dataset.interleave(
        decode_or_blank,
        cycle_length=num_threads or 16,
        num_parallel_calls=parallelism,
        deterministic=True,
    )


def _numpy_batches(
    source: RecordSource, decode: DecodeFn, rows: int, num_threads: int, tolerant: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Decoded batches of ``rows`` records, in order.

    Raises:
      CorpusError: the records cannot be read, or, in the tolerant way, are of no known layout.
      tf.errors.OpError: unless in the tolerant way, a record cannot be decoded.
    """
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = num_threads == 0
    if num_threads:
        options.threading.private_threadpool_size = num_threads
    count = 1
    if tolerant:
        dataset = _decoded(source.dataset(count), decode, num_threads)
    else:
        count = max(n for n in range(1, _RECORDS_PER_CALL + 1) if rows % n == 0)
        parallelism = num_threads or tf.data.AUTOTUNE
        dataset = source.dataset(count).map(_with_valid(decode), parallelism, deterministic=True)
    dataset = dataset.batch(rows // count, drop_remainder=True).prefetch(2).with_options(options)
    try:
        for batch in dataset.as_numpy_iterator():
            yield {key: value.reshape(rows, *value.shape[2:]) for key, value in batch.items()}
    except tf.errors.OpError as error:
        if source.error:
            raise source.error from None
        if not tolerant:
            raise
        reason = (error.message or str(error)).splitlines()[0]
        raise CorpusError(f"a record cannot be parsed: {reason}") from error


def train_batches(
    spec: StreamSpec,
    decode: DecodeFn,
    start_step: int,
    stop_step: int,
    *,
    rows: range | None = None,
    num_threads: int = 0,
    tolerant: bool = False,
    reading: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Iterator[dict[str, np.ndarray]]:
    """Host batches of the steps ``start_step`` <= k < ``stop_step``.

    A batch with a record that cannot be decoded is read again the tolerant way, which takes a fifth
    longer; after a few such batches, all further ones are. The batches are the same either way.

    Args:
      spec: the stream.
      decode: the task's features of a record; must return ``id`` (string).
      start_step: the first step.
      stop_step: the step after the last one.
      rows: the rows of the global batch that this host reads; None: all of them.
      num_threads: size of the decoding pool; 0 lets tf.data choose. Does not affect the batches.
      tolerant: True reads the tolerant way from the beginning.
      reading: is entered, in another thread, while a step waits for its records.

    Yields:
      Dicts with leading dimension ``len(rows)``, among them ``valid`` (bool): False where a record
      could not be decoded; its features are zeros, except for ``id``.

    Raises:
      CorpusError: a shard was removed or altered since its manifest was written.
    """
    rows = range(spec.batch_size) if rows is None else rows
    step, failures = start_step, 0
    while step < stop_step:
        tolerant = tolerant or failures == _FAILURES
        try:
            for batch in _train_batches(
                spec, decode, step, stop_step, rows, num_threads, tolerant, reading
            ):
                yield batch
                step += 1
            return
        except tf.errors.OpError:
            failures += 1
            yield from _train_batches(
                spec, decode, step, step + 1, rows, num_threads, True, reading
            )
            step += 1


def _train_batches(
    spec: StreamSpec,
    decode: DecodeFn,
    start: int,
    stop: int,
    rows: range,
    num_threads: int,
    tolerant: bool,
    reading: Callable[[], contextlib.AbstractContextManager[None]],
) -> Iterator[dict[str, np.ndarray]]:
    example_seed = sampling_order.example_seed(spec.seed)

    def read() -> Iterator[tuple[list[bytes], np.ndarray, np.ndarray]]:
        steps = record_reader.steps(
            spec.indices,
            spec.blocks,
            spec.weights,
            seed=spec.seed,
            batch_size=spec.batch_size,
            rows=rows,
            start=start,
            stop=stop,
            reading=reading,
        )
        for step, (serialized, sources) in enumerate(steps, start):
            draws = step * spec.batch_size + np.asarray(rows)
            yield serialized, np.stack([np.full_like(draws, example_seed), draws], axis=1), sources

    return _numpy_batches(RecordSource(read), decode, len(rows), num_threads, tolerant)


def evaluation_batches(
    directory: str,
    manifest: manifest_lib.Manifest,
    split: str,
    decode: DecodeFn,
    *,
    batch_size: int,
    host: int = 0,
    num_hosts: int = 1,
    num_threads: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Every record of a split once, in file order; rows that pad the last batch are not ``valid``.

    Global batch j holds the records j*batch_size to (j+1)*batch_size; host h reads and decodes its
    contiguous share of the rows, so every host yields the same number of batches.

    Raises:
      CorpusError: a shard was removed or altered since its manifest was written.
    """
    index = record_index.load(directory, manifest, split)
    rows = batch_size // num_hosts
    num_samples = manifest.splits[split].num_samples
    firsts = range(host * rows, num_samples + -num_samples % batch_size, batch_size)

    def read() -> Iterator[tuple[list[bytes], np.ndarray, np.ndarray]]:
        spans = [(min(first, num_samples), min(first + rows, num_samples)) for first in firsts]
        found = record_reader.sequential(index, spans)
        for begin, end in spans:
            serialized = [*itertools.islice(found, end - begin)]
            if len(serialized) < rows:  # the last batch is padded with the first record
                (filling,) = record_reader.sequential(index, [(0, 1)])
                serialized += [filling] * (rows - len(serialized))
            yield serialized, np.zeros((rows, 2), np.int64), np.zeros(rows, np.int64)

    batches = _numpy_batches(RecordSource(read), decode, rows, num_threads, tolerant=True)
    for first, batch in zip(firsts, batches, strict=True):
        yield {**batch, "valid": batch["valid"] & (first + np.arange(rows) < num_samples)}


def replace_bad_rows(
    batches: Iterator[Mapping[str, np.ndarray]], policy: str, first_row: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Handles records that could not be decoded.

    Args:
      batches: host batches of ``train_batches``.
      policy: ``error`` stops; ``replace`` logs and counts the record, and copies a valid row into
        its place: the other row of its pair, or else one of its group of 4, 8, ... rows, so that
        the batch does not depend on the number of hosts.
      first_row: number of the first row in the global batch.

    Raises:
      CorpusError: under ``error``, or when a batch has no valid row.
    """
    replaced = 0
    for batch in batches:
        valid = batch["valid"]
        batch = {key: value for key, value in batch.items() if key != "valid"}
        if not valid.all():
            batch = {
                key: value.copy() for key, value in batch.items()
            }  # TensorFlow's are read-only
        candidates = np.flatnonzero(valid)
        for row in np.flatnonzero(~valid):
            sample_id = batch["id"][row].decode()
            if policy == "error":
                raise CorpusError(
                    f"sample {sample_id!r} cannot be decoded; remove it by converting the corpus "
                    "again, or set data.on_bad_sample='replace' to put its neighbour in its place"
                )
            if not len(candidates):
                raise CorpusError(
                    f"no sample near {sample_id!r} can be decoded; the corpus is damaged"
                )
            # the smallest exclusive or: the smallest aligned group of 2, 4, 8, ... rows
            donor = candidates[np.argmin((first_row + candidates) ^ (first_row + row))]
            replaced += 1
            logging.warning(
                "sample %r cannot be decoded: replaced by %r (%d replaced so far)",
                sample_id,
                batch["id"][donor].decode(),
                replaced,
            )
            for key in batch:
                batch[key][row] = batch[key][donor]
        yield batch
