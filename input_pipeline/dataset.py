"""Corpus directories -> batches: the batch at step k is a function of (sources, seed, k) alone.

No iterator state is saved. ``train_dataset`` starts at any step, by the arithmetic of
``sampling_order``. The task's ``decode`` turns a record into features, given the record and a seed
for this draw of it. The numbers of worker threads and hosts, and interruptions, change neither the
order nor the pixels.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from input_pipeline import manifest as manifest_lib
from input_pipeline import records, sampling_order
from input_pipeline.io.errors import ConfigError, CorpusError
from input_pipeline.io.files import is_local, to_path

# decode(serialized (), seed (2,), source ()) -> features; in-graph
DecodeFn = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]]

NO_SEED = np.zeros(2, np.int64)


@dataclass(frozen=True)
class MixtureSource:
    """One component of the mixture: a split of a corpus directory and its share of the draws."""

    name: str
    directory: str
    split: str
    weight: float | None  # None: in proportion to its number of samples


def open_sources(
    sources: Sequence[MixtureSource],
    num_streams: int,
    verify_checksums: bool = False,
    schema: str = records.SCHEMA.name,
) -> list[manifest_lib.Manifest]:
    """Reads and verifies the manifests of a mixture.

    Raises:
      CorpusError: a manifest or shard is missing, truncated or altered, a split is empty, or the
        records are of another schema.
      ConfigError: the shards of a source cannot be dealt evenly to the streams.
    """
    manifests = []
    for source in sources:
        manifest = manifest_lib.load(source.directory)
        manifest_lib.verify(source.directory, manifest, source.split, checksums=verify_checksums)
        if manifest.schema != schema:
            raise CorpusError(
                f"{source.directory} holds {manifest.schema} records, the task reads {schema}"
            )
        num_shards = len(manifest.splits[source.split].shards)
        if num_shards % num_streams:
            raise ConfigError(
                f"data.num_streams={num_streams} does not divide the {num_shards} shards of source "
                f"{source.name!r} ({source.directory}, split {source.split!r}); choose a divisor "
                f"of {num_shards} or convert the corpus with another --num_shards"
            )
        if any(shard.num_samples == 0 for shard in manifest.splits[source.split].shards):
            raise CorpusError(
                f"{source.directory}: split {source.split!r} has shards without samples; convert "
                "it again with fewer --num_shards"
            )
        manifests.append(manifest)
    return manifests


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides which batches a run reads.

    Attributes:
      sources: the mixture; the order and names are part of the stream.
      manifests: manifests of the sources, from ``open_sources``.
      seed: seed of the order and of the seeds that ``decode`` receives.
      batch_size: rows of the global batch; divisible by ``num_streams``.
      num_streams: logical streams of the run, independent of the number of hosts.
      block_size: records that are shuffled together.
    """

    sources: Sequence[MixtureSource]
    manifests: Sequence[manifest_lib.Manifest]
    seed: int
    batch_size: int
    num_streams: int
    block_size: int

    @property
    def rows_per_stream(self) -> int:
        """Rows that each stream gives to a batch."""
        return self.batch_size // self.num_streams

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

    def position(self, step: int) -> dict[str, object]:
        """What decides the batches after ``step``: stored in checkpoints, compared on resume."""
        return {
            "step": step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "num_streams": self.num_streams,
            "block_size": self.block_size,
            "sources": {
                s.name: {"split": s.split, "weight": weight, "fingerprint": m.fingerprint}
                for s, m, weight in zip(self.sources, self.manifests, self.weights, strict=True)
            },
        }


def _paths(directory: str, shards: Sequence[manifest_lib.Shard]) -> list[str]:
    """Paths of shards for TensorFlow."""
    root = to_path(directory)
    if not is_local(root) and root.protocol not in tf.io.gfile.get_registered_schemes():
        raise CorpusError(
            f"{directory}: TensorFlow reads records from a local disk and from gs://, not from "
            f"{root.protocol}://; copy the corpus there"
        )
    return [str(root / shard.file) for shard in shards]


