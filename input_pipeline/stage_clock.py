"""What the batches that are made ahead of the training loop wait for."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

Stage = Literal["reading", "decoding", "placing"]
STAGES: tuple[Stage, ...] = ("reading", "decoding", "placing")


class StageClock:
    """The seconds that the thread that makes batches spent in each stage.

    While it is ``making`` a batch, every moment belongs to one stage: placing, if the thread is
    itself placing the batch on the devices; else reading, if some thread waits for records; else
    decoding, which includes batching and tokenizing. While the thread waits until a batch is taken
    from it, no stage counts, however far records are read ahead.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._threads = {"making": 0, "reading": 0, "placing": 0}

    def making(self) -> contextlib.AbstractContextManager[None]:
        """A batch is being made by this thread."""
        return self._inside("making")

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """This thread, which may be another one, waits for records from a disk or bucket."""
        return self._inside("reading")

    def placing(self) -> contextlib.AbstractContextManager[None]:
        """The thread that makes batches places one on the devices."""
        return self._inside("placing")

    def seconds(self) -> dict[Stage, float]:
        """Seconds by stage until now."""
        with self._lock:
            self._count()
            return dict(self._seconds)

    @contextlib.contextmanager
    def _inside(self, what: str) -> Iterator[None]:
        self._change(what, 1)
        try:
            yield
        finally:
            self._change(what, -1)

    def _change(self, what: str, threads: int) -> None:
        with self._lock:
            self._count()
            self._threads[what] += threads

    def _stage(self) -> Stage:
        if self._threads["placing"]:
            return "placing"
        return "reading" if self._threads["reading"] else "decoding"

    def _count(self) -> None:
        now = self._clock()
        if self._threads["making"]:
            self._seconds[self._stage()] += now - self._since
        self._since = now
