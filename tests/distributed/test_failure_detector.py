"""If one process of a job is lost, all stop and name it: real processes, really killed."""

import os
import socket
import subprocess
import sys
import time

import pytest
from helpers.runs import ROOT, finish, freeze, job_environment

from unimed_jax.distributed.failure_detector import RESTART_STATUS


@pytest.fixture
def three_processes():
    """Three connected processes of a job."""
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "tests" / "helpers" / "failing_process.py"],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in job_environment(3)
    ]
    for process in processes:
        while (line := process.stdout.readline()) != "ready\n":
            assert line, "ended before it was ready"
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def order(process: subprocess.Popen, text: str) -> None:
    process.stdin.write(text + "\n")
    process.stdin.flush()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_the_other_processes_name_the_killed_one_and_ask_for_a_restart(three_processes, victim):
    killed = time.monotonic()
    three_processes[victim].kill()
    host = socket.gethostname()
    for process in three_processes:
        if process is not three_processes[victim]:
            output = finish(process, RESTART_STATUS)
            last = output.splitlines()[-1]
            assert last.startswith(f"error: process {victim} of 3 (host {host}) is lost: ")
            assert "Fatal Python error" not in output
    assert time.monotonic() - killed < 60


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_is_the_reason_and_the_status_of_all(three_processes, failing):
    order(three_processes[failing], "give up")
    for index, process in enumerate(three_processes):
        output = finish(process, 2)
        if index != failing:
            said = f"error: process {failing} of 3 (host {socket.gethostname()}) stopped: a reason"
            assert output.splitlines()[-1] == said


@pytest.mark.slow
def test_a_process_that_has_done_its_part_alarms_nobody(three_processes):
    for process in (three_processes[2], three_processes[0], three_processes[1]):
        order(process, "leave")
        time.sleep(0.5)
    for process in three_processes:
        assert "error" not in finish(process)


@pytest.mark.slow
def test_where_one_hangs_all_stop_and_the_one_behind_is_named(three_processes):
    for process, step in zip(three_processes, (7, 5, 7), strict=True):
        order(process, f"step {step}")
        assert process.stdout.readline() == "ready\n"
    time.sleep(2)  # two beats
    order(three_processes[2], "hang")
    said = (
        f"error: process 1 of 3 (host {socket.gethostname()}) is at step 5, others at 7; a reason"
    )
    for process in three_processes:
        assert finish(process, RESTART_STATUS).splitlines()[-1].startswith(said)


@pytest.mark.slow
def test_where_process_0_is_frozen_the_others_name_it(three_processes):
    freeze(three_processes[0])
    for process in three_processes[1:]:
        order(process, "hang")
    said = f"error: process 0 of 3 (host {socket.gethostname()}) has not responded for "
    for process in three_processes[1:]:
        *_, stacks, last = finish(process, RESTART_STATUS).splitlines()
        assert last.startswith(said)
        assert stacks == "stacks"
