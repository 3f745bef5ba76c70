"""Reads blocks of records ahead of the steps that need them, in threads."""

import collections
import concurrent.futures
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from input_pipeline import sampling_order
from input_pipeline.io import files, threads
from input_pipeline.record_index import RecordIndex
from input_pipeline.sampling_order import Blocks

_READERS = 4  # threads for a local disk
_BUCKET_READERS = 32
_STEPS_AHEAD = 2
# or more steps, if so few blocks are begun in a step that the readers would wait for work
_BLOCKS_AHEAD = 2 * _BUCKET_READERS
_RUN_RECORDS = 256  # of a sequential read
_RUN_BYTES = 1 << 20


def steps(
    indices: Sequence[RecordIndex],
    blocks: Sequence[Blocks],
    weights: Sequence[float],
    *,
    seed: int,
    batch_size: int,
    rows: range,
    start: int,
    stop: int,
    reading: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """The records of a host's rows, step after step; see ``sampling_order``.

    Args:
      indices: the sources.
      blocks: their blocks.
      weights: share of the records of each source, up to a factor.
      seed: seed of the run.
      batch_size: rows of the global batch.
      rows: the rows of this host.
      start: the first step.
      stop: the step after the last one.
      reading: is entered while a step waits for its records.

    Yields:
      Serialized records of the rows, and the index of the source of each, int64 (rows,).

    Raises:
      CorpusError: a shard is missing or altered; see ``RecordIndex.read``.
    """
    plan = sampling_order.assignments(seed, blocks, weights, batch_size, start)
    local = all(files.is_local(index.directory) for index in indices)
    readers = _READERS if local else _BUCKET_READERS
    first_row = rows.start
    held: list[list[bytes]] = [[] for _ in rows]
    source_of = np.zeros(len(rows), np.int64)

    def read(source: int, block: int, wanted: np.ndarray) -> list[bytes]:
        """The wanted records of a block, the first one last."""
        begin, end = blocks[source].span[block]
        records = indices[source].read(int(blocks[source].shard[block]), int(begin), int(end))
        return [records[place] for place in wanted[::-1]]

    pool = concurrent.futures.ThreadPoolExecutor(readers, "record_reader")
    ahead: collections.deque[tuple[np.ndarray, np.ndarray, list]] = collections.deque()
    in_flight = 0
    try:
        for step in range(start, stop):
            while step + len(ahead) < stop and (
                len(ahead) < _STEPS_AHEAD or in_flight < _BLOCKS_AHEAD
            ):
                assignment = next(plan)
                own = (assignment.rows >= first_row) & (assignment.rows < rows.stop)
                entries = assignment.entries.take(own)
                sizes = np.array(
                    [blocks[s].size[b] for s, b in zip(entries.source, entries.block, strict=True)],
                    np.int64,
                )
                orders = sampling_order.record_orders(seed, entries.source, entries.visit, sizes)
                futures = [
                    pool.submit(read, source, block, order[begin : begin + size])
                    for source, block, begin, size, order in zip(
                        entries.source, entries.block, entries.begin, entries.size, orders,
                        strict=True,
                    )
                ]  # fmt: skip
                ahead.append((assignment.rows[own] - first_row, entries.source, futures))
                in_flight += len(futures)
            begun, sources, futures = ahead.popleft()
            in_flight -= len(futures)
            with reading():
                for row, future in zip(begun, futures, strict=True):
                    held[row] = future.result()
            source_of[begun] = sources
            yield [records.pop() for records in held], source_of.copy()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def sequential(
    index: RecordIndex, spans: Sequence[tuple[int, int]] | None = None
) -> Iterator[bytes]:
    """The records of a split in file order, read ahead in threads.

    Args:
      index: the split.
      spans: first and stop of runs of records; None: all records.

    Raises:
      CorpusError: a shard is missing or altered; see ``RecordIndex.read``.
    """
    spans = [(0, len(index.offsets))] if spans is None else spans
    total = sum(shard.num_bytes for shard in index.shards)
    per_run = max(min(_RUN_BYTES * len(index.offsets) // max(total, 1), _RUN_RECORDS), 1)
    readers = 2 if files.is_local(index.directory) else threads.BUCKET_THREADS
    runs = (run for first, stop in spans for run in index.runs(first, stop, per_run))
    yield from itertools.chain.from_iterable(
        threads.map_ahead(lambda run: index.read(*run), runs, readers)
    )
