"""Every second of a process belongs to one phase."""

import threading
import time

import pytest
from helpers.fake_clock import FakeClock

from unimed_jax.monitoring.phases import PHASES, USES, WAITS, PhaseClock, Window


def test_phases_by_hand():
    clock = FakeClock()
    phases = PhaseClock("start_up", elapsed=3.0, clock=clock)
    assert phases.read() == ({**dict.fromkeys(PHASES, 0.0), "start_up": 3.0}, None, None)
    clock.now += 1.0
    phases.start_at(40)
    assert phases.begin("compilation") == "start_up"
    clock.now += 10.0
    phases.begin("steps")
    for step in (41, 42):
        with phases.during("data_wait"):
            clock.now += 0.25
        clock.now += 2.0
        phases.step_done(step)
    with phases.during("evaluation"):
        clock.now += 30.0
        phases.attribute("compilation", 20.0)
    clock.now += 0.5
    seconds, first, step = phases.read()
    assert (first, step) == (40, 42)
    assert seconds == {
        "start_up": 4.0, "compilation": 30.0, "steps": 4.5, "data_wait": 0.5, "evaluation": 10.0,
        "checkpoints": 0.0, "logging": 0.0,
    }  # fmt: skip


def test_a_phase_ends_when_what_it_contains_fails():
    clock = FakeClock()
    phases = PhaseClock("steps", clock=clock)
    with pytest.raises(StopIteration), phases.during("data_wait"):
        clock.now += 2.0
        next(iter(()))
    clock.now += 1.0
    seconds, _, _ = phases.read()
    assert (seconds["data_wait"], seconds["steps"]) == (2.0, 1.0)


def test_what_another_thread_compiles_is_not_time_of_the_loop():
    clock = FakeClock()
    phases = PhaseClock("steps", clock=clock)
    clock.now += 5.0
    thread = threading.Thread(target=phases.attribute, args=("compilation", 4.0))
    thread.start()
    thread.join()
    assert phases.read()[0]["steps"] == 5.0


def test_windows_share_out_all_time():
    clock = FakeClock()
    phases = PhaseClock("start_up", elapsed=0.5, clock=clock)
    window = Window(phases)
    clock.now += 2.0
    phases.start_at(8)
    phases.begin("steps")
    clock.now += 4.0
    phases.step_done(9)
    seconds, _ = window.take()
    assert seconds == {**dict.fromkeys(USES, 0.0), "start_up": 2.5, "steps": 4.0}
    clock.now += 8.0
    phases.step_done(12)
    seconds, steps = window.take()
    assert (sum(seconds.values()), seconds["steps"], steps) == (8.0, 8.0, 3)
    assert (window.first_step, window.step) == (8, 12)
    assert sum(window.take()[0].values()) == 0.0


def waits(window):
    seconds, _ = window.take()
    return tuple(seconds[use] for use in WAITS)


def test_the_wait_for_data_is_divided_like_the_making_of_batches():
    """100 s a batch, of which 70 s reading and 10 s placing; the loop takes 80 s and waits 20 s."""
    clock = FakeClock()
    phases = PhaseClock("steps", clock=clock)
    window = Window(phases)
    for _ in range(10):
        with phases.stages.making():
            with phases.stages.reading():
                clock.now += 70.0
            clock.now += 10.0
            # now the loop waits, and sees no reading at all
            with phases.during("data_wait"):
                clock.now += 10.0
                with phases.stages.placing():
                    clock.now += 10.0
    assert waits(window) == pytest.approx((140.0, 40.0, 20.0))
    # a window in which no batch was made is divided as the run has been so far
    with phases.during("data_wait"):
        clock.now += 1.0
    assert waits(window) == pytest.approx((0.7, 0.2, 0.1))
    # a later window does not remember
    with phases.stages.making(), phases.during("data_wait"):
        clock.now += 6.0
    assert waits(window) == pytest.approx((0.0, 6.0, 0.0))


def test_the_real_clock_counts_seconds():
    phases = PhaseClock("steps")
    with phases.during("data_wait"):
        time.sleep(0.1)
    assert 0.09 < phases.read()[0]["data_wait"] < 5
