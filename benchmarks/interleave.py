"""Interleaved timing of several programs on the same cores.

The programs run their rounds alternately, so that other load on the machine affects all of them
alike. Between its rounds, a program is suspended with all its processes, so that it cannot work
ahead. ``serve_rounds`` runs in each program, ``compare`` in the process that starts them.
"""

import contextlib
import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import psutil


@dataclasses.dataclass
class Times:
    """Times of the rounds of one program, in seconds; ``cpu`` sums over threads and children."""

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)


def serve_rounds(run_round: Callable[[], None], before: Callable[[], None] = lambda: None) -> None:
    """Runs a warm-up round, which is not counted, and a round per line of standard input.

    ``before`` runs before each round and is not timed.
    """
    _measure(before, run_round)
    for _ in sys.stdin:
        _measure(before, run_round)


def _measure(before: Callable[[], None], run_round: Callable[[], None]) -> None:
    before()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    run_round()
    print("round", time.perf_counter() - wall, _cpu_seconds() - cpu, flush=True)


def _cpu_seconds() -> float:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def compare(commands: Mapping[str, Sequence[object]], rounds: int) -> dict[str, Times]:
    """Starts the programs and times ``rounds`` rounds of each, interleaved."""
    processes, times = {}, {name: Times() for name in commands}
    for name, command in commands.items():
        processes[name] = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        _read_times(processes[name])  # warm-up: compilation, and files read for the first time
        _for_tree(processes[name], psutil.Process.suspend)
    for index in range(rounds):
        for name in commands if index % 2 == 0 else reversed(commands):
            _for_tree(processes[name], psutil.Process.resume)
            processes[name].stdin.write("go\n")
            processes[name].stdin.flush()
            wall, cpu = _read_times(processes[name])
            _for_tree(processes[name], psutil.Process.suspend)
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
    for process in processes.values():
        _for_tree(process, psutil.Process.resume)
        process.stdin.close()
        process.wait()
    return times


def _for_tree(process: subprocess.Popen, call: Callable[[psutil.Process], None]) -> None:
    """Calls a function for a program and all processes that it has started."""
    program = psutil.Process(process.pid)
    for each in (program, *program.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            call(each)


def _read_times(process: subprocess.Popen) -> tuple[float, float]:
    for line in process.stdout:
        word, *numbers = line.split() or [""]
        if word == "round":
            wall, cpu = map(float, numbers)
            return wall, cpu
    sys.exit(f"error: {' '.join(process.args)} ended")


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over rounds of theirs / ours."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
