"""Timing of a run: the parts of its start-up, and a profiler trace of a few steps."""

import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

from input_pipeline.io.files import AnyPath, is_local, move_folder
from unimed_jax.distributed import process

_WARM_UP, _TRACED = 3, 4  # steps


def listen_to_compiler(listener: Callable[[float], object]) -> Callable[[], None]:
    """Has ``listener`` called with the seconds of every compilation, in the thread that compiles.

    Returns:
      What ends that.
    """

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            listener(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: jax.monitoring.unregister_event_duration_listener(listen)


class StartupTimer:
    """The time from the start of a command to the end of its first step, in named parts."""

    def __init__(self, began: float) -> None:
        """``began``: ``time.time()`` at the start of the command."""
        self._began = self._last = began
        self._parts: dict[str, float] = {}
        self._compiling = 0.0
        self._stop_listening = listen_to_compiler(self._add_compilation)

    def _add_compilation(self, seconds: float) -> None:
        self._compiling += seconds

    def mark(self, name: str) -> None:
        """Ends the part ``name``, which began at the previous call."""
        now = time.time()
        self._parts[name] = now - self._last
        self._last = now

    def line(self) -> str:
        """'start-up 9.8 s: imports 4.1, corpus 0.2, ...; 2.0 s of it in the compiler'."""
        self._stop_listening()
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._parts.items())
        return (
            f"start-up {self._last - self._began:.1f} s: {parts}; "
            f"{self._compiling:.1f} s of it in the compiler"
        )


class StepTrace:
    """Traces steps 4 to 7 of a run (counted from where it starts or resumes) into a folder.

    The folder opens in XProf (`xprof --logdir=FOLDER`), and the `perfetto_trace.json.gz` in it at
    ui.perfetto.dev.
    """

    def __init__(self, folder: AnyPath, start: int, active: bool) -> None:
        self._folder = folder
        self._first = start + _WARM_UP if active else None
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace if ``step``, counted from 0, is the first one to trace."""
        if step == self._first:
            folder = self._folder
            self._written = folder if is_local(folder) else pathlib.Path(tempfile.mkdtemp())
            jax.profiler.start_trace(self._written, create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Ends the trace after its last step; ``result`` is an output array of the step."""
        if self._running and self._first is not None and step == self._first + _TRACED - 1:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running when the run ends early."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if self._written != self._folder:
                move_folder(self._written, self._folder)
                shutil.rmtree(self._written)
            process.log(f"profile: {self._folder}")
