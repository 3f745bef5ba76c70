"""The order of records: every step by arithmetic, every record once an epoch, evenly mixed."""

from collections import Counter, deque
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import sampling_order
from input_pipeline.manifest import Shard
from input_pipeline.record_index import RecordIndex

corpora = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=5), min_size=1, max_size=3)


def blocks_of(counts: list[int], block_size: int) -> sampling_order.Blocks:
    shards = tuple(Shard(f"{i}", n, 100 * n, "") for i, n in enumerate(counts))
    offsets = np.concatenate([100 * np.arange(n) for n in counts])
    return sampling_order.cut(RecordIndex(Path(), shards, offsets), block_size)


def records_of(blocks: sampling_order.Blocks) -> list[tuple[int, int]]:
    return [
        (int(shard), byte)
        for shard, (begin, end) in zip(blocks.shard, blocks.span, strict=True)
        for byte in range(begin, end, 100)
    ]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), st.integers(1, 12))
def test_the_blocks_are_all_records_once(counts, block_size):
    blocks = blocks_of(counts, block_size)
    every = [(shard, 100 * n) for shard, count in enumerate(counts) for n in range(count)]
    assert records_of(blocks) == every
    assert 1 <= blocks.size.min() <= blocks.size.max() <= block_size
    for shard in np.unique(blocks.shard):
        sizes = blocks.size[blocks.shard == shard]
        assert sizes.max() - sizes.min() <= 1


@settings(max_examples=50, deadline=None)
@given(corpora.filter(lambda c: all(map(any, c))), st.integers(1, 9), st.integers(0, 2**40))
def test_a_source_gives_every_block_once_an_epoch(corpora, chunk, seed):
    sources = [blocks_of(counts, 4) for counts in corpora]
    weights = [float(sum(counts)) for counts in corpora]
    sequence = sampling_order.block_sequence(seed, sources, weights, chunk)
    given_records = [[] for _ in sources]
    for entries in islice(sequence, 60):
        for source, block, begin, size in zip(
            entries.source, entries.block, entries.begin, entries.size, strict=True
        ):
            given_records[source] += [(int(block), begin + k) for k in range(size)]
    for source, found in zip(sources, given_records, strict=True):
        total = int(source.size.sum())
        epochs = [found[k : k + total] for k in range(0, len(found) - total + 1, total)]
        for epoch in epochs:
            assert sorted(epoch) == [
                (b, k) for b in range(len(source)) for k in range(source.size[b])
            ]
        orders = {tuple(epoch) for epoch in epochs}
        assert len(orders) > 1 or len(epochs) < 2 or len(source) < 4


def walk(seed, sources, weights, batch_size, start, stop) -> list[list[tuple]]:
    """(source, block, number of the record in its block's order) of every row, step by step."""
    held = [deque() for _ in range(batch_size)]
    steps = []
    plan = sampling_order.assignments(seed, sources, weights, batch_size, start)
    for assignment in islice(plan, stop - start):
        e = assignment.entries
        for row, *entry in zip(
            assignment.rows, e.source, e.block, e.visit, e.begin, e.size, strict=True
        ):
            *which, begin, size = map(int, entry)
            assert not held[row]
            held[row].extend((*which, begin + k) for k in range(size))
        steps.append([records.popleft() for records in held])
    return steps


@settings(max_examples=60, deadline=None)
@given(
    corpora.filter(lambda c: all(map(any, c))),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(0, 40),
    st.integers(0, 2**40),
)
def test_the_plan_of_any_step_continues_the_uninterrupted_one(
    corpora, batch_size, block_size, start, seed
):
    sources = [blocks_of(counts, block_size) for counts in corpora]
    weights = [1.0 + index for index in range(len(sources))]
    whole = walk(seed, sources, weights, batch_size, 0, 50)
    assert walk(seed, sources, weights, batch_size, start, 50) == whole[start:]


def test_the_rows_give_the_records_of_the_sequence_in_its_order():
    """Nothing is lost or added between the sequence of blocks and the rows of the batches."""
    sources = [blocks_of([40, 9, 23], 5), blocks_of([11], 2)]
    taken = Counter(r for step in walk(3, sources, [3, 1], 6, 0, 200) for r in step)
    assert set(taken.values()) == {1}  # with its visit, a record of the sequence is unique
    sequence = [
        (int(e.source[i]), int(e.block[i]), int(e.visit[i]), int(e.begin[i]) + k)
        for e in islice(sampling_order.block_sequence(3, sources, [3, 1], 6), 80)
        for i in range(len(e.size))
        for k in range(e.size[i])
    ]
    # what is taken is the beginning of the sequence but for the blocks that the rows still hold
    missing = set(sequence[: 200 * 6]) - set(taken)
    assert len(missing) <= 6 * 5


