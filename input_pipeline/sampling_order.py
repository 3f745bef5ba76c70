"""The order of records: pure functions of the seed, in NumPy.

The shards of every source are cut into *blocks* of a few consecutive records. An endless *sequence
of blocks* takes them from the sources in proportion to their weights; in each of its epochs, a
source gives all of its blocks once, in a new permutation.

Each row of the global batch holds a block and gives one of its records, in shuffled order, to every
step. A row that has used up its block takes the next one of the sequence. So the records of a block
go to as many batches, one after the other; a batch has its records from as many places of the
corpus as it has rows; and what is held in memory is half a block per row, whatever the number of
sources. Reading at any step begins with the blocks that the rows hold at that step, which follow
from the seed.
"""

import dataclasses
import enum
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.record_index import RecordIndex

VERSION = 2
"""Of the order, stored in checkpoints; version 1 had ``data.num_streams`` and stored no version."""


class RngStream(enum.IntEnum):
    """Independent streams of random numbers; the values are part of every seed."""

    DRAWS = 0  # which source each block of the sequence is from
    BLOCKS = 1  # the permutation of the blocks of a source
    RECORDS = 2  # the order of the records in a block
    EXAMPLES = 3  # the seeds that ``decode`` receives
    SPLITS = 4  # the parts of the first blocks


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(k) for k in key])))


@functools.cache
def _key(seed: int, stream: RngStream, *rest: int) -> int:
    """A 63-bit seed."""
    sequence = np.random.SeedSequence([seed, int(stream), *rest])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def example_seed(seed: int) -> int:
    """The seed that, with the number of a row in the run, belongs to that draw."""
    return _key(seed, RngStream.EXAMPLES)


@dataclass(frozen=True)
class Blocks:
    """The blocks of one source.

    Attributes:
      shard: int64 (blocks,), index of the shard.
      size: int64 (blocks,), number of records, at least 1.
      span: int64 (blocks, 2), the bytes of the shard.
    """

    shard: np.ndarray
    size: np.ndarray
    span: np.ndarray

    def __len__(self) -> int:
        return len(self.size)


