"""What the time of a training process goes to: one phase at any moment."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

Phase = Literal[
    "start_up", "compilation", "steps", "data_wait", "evaluation", "checkpoints", "logging"
]
PHASES: tuple[Phase, ...] = (
    "start_up",
    "compilation",
    "steps",
    "data_wait",
    "evaluation",
    "checkpoints",
    "logging",
)


class PhaseClock:
    """The seconds that this process spent in each phase, and the steps that it has finished.

        clock = PhaseClock("start_up", elapsed=time.time() - began)
        ...
        clock.begin("steps")
        for step in range(start, num_steps):
            with clock.during("data_wait"):
                batch = next(batches)
            state, metrics = train_step(state, batch, key)
            clock.step_done(step + 1)

    The phases are those of the thread of the loop, which makes the clock; other threads may read.
    """

    def __init__(
        self, phase: Phase, elapsed: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begins ``phase``, or rather ``elapsed`` seconds ago."""
        self._clock = clock
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._phase: Phase = phase
        self._since = clock() - elapsed
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._step: int | None = None
        self._first_step: int | None = None

    def begin(self, phase: Phase) -> Phase:
        """Ends the current phase, which is returned, and begins another."""
        with self._lock:
            self._count()
            ended, self._phase = self._phase, phase
            return ended

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """A phase that is followed by the one that it interrupts."""
        interrupted = self.begin(phase)
        try:
            yield
        finally:
            self.begin(interrupted)

    def attribute(self, phase: Phase, seconds: float) -> None:
        """Counts the last ``seconds`` as another phase than the current one.

        For a library that reports its time when it is done, such as the compiler. That of other
        threads than the loop's is ignored.
        """
        if threading.get_ident() != self._thread:
            return
        with self._lock:
            self._count()
            self._seconds[self._phase] -= seconds
            self._seconds[phase] += seconds

    def start_at(self, step: int) -> None:
        """The process goes on after ``step`` finished steps."""
        with self._lock:
            self._first_step = self._step = step

    def step_done(self, step: int) -> None:
        """The number of finished steps, those before the start of this process included."""
        with self._lock:
            self._step = step

    def read(self) -> tuple[dict[Phase, float], int | None, int | None]:
        """Seconds by phase, the current one included; finished steps at the start, and now."""
        with self._lock:
            self._count()
            return dict(self._seconds), self._first_step, self._step

    def _count(self) -> None:
        now = self._clock()
        self._seconds[self._phase] += now - self._since
        self._since = now


class Window:
    """What the time since the last ``take`` went to."""

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock
        self._seconds, _, self._step = clock.read()

    def take(self) -> tuple[dict[Phase, float], int]:
        """Seconds by phase, and steps finished, since the last call or the construction."""
        before, step_before = self._seconds, self._step
        self._seconds, _, self._step = self._clock.read()
        spent = {phase: self._seconds[phase] - before[phase] for phase in PHASES}
        return spent, (self._step or 0) - (step_before or 0)
