"""A run that hangs is noticed, one that is merely slow is not: real processes, really stopped."""

import socket
import threading
import time

import pytest
from helpers.runs import finish, freeze, job_environment, start, wait_for_row, write_recipe
from ml_collections import ConfigDict

from unimed_jax.distributed.failure_detector import RESTART_STATUS
from unimed_jax.distributed.watchdog import FOLDER, Watchdog

CHANGES = {
    "num_train_steps": 2000,
    "checkpoint__every_steps": 2000,
    "evals": {},
    "model__visual__layers": 1,
    "model__text__layers": 1,
    "watchdog__min_seconds": 10.0,  # more than four beats, on a busy machine, too
    "watchdog__factor": 3.0,
}


@pytest.fixture
def watched(tmp_path):
    """Makes a watchdog with these settings, and a list of the reasons for which it would end."""
    made = []

    def make(**settings: float) -> tuple[Watchdog, list[str]]:
        values = {"factor": 4.0, "min_seconds": 0.6, "busy_seconds": 60.0, **settings}
        reasons: list[str] = []
        made.append(Watchdog(tmp_path, ConfigDict(values), end=reasons.append))
        made[-1].start()
        return made[-1], reasons

    yield make
    for watchdog in made:
        watchdog.close()


def steps(watchdog: Watchdog, numbers: range, seconds: float) -> None:
    for number in numbers:
        time.sleep(seconds)
        watchdog.step_done(number)


def wait_for_a_long_time_here(seconds: float) -> None:
    time.sleep(seconds)


def test_a_stopped_loop_is_noticed_with_the_stacks_of_all_threads(watched, tmp_path):
    watchdog, reasons = watched()
    thread = threading.Thread(target=wait_for_a_long_time_here, args=(2.5,))
    thread.start()
    steps(watchdog, range(1, 6), 0.01)
    time.sleep(1.6)
    (reason,) = reasons
    assert reason.startswith("no step after 5 for ")
    assert "(the limit is 1 s, see config.watchdog)" in reason
    assert reason.endswith(str(tmp_path / FOLDER))
    stacks = (tmp_path / FOLDER / "step-5-process-0.txt").read_text()
    assert "wait_for_a_long_time_here" in stacks and __file__ in stacks
    thread.join()


def test_a_slow_loop_is_not_stopped(watched):
    watchdog, reasons = watched()
    steps(watchdog, range(1, 6), 0.4)
    assert watchdog.limit() >= 1.6
    time.sleep(1.2)  # longer than the least limit, but steps are slow
    assert not reasons


def test_compilation_evaluation_and_saves_have_a_limit_of_their_own(watched):
    watchdog, reasons = watched()
    time.sleep(1.2)  # compilation
    steps(watchdog, range(1, 6), 0.01)
    with watchdog.busy("evaluation"):
        time.sleep(1.2)
    steps(watchdog, range(6, 8), 0.01)
    assert not reasons and watchdog.limit() == 0.6
    strict, reasons = watched(busy_seconds=0.5)
    with strict.busy("evaluation"):
        time.sleep(1.2)
    assert reasons[0].startswith("evaluation after step 0 for ")


def test_it_can_be_switched_off(watched):
    watchdog, reasons = watched(min_seconds=0.0)
    steps(watchdog, range(1, 6), 0.01)
    time.sleep(1.2)
    assert not reasons


@pytest.mark.slow
def test_a_stopped_data_thread_ends_a_run_and_a_slow_one_does_not(phantom_corpus, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.py", phantom_corpus, **{**CHANGES, "watchdog__min_seconds": 2.0}
    )
    program = tmp_path / "program.py"
    program.write_text(
        "import time\n"
        "from unimed_jax import train\n"
        "from unimed_jax.training.data_loader import DataLoader\n"
        "read = DataLoader.read\n"
        "def slow_then_stuck(self, *arguments):\n"
        "    for step, item in enumerate(read(self, *arguments)):\n"
        "        # 3 seconds are more than the least limit, but not three times 1.5\n"
        "        time.sleep({5: 1.5, 6: 3, 8: 3600}.get(step, 0))\n"
        "        yield item\n"
        "DataLoader.read = slow_then_stuck\n"
        "train.main()\n"
    )
    output = finish(start(recipe, tmp_path / "run", program=[str(program)]), RESTART_STATUS)
    last = output.splitlines()[-1]
    assert last.startswith("error: no step after 8 for "), output
    assert last.endswith("start the run again")
    stacks = (tmp_path / "run" / FOLDER / "step-8-process-0.txt").read_text()
    assert "in slow_then_stuck" in stacks  # the thread that is stuck
    assert "in train\n" in stacks  # the one that waits for it


@pytest.mark.slow
def test_if_one_of_two_processes_is_frozen_the_other_names_it(phantom_corpus, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.py", phantom_corpus, **CHANGES)
    workdir = tmp_path / "run"
    processes = [start(recipe, workdir, **environment) for environment in job_environment(2)]
    try:
        wait_for_row(processes[0], workdir, 10)
        freeze(processes[1])
        began = time.monotonic()
        output = finish(processes[0], RESTART_STATUS)
        assert time.monotonic() - began < 60
    finally:
        processes[1].kill()
        processes[1].communicate()
    last = output.splitlines()[-1]
    said = f"error: process 1 of 2 (host {socket.gethostname()}) has not responded for "
    assert last.startswith(said), output
    assert "config.watchdog" in last
    assert last.endswith("start all processes again")
    (stacks,) = (workdir / FOLDER).iterdir()
    assert stacks.name.endswith("-process-0.txt")
    assert "in train\n" in stacks.read_text()