def cut(index: RecordIndex, block_size: int) -> Blocks:
    """Cuts each shard into blocks of nearly one size, ``block_size`` records at most."""
    shard_of, firsts, sizes = [], [], []
    for number, shard in enumerate(index.shards):
        count = -(-shard.num_samples // block_size)
        edges = np.arange(count + 1) * shard.num_samples // max(count, 1)
        shard_of.append(np.full(count, number))
        firsts.append(index.first_records[number] + edges[:-1])
        sizes.append(np.diff(edges))
    shards, first, size = (np.concatenate(parts) for parts in (shard_of, firsts, sizes))
    return Blocks(shards, size, index.bytes_of(shards, first, size))


def fitting_block_size(block_size: int, num_samples: int, share: float, batch_size: int) -> int:
    """The block size of a source: smaller for one that is small beside its part of the batch.

    So that an epoch is at least four times as many blocks as rows hold at a time, because two
    epochs of a source meet in a batch when one follows the other.
    """
    return int(min(max(num_samples / (4 * share * batch_size), 1), block_size))


@dataclass(frozen=True)
class Entries:
    """Consecutive elements of the sequence of blocks; all arrays are int64 (n,).

    Attributes:
      source: index of the source.
      block: index of the block in its source.
      visit: how many blocks the source has given before this one; identifies the element.
      begin: records of the block, in its shuffled order, that are not part of the element.
      size: records of the element.
    """

    source: np.ndarray
    block: np.ndarray
    visit: np.ndarray
    begin: np.ndarray
    size: np.ndarray

    def take(self, which: np.ndarray | slice) -> "Entries":
        """Some of the elements."""
        return Entries(*(getattr(self, name)[which] for name in _COLUMNS))


_COLUMNS = tuple(Entries.__dataclass_fields__)


def block_sequence(
    seed: int, sources: Sequence[Blocks], weights: Sequence[float], chunk: int
) -> Iterator[Entries]:
    """The endless sequence of blocks, in pieces.

    In every ``chunk`` blocks, each source has its share to within a few, by stratified sampling.
    The first blocks are cut in two at random: the rows then begin blocks at different steps, and
    the sources have their shares from the first batch on, whatever the sizes of their blocks.

    Args:
      seed: seed of the run.
      sources: blocks of the sources.
      weights: share of the *records* of each source, up to a factor.
      chunk: blocks that are drawn together; part of the order.
    """
    sizes = np.array([blocks.size.mean() for blocks in sources])
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    given = np.zeros(len(sources), np.int64)

    @functools.lru_cache(maxsize=2 * len(sources))
    def permutation(source: int, epoch: int) -> np.ndarray:
        return _generator(seed, RngStream.BLOCKS, source, epoch).permutation(len(sources[source]))

    for number in itertools.count():
        # The first blocks are as many as give a part to each row.
        per_row = shares / (2 - 1 / sizes if number == 0 else sizes)
        count = max(round(chunk * per_row.sum()), 1) if number == 0 else chunk
        generator = _generator(seed, RngStream.DRAWS, number)
        points = (np.arange(count) + generator.random(count)) / count
        drawn = np.searchsorted(np.cumsum(per_row / per_row.sum()), points, side="right")
        source = generator.permutation(np.minimum(drawn, len(sources) - 1))
        block, visit, size = np.empty((3, count), np.int64)
        for index in np.unique(source):
            mine = np.flatnonzero(source == index)
            visits = given[index] + np.arange(len(mine))
            given[index] += len(mine)
            epochs, places = np.divmod(visits, len(sources[index]))
            for epoch in np.unique(epochs):
                now = epochs == epoch
                block[mine[now]] = permutation(int(index), int(epoch))[places[now]]
            visit[mine] = visits
            size[mine] = sources[index].size[block[mine]]
        entries = Entries(source, block, visit, np.zeros(count, np.int64), size)
        yield _halved(entries, seed) if number == 0 else entries


def _halved(entries: Entries, seed: int) -> Entries:
    """Each element as a random part of it, from 1 record to all, and the rest, if there is one."""
    cuts = _generator(seed, RngStream.SPLITS).integers(1, entries.size + 1)
    heads = dataclasses.replace(entries, size=cuts)
    tails = dataclasses.replace(entries, begin=cuts, size=entries.size - cuts)
    columns = (
        np.stack([getattr(part, name) for part in (heads, tails)], axis=1).ravel()
        for name in _COLUMNS
    )
    both = Entries(*columns)
    return both.take(both.size > 0)


@dataclass(frozen=True)
class Assignment:
    """The rows that begin a block at a step, or hold one at the first step.

    Attributes:
      rows: int64 (n,), rows of the global batch, ascending.
      entries: n elements of the sequence; ``begin`` and ``size`` leave out what earlier steps used.
    """

    rows: np.ndarray
    entries: Entries


def assignments(
    seed: int, sources: Sequence[Blocks], weights: Sequence[float], batch_size: int, start: int
) -> Iterator[Assignment]:
    """For each step from ``start`` on, the rows that begin a block; at ``start``, all rows.

    Args:
      seed: seed of the run.
      sources: blocks of the sources.
      weights: share of the records of each source, up to a factor.
      batch_size: rows of the global batch.
      start: the first step.
    """
    supply = block_sequence(seed, sources, weights, batch_size)
    stock = next(supply)
    ends = np.zeros(batch_size, np.int64)  # the step at which the block of a row is used up
    held = Entries(*np.zeros((len(_COLUMNS), batch_size), np.int64))
    step = 0
    while True:
        rows = np.flatnonzero(ends == step)
        while len(stock.size) < len(rows):
            more = next(supply)
            stock = Entries(
                *(np.concatenate([getattr(s, name) for s in (stock, more)]) for name in _COLUMNS)
            )
        taken, stock = stock.take(slice(len(rows))), stock.take(slice(len(rows), None))
        ends[rows] = step + taken.size
        if step > start:
            yield Assignment(rows, taken)
        else:
            for name in _COLUMNS:
                getattr(held, name)[rows] = getattr(taken, name)
            if step == start:
                left = ends - start
                used = held.size - left
                rest = Entries(held.source, held.block, held.visit, held.begin + used, left)
                yield Assignment(np.arange(batch_size), rest)
        step += 1


def record_orders(
    seed: int, source: np.ndarray, visit: np.ndarray, block_size: np.ndarray
) -> list[np.ndarray]:
    """The order in which blocks give their records: a permutation of each block.

    Args:
      seed: seed of the run.
      source, visit: int64 (n,), which elements of the sequence; see ``Entries``.
      block_size: int64 (n,), records of their blocks.

    Returns:
      n arrays int64 (size of the block,).
    """
    keys = [_key(seed, RngStream.RECORDS, index) for index in range(int(source.max(initial=0)) + 1)]
    longest = int(block_size.max(initial=1))
    counters = visit[:, None] * np.int64(1 << 20) + np.arange(longest)
    mixed = _splitmix64(np.array(keys, np.uint64)[source][:, None] ^ _splitmix64(counters))
    mixed[np.arange(longest) >= block_size[:, None]] = np.iinfo(np.uint64).max
    order = np.argsort(mixed, axis=1, kind="stable")
    return [row[:size] for row, size in zip(order, block_size, strict=True)]


def _splitmix64(counters: np.ndarray) -> np.ndarray:
    """Random uint64 of the same shape, by SplitMix64 (Steele et al. 2014): no state to create."""
    x = counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
