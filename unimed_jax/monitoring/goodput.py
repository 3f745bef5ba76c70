"""Goodput: the share of a run's time that went to steps which the final weights contain.

The definition is that of runtime goodput in Wongpanich et al. 2025 (arXiv 2502.06982): of the time
in which the run had its machines, the share of progress that checkpoints kept. Everything else is
named after what it went to, as in Google's ml-goodput-measurement.

``Timeline`` records the time of a run over all its interruptions, ``account`` adds it up.
"""

import contextlib
import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath, AppendOnlyFile
from unimed_jax.monitoring.phases import USES, WAITS, PhaseClock, Window

FILE = "timeline.jsonl"
LOST = "lost_steps"
CATEGORIES = ("steps", *(use for use in USES if use != "steps"), LOST)
_EVERY_SECONDS = 60.0

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Goodput:
    """What the time of a run went to, over all its processes, one after the other.

    Attributes:
      seconds: category -> seconds. ``steps`` is the time in steps that were kept, ``lost_steps`` in
        steps that a later process had to repeat. The sum is the time in which the run was running.
      not_running: seconds between the end of a process and the start of the next, from the last row
        that it could record.
      starts: number of processes.
      repeated: number of steps that were lost.
    """

    seconds: Mapping[str, float]
    not_running: float
    starts: int
    repeated: int

    @property
    def running(self) -> float:
        """Seconds in which the run was running."""
        return sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """Category -> share of the time in which the run was running; their sum is 1."""
        return {name: seconds / self.running for name, seconds in self.seconds.items()}

    def as_json(self) -> dict[str, Any]:
        """The content of goodput.json."""
        return {
            "goodput": self.shares["steps"],
            "running_seconds": round(self.running, 3),
            "not_running_seconds": round(self.not_running, 3),
            "starts": self.starts,
            "repeated_steps": self.repeated,
            "shares": self.shares,
        }

    def summary(self) -> str:
        """'goodput 81.3 % of 12 min 3 s; 3 starts, not running for 40 s between them'."""
        text = f"goodput {100 * self.shares['steps']:.1f} % of {duration(self.running)}"
        if self.starts > 1:
            text += f"; {self.starts} starts, not running for {duration(self.not_running)}"
        return text

    def line(self) -> str:
        """'goodput 81.3 % of 12 min 3 s; ...; in %: start-up 5.0, compilation 3.1, ...'."""
        others = ", ".join(
            f"{self.title(name)} {100 * share:.1f}"
            for name, share in self.shares.items()
            if name != "steps" and share >= 0.0005
        )
        return f"{self.summary()}; in %: {others}" if others else self.summary()

    def title(self, category: str) -> str:
        """A category in words."""
        if category == LOST:
            return f"lost steps ({self.repeated:,})"
        if category in WAITS:
            return f"waiting for data ({category.rpartition('_')[2]})"
        return category.replace("_", "-")


def duration(seconds: float) -> str:
    """'3 h 5 min', '12 min 3 s' or '40 s'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def account(rows: Sequence[Row]) -> Goodput:
    """Adds up the rows of a timeline.

    The steps that a process did after the step from which a later one goes on are lost. Of a row
    in which both kinds occur, the time is divided evenly among its steps.
    """
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    kept: list[tuple[int, int, float]] = []  # steps first < k <= last, and their seconds
    starts, repeated = 0, 0
    for _, process in itertools.groupby(rows, key=lambda row: row["began"]):
        starts += 1
        before: float = 0.0
        step: int | None = None  # not known before a checkpoint is restored
        for row in process:
            if row["step"] is not None:
                if step is None:
                    step = row["first_step"]
                    kept, cut, cut_seconds = _keep_until(kept, step)
                    repeated += cut
                    seconds[LOST] += cut_seconds
                kept.append((step, row["step"], row["seconds"]["steps"] - before))
                before, step = row["seconds"]["steps"], row["step"]
        for name in USES:
            seconds[name] += row["seconds"][name]
    seconds["steps"] -= seconds[LOST]
    elapsed = rows[-1]["time"] - rows[0]["began"]
    not_running = max(elapsed - sum(seconds.values()), 0.0)
    return Goodput(seconds, not_running, starts, repeated)


def _keep_until(
    kept: Sequence[tuple[int, int, float]], step: int
) -> tuple[list[tuple[int, int, float]], int, float]:
    """The parts of ``kept`` up to a step; the number of steps after it, and their seconds."""
    shorter, cut, cut_seconds = [], 0, 0.0
    for first, last, seconds in kept:
        lost = last - max(first, step) if last > step else 0
        # a row without a finished step holds the beginning of the next one
        share = float(first >= step) if first == last else lost / (last - first)
        cut, cut_seconds = cut + lost, cut_seconds + share * seconds
        if share < 1:
            shorter.append((first, min(last, step), (1 - share) * seconds))
    return shorter, cut, cut_seconds


class Timeline:
    """Appends what the time of a run goes to to ``WORKDIR/timeline.jsonl``, from a thread.

    In a job of several processes, process 0 creates one. A row holds the start of its process, its
    own time (both of the wall clock), the steps finished at the start and by now, and the seconds
    since the start by use. There is one every minute and one at each call of ``write``, so that
    after a kill little is missing. Rows of earlier processes are kept; they are also those of steps
    that are done again.
    """

    def __init__(
        self,
        workdir: AnyPath,
        clock: PhaseClock,
        began: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Starts the thread.

        Args:
          workdir: the run's directory.
          clock: the time of this process.
          began: ``time.time()`` when the command was given.
          now: the wall clock.

        Raises:
          UserError: workdir cannot be written.
        """
        self._began, self._now = began, now
        self._window = Window(clock)
        self._seconds: dict[str, float] = dict.fromkeys(USES, 0.0)
        self._rows = read_rows(workdir / FILE)
        self._file = AppendOnlyFile(workdir / FILE, "".join(map(_line, self._rows)).encode())
        self._lock = threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="timeline", daemon=True)
        self._thread.start()

    def write(self) -> None:
        """Has a row written soon."""
        self._wake.set()

    def goodput(self) -> Goodput:
        """The goodput of the run until now."""
        self._append()
        return account(self._rows)

    def close(self) -> None:
        """Writes a last row, and ends the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self._append()

    def _work(self) -> None:
        while not self._closed:
            self._append()
            self._wake.wait(_EVERY_SECONDS)
            self._wake.clear()

    def _append(self) -> None:
        # A record of time does not stop a run: a full disk or a missing network is reported by
        # whatever needs them, and the next row holds what is missing here.
        with self._lock, contextlib.suppress(OSError, UserError):
            spent, _ = self._window.take()
            for use in USES:
                self._seconds[use] += spent[use]
            row = {
                "began": round(self._began, 3),
                "time": round(self._now(), 3),
                "first_step": self._window.first_step,
                "step": self._window.step,
                "seconds": {use: round(seconds, 3) for use, seconds in self._seconds.items()},
            }
            self._rows.append(row)
            with self._file.local.open("a", encoding="utf-8") as file:
                file.write(_line(row))
            self._file.publish()


def read_rows(path: AnyPath) -> list[Row]:
    """The rows of a timeline; none if there is no file. Torn and foreign lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and row.keys() >= _KEYS]


_KEYS = {"began", "time", "first_step", "step", "seconds"}


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
