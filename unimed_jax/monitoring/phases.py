"""What the time of a training process goes to: one phase at any moment."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

from input_pipeline.stage_clock import STAGES, StageClock

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
WAITS = tuple(f"data_wait_{stage}" for stage in STAGES)
# what time goes to: the phases, with the wait for data divided
USES: tuple[str, ...] = tuple(phase for phase in PHASES if phase != "data_wait") + WAITS


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

    Attributes:
      stages: the time of the thread that makes the batches.
    """

    def __init__(
        self, phase: Phase, elapsed: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begins ``phase``, or rather ``elapsed`` seconds ago."""
        self.stages = StageClock(clock)
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
    """What the time since the last ``take`` went to, or since the clock was started.

    The wait for data is divided in proportion to what the making of batches was busy with in the
    window. What it was busy with *during* the wait would not do: a wait ends with the placing of a
    batch, even if placing is the shortest stage.

    Attributes:
      first_step: finished steps at the start of the process; None: not known yet.
      step: finished steps at the last ``take``.
    """

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._stages = dict.fromkeys(STAGES, 0.0)
        self.first_step: int | None = None
        self.step: int | None = None

    def take(self) -> tuple[dict[str, float], int]:
        """Seconds by use (``USES``), and steps finished, since the last call."""
        phases_before, stages_before, step_before = self._phases, self._stages, self.step or 0
        self._phases, self.first_step, self.step = self._clock.read()
        self._stages = self._clock.stages.seconds()
        spent: dict[str, float] = {p: self._phases[p] - phases_before[p] for p in PHASES}
        wait = spent.pop("data_wait")
        busy = {stage: self._stages[stage] - stages_before[stage] for stage in STAGES}
        if not any(busy.values()):  # a window shorter than a batch takes to make
            busy = self._stages
        total = sum(busy.values())
        for stage, use in zip(STAGES, WAITS, strict=True):
            spent[use] = wait * (busy[stage] / total if total else 1 / len(STAGES))
        return spent, (self.step or 0) - step_before
