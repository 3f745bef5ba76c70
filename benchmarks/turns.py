"""Programs that take turns on the same cores, and the times of their turns.

What else a machine does then weighs on all of them alike. Who has not the turn is suspended with
all its processes, so that nobody reads ahead in the time of another. `take` runs in each of the
programs, `compare` in the one that starts them.
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
    """Of the turns of one program, in seconds; ``cpu`` is summed over threads and children."""

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)


def take(turn: Callable[[], None], before: Callable[[], None] = lambda: None) -> None:
    """One turn now, which is not counted, and one for every line of standard input.

    ``before`` runs before each turn and outside its time.
    """
    _measure(before, turn)
    for _ in sys.stdin:
        _measure(before, turn)


def _measure(before: Callable[[], None], turn: Callable[[], None]) -> None:
    before()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    turn()
    print("turn", time.perf_counter() - wall, _cpu_seconds() - cpu, flush=True)


def _cpu_seconds() -> float:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def compare(commands: Mapping[str, Sequence[object]], rounds: int) -> dict[str, Times]:
    """Starts the programs one after the other, lets them take ``rounds`` turns each."""
    processes, times = {}, {name: Times() for name in commands}
    for name, command in commands.items():
        processes[name] = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        _answer(processes[name])  # compilation and the first reading of files are in it
        _each_of(processes[name], psutil.Process.suspend)
    for index in range(rounds):
        for name in commands if index % 2 == 0 else reversed(commands):
            _each_of(processes[name], psutil.Process.resume)
            processes[name].stdin.write("go\n")
            processes[name].stdin.flush()
            wall, cpu = _answer(processes[name])
            _each_of(processes[name], psutil.Process.suspend)
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
    for process in processes.values():
        _each_of(process, psutil.Process.resume)
        process.stdin.close()
        process.wait()
    return times


def _each_of(process: subprocess.Popen, call: Callable[[psutil.Process], None]) -> None:
    """Calls it for a program and all that it has started."""
    program = psutil.Process(process.pid)
    for each in (program, *program.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            call(each)


def _answer(process: subprocess.Popen) -> tuple[float, float]:
    for line in process.stdout:
        word, *numbers = line.split() or [""]
        if word == "turn":
            wall, cpu = map(float, numbers)
            return wall, cpu
    sys.exit(f"error: {' '.join(process.args)} ended")


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median over rounds of how many times longer they took."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
