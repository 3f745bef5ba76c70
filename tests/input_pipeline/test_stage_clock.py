"""What the making of a batch waits for, by hand and with real threads."""

import threading
import time

import pytest
from helpers.fake_clock import FakeClock

from input_pipeline import device_prefetch
from input_pipeline.stage_clock import StageClock


def test_every_moment_of_making_belongs_to_one_stage():
    clock = FakeClock()
    stages = StageClock(clock)
    clock.now += 1.0  # nothing is being made
    with stages.making():
        clock.now += 2.0
        with stages.reading():
            clock.now += 4.0
            with stages.reading():  # for another source
                clock.now += 8.0
            clock.now += 16.0
            with stages.placing():  # while the next batch is read
                clock.now += 32.0
        clock.now += 64.0
        assert stages.seconds() == {"reading": 28.0, "decoding": 66.0, "placing": 32.0}
    with stages.reading():  # ahead, while the loop has batches enough
        clock.now += 128.0
    assert stages.seconds() == {"reading": 28.0, "decoding": 66.0, "placing": 32.0}


def test_a_stage_ends_when_it_fails():
    clock = FakeClock()
    stages = StageClock(clock)
    with pytest.raises(OSError, match="gone"), stages.making(), stages.reading():
        clock.now += 1.0
        raise OSError("gone")
    clock.now += 5.0
    assert stages.seconds() == {"reading": 1.0, "decoding": 0.0, "placing": 0.0}


def test_a_prefetching_thread_counts_its_work_and_not_its_rest():
    """Reading is in a third thread, as in tf.data."""
    stages = StageClock()

    def read(done):
        with stages.reading():
            time.sleep(0.2)
        done.set()

    def items():
        for _ in range(3):
            done = threading.Event()
            threading.Thread(target=read, args=(done,)).start()
            done.wait()
            time.sleep(0.1)
            with stages.placing():
                time.sleep(0.05)
            yield None

    stream = device_prefetch.prefetch(items(), depth=1, stages=stages)
    began = time.monotonic()
    next(stream)
    # the thread makes a second and a third item, and rests
    before, found = {}, stages.seconds()
    while before != found:
        time.sleep(0.5)
        before, found = found, stages.seconds()
    assert found["reading"] > 0.55
    assert found["decoding"] > 0.28
    assert found["placing"] > 0.14
    assert sum(found.values()) < time.monotonic() - began - 0.4
    assert [*stream] == [None, None]
