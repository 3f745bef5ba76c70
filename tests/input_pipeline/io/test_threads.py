"""Work in threads: the order of what comes, how far ahead it goes, where errors appear."""

import threading
from collections.abc import Iterator

import pytest

from input_pipeline.io.threads import map_ahead, repeated


def test_results_come_in_order_and_from_other_threads():
    first_may_end = threading.Event()

    def slow_first(i: int) -> tuple[int, str]:
        if i == 0:
            assert first_may_end.wait(10)
        else:
            first_may_end.set()  # the second is done before the first
        return i, threading.current_thread().name

    found = list(map_ahead(slow_first, range(20), depth=4))
    assert [i for i, _ in found] == list(range(20))
    assert threading.current_thread().name not in {name for _, name in found}


def test_items_are_taken_so_far_ahead_and_no_further():
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(100):
            taken = i + 1
            yield i

    results = map_ahead(str, items(), depth=5)
    assert next(results) == "0" and taken == 6
    assert next(results) == "1" and taken == 7
    results.close()
    assert taken == 7


def test_an_error_is_raised_in_its_place():
    def fail_at_3(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    results = map_ahead(fail_at_3, range(10), depth=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert list(map_ahead(fail_at_3, (), depth=8)) == []


def test_a_call_is_repeated_until_the_block_ends():
    calls: list[str] = []
    twice = threading.Event()

    def call() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            twice.set()

    with repeated(call, 0.01, "again"):
        assert twice.wait(60)
    assert set(calls) == {"again"}
    assert "again" not in {thread.name for thread in threading.enumerate()}
    with repeated(call, 60, "once"):
        pass  # does not wait for the first call
    assert "once" not in calls
