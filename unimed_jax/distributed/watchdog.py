"""Notices a run that hangs: no step for much longer than steps take.

The time is learned: a step may take ``factor`` times as long as the slowest of the last steps, and
at least ``min_seconds``. Compilation, evaluation and saves have a limit of their own,
``busy_seconds``. A process that finds no step within the limit writes the stacks of all its threads
to the work directory, and so do the others, and all exit with the status for a restart. Time in
which this process is frozen itself (Ctrl-Z, a suspended laptop) does not count.
"""

import collections
import contextlib
import faulthandler
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import jax
from ml_collections import ConfigDict

from input_pipeline.io import files
from input_pipeline.io.files import AnyPath
from unimed_jax.distributed.failure_detector import RESTART_STATUS, FailureDetector, exit_now

FOLDER = "stacks"

_TICK_SECONDS = 0.5
_LEARNED_FROM = 200  # steps
_FIRST_STEPS = 3  # which fill caches: the limit is that of compilation
_WRITE_SECONDS = 10  # for the stacks; a file system may hang as well


class Watchdog:
    """Watches the training loop of this process, from ``start`` to ``close``."""

    def __init__(
        self,
        workdir: AnyPath,
        settings: ConfigDict,
        detector: FailureDetector | None = None,
        end: Callable[[str], object] | None = None,
    ) -> None:
        """Does not watch yet.

        Args:
          workdir: receives stacks/step-STEP-process-INDEX.txt.
          settings: ``config.watchdog``; with ``min_seconds`` of 0, nothing is watched.
          detector: connection to the other processes of the job; None: there are none.
          end: is called with the reason, and ends the process; None: all processes of the job.
        """
        self._workdir, self._settings = workdir, settings
        self._detector = detector
        self._end = end or (detector.report_hang if detector else _end_alone)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._step = 0
        self._doing = "compilation"
        self._ticks = 0
        self._durations: collections.deque[float] = collections.deque(maxlen=_LEARNED_FROM)
        self._steps_seen = 0
        self._began = time.monotonic()

    def start(self) -> None:
        """Watches in a thread, as busy with compilation at first."""
        if self._settings.min_seconds > 0:
            if self._detector:
                self._detector.write_stacks = self.write_stacks
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def step_done(self, step: int) -> None:
        """To be called after every step of the loop."""
        with self._lock:
            self._step, self._doing, self._ticks = step, "", 0
            now = time.monotonic()
            self._steps_seen += 1
            if self._steps_seen > _FIRST_STEPS:
                self._durations.append(now - self._began)
            self._began = now
        if self._detector:
            self._detector.step = step

    def begin(self, doing: str) -> None:
        """Begins what is no step and has its own limit, such as "evaluation"; "": the loop."""
        with self._lock:
            self._doing, self._ticks, self._began = doing, 0, time.monotonic()

    @contextlib.contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """A part of the loop that is no step; see ``begin``."""
        self.begin(doing)
        yield
        self.begin("")

    def limit(self) -> float:
        """Seconds without a step after which the run is taken for hung."""
        if self._doing or not self._durations:
            return self._settings.busy_seconds
        return max(self._settings.min_seconds, self._settings.factor * max(self._durations))

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()
        if self._detector:
            self._detector.step = None

    def write_stacks(self) -> None:
        """Writes the stacks of all threads of this process; returns after 10 seconds at the latest.

        In a bucket the file is uploaded, which a missing network can prevent.
        """
        name = f"step-{self._step}-process-{jax.process_index()}.txt"
        thread = threading.Thread(target=_write_stacks, args=(self._workdir / FOLDER / name,))
        thread.daemon = True
        thread.start()
        thread.join(_WRITE_SECONDS)

    def _watch(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            with self._lock:
                self._ticks += 1
                seconds, limit = self._ticks * _TICK_SECONDS, self.limit()
                doing = f"{self._doing} after step" if self._doing else "no step after"
            if seconds > limit:
                self.write_stacks()
                self._end(
                    f"{doing} {self._step} for {seconds:.0f} s (the limit is {limit:.0f} s, see "
                    f"config.watchdog); stacks of all threads: {self._workdir / FOLDER}"
                )
                return


def _write_stacks(path: AnyPath) -> None:
    # errors of disks and buckets do not matter: the process ends anyway
    with contextlib.suppress(Exception), tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        files.write_bytes_atomically(path, file.read())


def _end_alone(reason: str) -> None:
    print(f"error: {reason}; start the run again", file=sys.stderr)
    exit_now(RESTART_STATUS)
