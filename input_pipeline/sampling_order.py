"""The order of records: pure functions of (seed, source, epoch, stream), stateless, in NumPy.

A global batch consists of the rows of ``num_streams`` *logical streams*, an equal number from each,
in stream order. A host serves a contiguous range of streams, so the batch at step k does not depend
on the number of hosts. Within a stream, every source has its own position:

* In each epoch, all shards of the source are permuted and dealt to the streams in turn.
* The records of a stream in an epoch are cut into *blocks* of ``block_size``; each block is
  shuffled with its own seed. Unlike a position in a sliding shuffle buffer, a block is found by
  arithmetic: to resume, whole shards are skipped by their counts, and at most one shard and one
  block are read again.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class RngStream(enum.IntEnum):
    """Independent streams of random numbers; the values are part of every seed."""

    DRAWS = 0  # which source each draw takes
    SHARDS = 1  # the permutation of shards
    BLOCKS = 2  # the shuffling of blocks
    EXAMPLES = 3  # the seeds that ``decode`` receives


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(k) for k in key])))


def stream_seed(seed: int, source: int, stream: int, rng_stream: RngStream) -> int:
    """A 63-bit seed for one use in one stream of one source."""
    sequence = np.random.SeedSequence([seed, int(rng_stream), source, stream])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def block_seed(seed: int, source: int, stream: int) -> int:
    """The seed of the shuffling of blocks."""
    return stream_seed(seed, source, stream, RngStream.BLOCKS)


def example_seed(seed: int, source: int, stream: int) -> int:
    """The seed that, with the number of a draw, belongs to that draw."""
    return stream_seed(seed, source, stream, RngStream.EXAMPLES)


def source_draws(weights: Sequence[float], seed: int, stream: int, num_draws: int) -> np.ndarray:
    """The source of each draw of a stream, with probabilities proportional to ``weights``.

    Returns:
      uint8 array of shape (num_draws,); its prefixes do not depend on ``num_draws``.
    """
    if len(weights) == 1:
        return np.zeros(num_draws, np.uint8)
    cumulative = np.cumsum(np.asarray(weights, np.float64) / np.sum(weights))
    uniform = _generator(seed, RngStream.DRAWS, stream).random(num_draws)
    return np.minimum(np.searchsorted(cumulative, uniform, side="right"), len(weights) - 1).astype(
        np.uint8
    )


def epoch_shards(
    num_shards: int, num_streams: int, seed: int, source: int, epoch: int, stream: int
) -> np.ndarray:
    """Shards (int64 indices, in reading order) that ``stream`` reads in ``epoch``."""
    return _generator(seed, RngStream.SHARDS, source, epoch).permutation(num_shards)[
        stream::num_streams
    ]


@dataclass(frozen=True)
class EpochPlan:
    """The rest of one epoch that one stream reads from one source."""

    epoch: int
    shards: np.ndarray  # int64, in reading order; reading may start within the first one
    skip_records: int  # records to skip at the start of the first shard, undecoded
    first_block: int  # index within the epoch of the first block that is read
    skip_in_block: int  # records of that (shuffled) block that were consumed before


def plan_epochs(
    counts: Sequence[int],
    *,
    num_streams: int,
    stream: int,
    source: int,
    seed: int,
    block_size: int,
    start: int,
    stop: int,
) -> list[EpochPlan]:
    """Plans that yield the records ``start`` <= n < ``stop`` (or more) of a source in a stream.

    Args:
      counts: records in each shard of the source.
      start: records of this source that the stream has consumed so far.
      stop: records of this source that the stream consumes until the end of training.
    """
    shard_sizes = np.asarray(counts, np.int64)
    plans, epoch, epoch_start = [], 0, 0
    while epoch_start < stop:
        shards = epoch_shards(len(shard_sizes), num_streams, seed, source, epoch, stream)
        ends = np.cumsum(shard_sizes[shards])
        if epoch_start + ends[-1] > start:
            consumed = max(start - epoch_start, 0)
            first_block = consumed // block_size
            first_record = first_block * block_size
            first_shard = int(np.searchsorted(ends, first_record, side="right"))
            before = int(ends[first_shard - 1]) if first_shard else 0
            plans.append(
                EpochPlan(
                    epoch,
                    shards[first_shard:],
                    skip_records=first_record - before,
                    first_block=first_block,
                    skip_in_block=consumed - first_record,
                )
            )
        epoch_start += int(ends[-1])
        epoch += 1
    return plans
