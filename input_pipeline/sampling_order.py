"""What is read when: pure functions of (seed, source, epoch, stream), no state and no TensorFlow.

A global batch is made of ``num_streams`` *logical streams* in stream order; each gives an equal
number of rows. A host serves a contiguous range of streams, so the batch at step k does not depend
on how many hosts there are. Within a stream, every source keeps its own position:

* each epoch, all shards of the source are permuted and dealt to the streams in turn;
* the records that a stream meets in an epoch are cut into *blocks* of ``block_size``, and each
block is
  shuffled with its own seed. Unlike a sliding shuffle buffer, a block is reached by arithmetic: to
  resume, whole shards are skipped by their counts and at most one shard plus one block is read
  again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS, _SHARDS, _BLOCKS, _EXAMPLES = range(
    4
)  # one random domain per use, so that none repeats another


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


def stream_seed(seed: int, domain_index: int, stream: int, domain: int) -> int:
    """A 63-bit seed that belongs to one stream of one source in one random domain."""
    words = np.random.SeedSequence([seed, domain, domain_index, stream]).generate_state(
        1, np.uint64
    )
    return int(words[0] >> np.uint64(1))


def block_seed(seed: int, source: int, stream: int) -> int:
    return stream_seed(seed, source, stream, _BLOCKS)


def example_seed(seed: int, source: int, stream: int) -> int:
    return stream_seed(seed, source, stream, _EXAMPLES)


def source_draws(weights: Sequence[float], seed: int, stream: int, num_draws: int) -> np.ndarray:
    """Which source each draw of a stream takes, with probability in proportion to ``weights``.

    Returns:
      uint8 array of shape (num_draws,); its prefixes do not depend on ``num_draws``.
    """
    if len(weights) == 1:
        return np.zeros(num_draws, np.uint8)
    cumulative = np.cumsum(np.asarray(weights, np.float64) / np.sum(weights))
    uniform = _generator(seed, _DRAWS, stream).random(num_draws)
    return np.minimum(np.searchsorted(cumulative, uniform, side="right"), len(weights) - 1).astype(
        np.uint8
    )


def epoch_shards(
    num_shards: int, num_streams: int, seed: int, source: int, epoch: int, stream: int
) -> np.ndarray:
    """Shards (int64 indices, in reading order) that ``stream`` visits in ``epoch``."""
    return _generator(seed, _SHARDS, source, epoch).permutation(num_shards)[stream::num_streams]


@dataclass(frozen=True)
class EpochPlan:
    """The part of one epoch that one stream has still to read of one source."""

    epoch: int
    shards: np.ndarray  # int64, in reading order, the first may be entered part-way
    skip_records: int  # records to pass over at the start of the first shard, undecoded
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
    counts = np.asarray(counts, np.int64)
    plans, epoch, epoch_start = [], 0, 0
    while epoch_start < stop:
        shards = epoch_shards(len(counts), num_streams, seed, source, epoch, stream)
        ends = np.cumsum(counts[shards])
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
