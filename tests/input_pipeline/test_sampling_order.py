"""The order of reading: positions by arithmetic equal positions by walking."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import sampling_order


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 5), st.integers(0, 5))
def test_the_streams_share_out_every_shard_once_per_epoch(seed, shards_per_stream, streams, epoch):
    num_shards = shards_per_stream * streams
    visits = [
        sampling_order.epoch_shards(num_shards, streams, seed, 0, epoch, stream)
        for stream in range(streams)
    ]
    assert sorted(np.concatenate(visits)) == list(range(num_shards))


def test_shard_order_changes_with_seed_source_and_epoch():
    orders = {
        tuple(sampling_order.epoch_shards(64, 1, seed, source, epoch, 0))
        for seed in (0, 1)
        for source in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_draws_follow_the_weights_and_have_stable_prefixes():
    draws = sampling_order.source_draws([3.0, 1.0], seed=5, stream=2, num_draws=40_000)
    assert abs(np.mean(draws == 0) - 0.75) < 0.01
    assert np.array_equal(draws[:1000], sampling_order.source_draws([3.0, 1.0], 5, 2, 1000))
    assert not np.array_equal(draws[:1000], sampling_order.source_draws([3.0, 1.0], 5, 3, 1000))


def _walk(plans: list[sampling_order.EpochPlan], counts: list[int], block: int) -> list[tuple]:
    """What a reader yields by following the plans: (epoch, block, (shard, record))."""
    out = []
    for plan in plans:
        records = [(int(s), r) for s in plan.shards for r in range(counts[s])][plan.skip_records :]
        labelled = [
            (plan.epoch, plan.first_block + i // block, record) for i, record in enumerate(records)
        ]
        out += labelled[plan.skip_in_block :]
    return out


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=8).filter(lambda c: len(c) % 2 == 0),
    st.integers(1, 7),
    st.integers(0, 60),
    st.integers(0, 2**20),
)
def test_resuming_by_arithmetic_continues_the_uninterrupted_walk(counts, block, start, seed):
    arguments = {
        "num_streams": 2, "stream": 1, "source": 0, "seed": seed, "block_size": block, "stop": 80
    }  # fmt: skip
    whole = _walk(sampling_order.plan_epochs(counts, start=0, **arguments), counts, block)
    resumed = _walk(sampling_order.plan_epochs(counts, start=start, **arguments), counts, block)
    assert len(whole) >= 80
    assert resumed == whole[start:]


def test_a_resumed_plan_does_not_reread_finished_shards():
    counts = [1000] * 8
    plan = sampling_order.plan_epochs(
        counts, num_streams=1, stream=0, source=0, seed=0, block_size=64, start=5_500, stop=8_000
    )[0]
    assert len(plan.shards) == 3
    assert plan.skip_records < 1000
    assert plan.skip_in_block == 5_500 % 64