def _shuffled_records(
    paths: np.ndarray, plans: Sequence[sampling_order.EpochPlan], block_size: int, seed: int
) -> tf.data.Dataset:
    """Serialized records of a source in a stream, epoch after epoch, shuffled block by block."""
    all_paths = tf.constant(np.concatenate([paths[plan.shards] for plan in plans]))
    ends = np.cumsum([len(plan.shards) for plan in plans])
    per_epoch = {
        "epoch": [plan.epoch for plan in plans],
        "begin": ends - [len(plan.shards) for plan in plans],
        "end": ends,
        "skip_records": [plan.skip_records for plan in plans],
        "first_block": [plan.first_block for plan in plans],
        "skip_in_block": [plan.skip_in_block for plan in plans],
    }

    def read_epoch(plan: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
        def shuffle(block_index: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
            key = tf.stack([tf.constant(seed, tf.int64), plan["epoch"] * 2**32 + block_index])
            return tf.random.experimental.stateless_shuffle(block, key)

        return (
            tf.data.Dataset.from_tensor_slices(all_paths[plan["begin"] : plan["end"]])
            .flat_map(tf.data.TFRecordDataset)
            .skip(plan["skip_records"])
            .batch(block_size)
            .enumerate(start=plan["first_block"])
            .map(shuffle)
            .unbatch()
            .skip(plan["skip_in_block"])
        )

    columns = {key: np.asarray(values, np.int64) for key, values in per_epoch.items()}
    return tf.data.Dataset.from_tensor_slices(columns).flat_map(read_epoch)


def _stream(spec: StreamSpec, stream: int, *, start: int, stop: int) -> tf.data.Dataset:
    """(serialized, seed (2,), source ()) of the draws ``start`` to ``stop`` of one stream."""
    seed = spec.seed
    draws = sampling_order.source_draws(spec.weights, seed, stream, stop)
    components = []
    for index, (source, manifest) in enumerate(zip(spec.sources, spec.manifests, strict=True)):
        shards = manifest.splits[source.split].shards
        first = int(np.count_nonzero(draws[:start] == index))
        plans = sampling_order.plan_epochs(
            [shard.num_samples for shard in shards],
            num_streams=spec.num_streams,
            stream=stream,
            source=index,
            seed=seed,
            block_size=spec.block_size,
            start=first,
            stop=max(int(np.count_nonzero(draws == index)), first + 1),
        )
        paths = np.array(_paths(source.directory, shards))
        example_key = tf.constant(sampling_order.example_seed(seed, index, stream), tf.int64)

        def tag(
            draw: tf.Tensor, record: tf.Tensor, key: tf.Tensor = example_key, index: int = index
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return record, tf.stack([key, draw]), tf.constant(index, tf.int64)

        block_key = sampling_order.block_seed(seed, index, stream)
        component = _shuffled_records(paths, plans, spec.block_size, block_key)
        components.append(component.enumerate(start=first).map(tag))
    if len(components) == 1:
        return components[0]
    choice = tf.data.Dataset.from_tensor_slices(draws[start:]).map(lambda i: tf.cast(i, tf.int64))
    return tf.data.Dataset.choose_from_datasets(components, choice, stop_on_empty_dataset=True)


_FAILURES = 3  # failed batches after which all are read the tolerant way


def _with_valid(decode: DecodeFn) -> DecodeFn:
    def features(record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor) -> dict[str, tf.Tensor]:
        return {**decode(record, seed, source), "valid": tf.constant(True)}

    return features


def _decoded(dataset: tf.data.Dataset, decode: DecodeFn, num_threads: int) -> tf.data.Dataset:
    """Applies ``decode``; a record that fails becomes zeros with ``valid`` False, in its place."""
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
        failed = {**blank, **tf.io.parse_single_example(record, identity)}
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


def _with_options(dataset: tf.data.Dataset, num_threads: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = num_threads == 0
    if num_threads:
        options.threading.private_threadpool_size = num_threads
    return dataset.with_options(options)


def train_dataset(
    spec: StreamSpec,
    decode: DecodeFn,
    start_step: int,
    stop_step: int,
    *,
    streams: range | None = None,
    num_threads: int = 0,
    tolerant: bool = True,
) -> tf.data.Dataset:
    """Host batches of the steps ``start_step`` <= k < ``stop_step``.

    Args:
      spec: the stream.
      decode: the task's features of a record; must return ``id`` (string).
      start_step: the first step.
      stop_step: the step after the last one.
      streams: the contiguous range of streams that this host serves; None: all streams.
      num_threads: size of the decoding pool; 0 lets tf.data choose. Does not affect the batches.
      tolerant: False fails at the first batch with a record that cannot be decoded, and is faster.

    Returns:
      A dataset of dicts with leading dim ``batch_size * len(streams) / num_streams``, rows in
      stream order, among them ``valid`` (bool): False where a record could not be decoded.
    """
    rows = spec.rows_per_stream
    streams = range(spec.num_streams) if streams is None else streams
    parts = tuple(
        _stream(spec, stream, start=start_step * rows, stop=stop_step * rows).batch(
            rows, drop_remainder=True
        )
        for stream in streams
    )
    joined = tf.data.Dataset.zip(parts).map(
        lambda *batches: tuple(tf.concat(column, axis=0) for column in zip(*batches, strict=True))
    )
    dataset = joined.unbatch()
    if tolerant:
        dataset = _decoded(dataset, decode, num_threads)
    else:
        parallelism = num_threads or tf.data.AUTOTUNE
        dataset = dataset.map(_with_valid(decode), parallelism, deterministic=True)
    dataset = dataset.batch(rows * len(streams), drop_remainder=True)
    dataset = dataset.take(stop_step - start_step).prefetch(2)
    return _with_options(dataset, num_threads)


def evaluation_dataset(
    directory: str,
    manifest: manifest_lib.Manifest,
    split: str,
    decode: DecodeFn,
    *,
    batch_size: int,
    host: int = 0,
    num_hosts: int = 1,
    num_threads: int = 0,
) -> tf.data.Dataset:
    """Every record of a split once, in file order; rows that pad the last batch are not ``valid``.

    Global batch j holds the records j*batch_size to (j+1)*batch_size; host h decodes its contiguous
    share of the rows, so every host yields the same number of batches.
    """
    rows = batch_size // num_hosts
    num_samples = manifest.splits[split].num_samples
    paths = _paths(directory, manifest.splits[split].shards)
    dataset = tf.data.Dataset.from_tensor_slices(paths).flat_map(tf.data.TFRecordDataset)
    dataset = dataset.concatenate(dataset.take(1).repeat(-num_samples % batch_size))
    dataset = dataset.enumerate().filter(lambda i, _: (i % batch_size) // rows == host)
    dataset = dataset.map(lambda _, record: (record, NO_SEED, tf.zeros((), tf.int64)))
    dataset = _decoded(dataset, decode, num_threads).batch(rows, drop_remainder=True)

    def mask_filling(
        batch_index: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        sample = batch_index * batch_size + host * rows + tf.range(rows, dtype=tf.int64)
        return {**batch, "valid": batch["valid"] & (sample < num_samples)}

    return _with_options(dataset.enumerate().map(mask_filling).prefetch(2), num_threads)


def train_batches(
    spec: StreamSpec,
    decode: DecodeFn,
    start_step: int,
    stop_step: int,
    *,
    streams: range | None = None,
    num_threads: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of ``train_dataset``, read the fast way as long as every record can be decoded.

    A batch that fails is read again the tolerant way, which takes a fifth longer; after a few
    failures, all further batches are. The batches are the same either way.

    Raises:
      CorpusError: see ``numpy_batches``.
    """

    def make(start: int, stop: int, tolerant: bool) -> tf.data.Dataset:
        return train_dataset(
            spec, decode, start, stop, streams=streams, num_threads=num_threads, tolerant=tolerant
        )

    step, failures = start_step, 0
    while step < stop_step:
        if failures == _FAILURES:
            yield from numpy_batches(make(step, stop_step, True), spec.directories)
            return
        try:
            for batch in make(step, stop_step, False).as_numpy_iterator():
                yield batch
                step += 1
            return  # also if the stream is too short: it must not be read again and again
        except tf.errors.OpError:
            failures += 1
            yield from numpy_batches(make(step, step + 1, True), spec.directories)
            step += 1


def numpy_batches(
    dataset: tf.data.Dataset, directories: Mapping[str, manifest_lib.Manifest]
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over a dataset; an error names the damaged file, which TensorFlow's does not.

    Args:
      dataset: from ``train_dataset`` or ``evaluation_dataset``.
      directories: corpus directory -> manifest, of all corpora that the dataset reads.

    Raises:
      CorpusError: a shard was removed or altered since its manifest was written.
    """
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.OpError as error:
        for directory, manifest in directories.items():
            for split in manifest.splits:
                manifest_lib.verify(directory, manifest, split, checksums=True)
        reason = (error.message or str(error)).splitlines()[0]
        raise CorpusError(f"reading {', '.join(directories)} failed: {reason}") from error


def replace_bad_rows(
    batches: Iterator[Mapping[str, np.ndarray]], policy: str, rows_per_stream: int
) -> Iterator[dict[str, np.ndarray]]:
    """Handles records that could not be decoded.

    Args:
      batches: host batches of ``train_dataset``.
      policy: ``error`` stops; ``replace`` logs and counts the record, and copies the nearest valid
        row of the same stream into its place, so that the batch stays a function of the step alone.
      rows_per_stream: rows that each stream gives to a batch.

    Raises:
      CorpusError: under ``error``, or when a stream has no valid row in a batch.
    """
    replaced = 0
    for batch in batches:
        valid = batch["valid"]
        batch = {key: value for key, value in batch.items() if key != "valid"}
        if not valid.all():
            batch = {
                key: value.copy() for key, value in batch.items()
            }  # TensorFlow's are read-only
        for row in np.flatnonzero(~valid):
            sample_id = batch["id"][row].decode()
            if policy == "error":
                raise CorpusError(
                    f"sample {sample_id!r} cannot be decoded; remove it by converting the corpus "
                    "again, or set data.on_bad_sample='replace' to put its neighbour in its place"
                )
            begin = row - row % rows_per_stream
            candidates = begin + np.flatnonzero(valid[begin : begin + rows_per_stream])
            if not len(candidates):
                raise CorpusError(
                    f"no sample near {sample_id!r} can be decoded; the corpus is damaged"
                )
            donor = candidates[np.argmin(np.abs(candidates - row))]
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
