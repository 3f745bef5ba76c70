"""Planning: what is decided over all rows, from a stream, in memory that does not grow."""

import subprocess
import sys

import pytest
from helpers import corpora
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.conversion import plan
from input_pipeline.conversion.planned_rows import PlannedRow, Rejection
from input_pipeline.io.errors import CorpusError


def build(tmp_path, rows, **options):
    tmp_path.mkdir(exist_ok=True, parents=True)
    options = {"num_shards": None, "seed": 0} | options
    return plan.build(tmp_path, "n", iter(rows), len, **options)


def planned_rows(made):
    return {shard: list(plan.shard_rows(made.directory, shard)) for shard in made.shards}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["train", "val"]), st.integers(0, 30)), min_size=1),
    st.integers(0, 5),
)
def test_every_row_is_in_one_shard_or_rejected(tmp_path_factory, rows, seed):
    planned = [PlannedRow((split, n), split, str(n), i) for i, (split, n) in enumerate(rows, 1)]
    made = build(tmp_path_factory.mktemp("plan"), planned, seed=seed)
    found = planned_rows(made)
    kept = [row for part in found.values() for row in part]
    rejected = list(made.rejected())
    assert len(kept) + len(rejected) == len(rows) and made.num_rejected == len(rejected)
    assert sorted(n for _, n in kept) == sorted({n for _, n in rows})
    assert {shard: len(part) for shard, part in found.items()} == made.shards
    first = {}
    for i, (_, n) in enumerate(rows, 1):
        first.setdefault(str(n), i)
    assert all(r.reason == f"duplicate id, first in row {first[r.id]}" for r in rejected)


def test_the_plan_is_a_function_of_rows_and_settings(tmp_path):
    rows = [PlannedRow(n, "train", str(n)) for n in range(100)]
    made = build(tmp_path / "a", rows)
    assert build(tmp_path / "b", rows).hash == made.hash
    assert planned_rows(build(tmp_path / "c", rows)) == planned_rows(made)
    others = [
        build(tmp_path / "d", rows, seed=1),
        build(tmp_path / "e", rows, num_shards=4),
        build(tmp_path / "f", rows[:-1]),
        build(tmp_path / "g", [*rows, Rejection("no image", 101)]),
    ]
    assert len({made.hash, *(other.hash for other in others)}) == 5


def test_groups_in_two_splits_are_counted(tmp_path):
    groups = {"train": ("p1", "p2", "p3"), "val": ("p2", "p3", "p4"), "test": ("p3",)}
    rows = [
        PlannedRow(0, split, f"{split}{name}", group=("src", name))
        for split, names in groups.items()
        for name in names
    ]
    made = build(tmp_path, rows)
    assert made.num_shared_groups == 2 and made.shared_group in ("p2", "p3")


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"planning in .*none failed"):
        plan.build(tmp_path / "none", "n", [], len, num_shards=None, seed=0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows():
    script = corpora.REPO / "benchmarks" / "plan_memory.py"

    def peak(num_rows):  # MB, of a process of its own
        command = [sys.executable, script, str(num_rows)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return float(output.split()[0])

    # held in memory, 38,000 rows more are 42 MB more
    assert peak(40_000) - peak(2_000) < 20