def test_every_batch_has_the_shares_of_the_sources():
    sources = [blocks_of([4000] * 4, 8), blocks_of([900], 8), blocks_of([50], 1)]
    weights = [0.7, 0.25, 0.05]
    shares = np.array(
        [
            np.bincount([record[0] for record in step], minlength=3) / 200
            for step in walk(0, sources, weights, 200, 0, 60)
        ]
    )
    deviation = np.sqrt(np.multiply(weights, np.subtract(1, weights)) / 200)  # independent draws
    assert np.all(np.abs(shares - weights) < 3 * deviation)
    assert np.all(np.abs(shares[:8].mean(axis=0) - weights) < deviation)
    assert np.all(np.abs(shares.mean(axis=0) - weights) < deviation / 4)


def test_the_records_of_a_block_go_to_consecutive_batches_and_begin_at_different_steps():
    sources = [blocks_of([8000] * 4, 8)]
    steps = walk(1, sources, [1.0], 256, 0, 40)
    place = {}
    for number, step in enumerate(steps):
        blocks = [record[:3] for record in step]
        for row, (block, record) in enumerate(zip(blocks, step, strict=True)):
            place.setdefault(block, []).append((number, row, record[3]))
        if number > 8:  # behind the parts of the first blocks, of which two rows hold one each
            assert len(set(blocks)) == 256
    whole = [where for where in place.values() if len(where) == 8 and where[0][0] > 8]
    assert len(whole) > 500
    for where in whole:
        numbers, rows, records = zip(*where, strict=True)
        assert list(numbers) == [*range(numbers[0], numbers[0] + 8)]
        assert len(set(rows)) == 1
        assert records == (*range(8),)
    begun = np.bincount([where[0][0] % 8 for where in whole], minlength=8)
    assert begun.max() < 1.5 * begun.mean()  # no step reads many more blocks than others


def test_a_batch_is_as_mixed_as_a_perfect_shuffle():
    sources = [blocks_of([25_000] * 8, 8)]
    order = {}  # of the records in a block, which the reader applies; the place in the corpus here
    starts = np.cumsum([0, *sources[0].size])
    distances = []
    for step in walk(5, sources, [1.0], 512, 30, 60):
        places = np.array([starts[block] + number for _, block, _, number in step])
        distances += [np.abs(np.diff(places)).mean() / 200_000]
        order.setdefault(len(np.unique(places)), 0)
    assert np.mean(distances) == pytest.approx(1 / 3, abs=0.01)  # uniform and independent


@given(st.integers(0, 2**40), st.integers(1, 30), st.integers(0, 2**30))
def test_the_order_in_a_block_is_a_permutation_and_another_one_at_the_next_visit(seed, size, visit):
    sizes = np.array([size, 3, size])
    visits = np.array([visit, 0, visit + 1])
    orders = sampling_order.record_orders(seed, np.array([0, 1, 0]), visits, sizes)
    for order, expected in zip(orders, sizes, strict=True):
        assert sorted(order) == [*range(expected)]
    alone = sampling_order.record_orders(seed, np.array([0]), visits[:1], sizes[:1])
    assert np.array_equal(alone[0], orders[0])  # whatever is computed beside it
    assert size < 6 or not np.array_equal(orders[0], orders[2])


def test_orders_are_uniform():
    counts = np.zeros((5, 5))
    visits = np.arange(20_000)
    for order in sampling_order.record_orders(
        7, np.zeros(20_000, np.int64), visits, np.full(20_000, 5)
    ):
        counts[np.arange(5), order] += 1
    assert np.abs(counts / 20_000 - 0.2).max() < 0.012  # 4 standard deviations


@pytest.mark.parametrize(
    ("num_samples", "share", "expected"),
    [(100_000, 1.0, 8), (512, 1.0, 2), (512, 0.25, 8), (9, 1.0, 1)],
)
def test_small_sources_have_small_blocks(num_samples, share, expected):
    assert sampling_order.fitting_block_size(8, num_samples, share, 64) == expected
