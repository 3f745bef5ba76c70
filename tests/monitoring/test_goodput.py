"""Where the time of a run goes, over all its processes."""

import itertools
import json
import time

import pytest
from helpers.fake_clock import FakeClock

from unimed_jax.monitoring import goodput
from unimed_jax.monitoring.phases import USES, PhaseClock


def row(began, at, first_step, step, **seconds):
    seconds = {**dict.fromkeys(USES, 0.0), **seconds}
    return {
        "began": began, "time": at, "first_step": first_step, "step": step, "seconds": seconds,
    }  # fmt: skip


# One process to step 20, with a row after steps 10 and 20; killed 2 s later. One that is killed
# before it has restored anything. One that goes on after step 15 to the end.
KILLED = [
    row(1000, 1004, None, None, start_up=4),
    row(1000, 1010, 0, 0, start_up=5, compilation=5),
    row(1000, 1032, 0, 10, start_up=5, compilation=5, steps=20, data_wait_reading=2),
    row(1000, 1055, 0, 20, start_up=5, compilation=5, steps=40, data_wait_reading=3, checkpoints=2),
    row(1100, 1104, None, None, start_up=4),
    row(1200, 1206, 15, 15, start_up=6),
    row(1200, 1240, 15, 30, start_up=6, compilation=1, steps=30, data_wait_placing=2, evaluation=1),
]


def test_the_time_of_a_killed_run_by_hand():
    found = goodput.account(KILLED)
    assert found.seconds == pytest.approx({
        "steps": 60.0,  # 15 steps of 2 s, twice
        "lost_steps": 10.0,  # steps 16 to 20 of the first process
        "start_up": 15.0, "compilation": 6.0, "evaluation": 1.0, "checkpoints": 2.0,
        "logging": 0.0, "data_wait_reading": 3.0, "data_wait_decoding": 0.0,
        "data_wait_placing": 2.0,
    })  # fmt: skip
    assert (found.starts, found.repeated) == (3, 5)
    assert found.running == pytest.approx(55 + 4 + 40)
    assert found.not_running == pytest.approx(240 - 99)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.line() == (
        "goodput 60.6 % of 1 min 39 s; 3 starts, not running for 2 min 21 s; in %: start-up 15.2, "
        "compilation 6.1, evaluation 1.0, checkpoints 2.0, waiting for data (reading) 3.0, waiting "
        "for data (placing) 2.0, lost steps (5) 10.1"
    )
    assert found.as_json()["goodput"] == pytest.approx(60 / 99)
    assert found.as_json()["repeated_steps"] == 5


def test_steps_are_lost_once_however_far_a_later_process_goes_back():
    rows = [
        row(0, 10, 0, 10, steps=10),
        row(20, 24, 8, 12, steps=4),  # 9, 10 are lost
        row(30, 42, 4, 16, steps=12),  # 5 to 8 of the first, 9 to 12 of the second
        row(50, 52, 16, 16, start_up=2),  # finished already
    ]
    found = goodput.account(rows)
    assert (found.repeated, found.seconds["lost_steps"]) == (2 + 4 + 4, pytest.approx(10.0))
    assert found.seconds["steps"] == pytest.approx(16.0)


def test_a_step_that_was_begun_is_lost_with_its_process():
    rows = [
        row(0, 5, 3, 3, steps=5),  # in the middle of step 4
        row(10, 11, 3, 4, steps=1),
        row(20, 21, 4, 5, steps=1),
    ]
    found = goodput.account(rows)
    assert (found.repeated, found.seconds["lost_steps"]) == (0, 5.0)
    assert found.seconds["steps"] == pytest.approx(2.0)


def test_wherever_a_run_is_killed_no_second_is_counted_twice_or_lost():
    """All prefixes of one process, followed by all places from which the next may go on."""
    one = KILLED[:4]
    for length, resumed in itertools.product(range(1, 5), range(21)):
        rows = [*one[:length], row(1100, 1107, resumed, resumed + 2, steps=3, start_up=4)]
        found = goodput.account(rows)
        assert found.running == pytest.approx(sum(one[length - 1]["seconds"].values()) + 7)
        assert min(found.seconds.values()) >= 0
        done = one[length - 1]["step"] or 0
        assert found.repeated == max(done - resumed, 0)
        assert found.seconds["steps"] == pytest.approx(3 + 2 * min(done, resumed))


def test_a_clock_that_was_set_back_leaves_no_negative_time():
    rows = [row(1000, 1010, 0, 1, steps=10), row(900, 905, 1, 2, steps=5)]
    assert goodput.account(rows).not_running == 0.0


def test_durations_are_readable():
    assert [goodput.duration(s) for s in (0.4, 59.6, 3599, 3600, 90000)] == [
        "0 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 0 min",
    ]  # fmt: skip


def test_a_timeline_outlives_its_process_and_goes_on(tmp_path):
    """The first is never closed, as if it were killed; its last line is torn."""
    clock, wall = FakeClock(), FakeClock(5000.0)
    phases = PhaseClock("start_up", elapsed=1.0, clock=clock)
    killed = goodput.Timeline(tmp_path, phases, 4999.0, wall)
    phases.start_at(0)
    phases.begin("steps")
    clock.now, wall.now = clock.now + 6.0, wall.now + 6.0
    phases.step_done(3)
    path = tmp_path / goodput.FILE
    killed.write()
    wait_for(lambda: '"step": 3' in path.read_text())
    with path.open("a") as file:
        file.write('{"began": 4999.0, "time": 50')

    clock, wall = FakeClock(), FakeClock(5010.0)
    phases = PhaseClock("start_up", elapsed=2.0, clock=clock)
    timeline = goodput.Timeline(tmp_path, phases, 5008.0, wall)
    phases.start_at(1)
    phases.begin("steps")
    clock.now, wall.now = clock.now + 4.0, wall.now + 4.0
    phases.step_done(3)
    found = timeline.goodput()
    timeline.close()
    assert found.seconds["lost_steps"] == pytest.approx(4.0)
    assert found.seconds["steps"] == pytest.approx(2.0 + 4.0)
    assert found.seconds["start_up"] == pytest.approx(3.0)
    assert (found.starts, found.repeated, found.not_running) == (2, 2, 2.0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]  # the torn one is gone
    assert goodput.account(rows) == found
    assert not timeline._thread.is_alive()


def test_a_record_that_cannot_be_written_does_not_stop_a_run(tmp_path):
    timeline = goodput.Timeline(tmp_path, PhaseClock("start_up"), time.time())
    path = tmp_path / goodput.FILE
    wait_for(lambda: path.read_text())
    path.unlink()
    path.mkdir()
    assert timeline.goodput().starts == 1
    path.rmdir()
    timeline.close()
    assert len(goodput.read_rows(path)) == 1


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
