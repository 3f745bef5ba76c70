"""The running process: start-up, log lines, signals, and errors as one line."""

import collections
import contextlib
import os
import re
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.io import cli, locks, threads
from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath
from input_pipeline.io.library_errors import LibraryError, show, user_errors
from unimed_jax import config as config_lib
from unimed_jax.distributed import cpu_allocator, failure_detector, preemption_notice
from unimed_jax.distributed.failure_detector import FailureDetector, join_job
from unimed_jax.distributed.watchdog import Watchdog

_BARRIER_SECONDS = 60 * 60

_failure_detector: FailureDetector | None = None  # None: a job of one process
_times_waited: collections.Counter[str] = collections.Counter()

# cache of compiled programs, unless JAX_COMPILATION_CACHE_DIR names another folder
_COMPILED = Path("~/.cache/unimed_jax/compiled")


def compiler_environment() -> dict[str, str]:
    """Variables for libtpu, which reads them when JAX first looks for devices.

    Its compiler overflows its stack of 64 KiB on products fused into products, as in the last block
    of the text tower with rematerialisation (libtpu 0.0.42.1: a segmentation fault).
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    stack = "--fibers_default_thread_stack_size"
    if stack in given:
        return {}
    return {"LIBTPU_INIT_ARGS": f"{given} {stack}={2**20}".strip()}


def initialize() -> None:
    """Joins the job's other processes, if there are any, and configures JAX and TensorFlow.

    TensorFlow leaves the accelerators to JAX; on CPUs, malloc is tuned. Compiled programs are
    cached for the next run; JAX_ENABLE_COMPILATION_CACHE=false switches the cache off.
    """
    global _failure_detector
    os.environ.update(compiler_environment())
    cpu_allocator.tune_malloc()
    # JAX defines the attributes of its options at run time.
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(_COMPILED.expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    _failure_detector = join_job()
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


def wait_for_all(what: str, seconds: int = _BARRIER_SECONDS) -> None:
    """A barrier: returns when every process has called it equally often with the same name.

    Unlike a collective, it tolerates hosts of different speed: on CPUs, a collective fails whose
    processes arrive more than 30 seconds apart.
    """
    if jax.process_count() > 1:
        _times_waited[what] += 1  # a barrier's name can be used only once
        name = f"unimed_jax/{what}/{_times_waited[what]}"
        failure_detector.coordination_client().wait_at_barrier(name, 1000 * seconds)


def exclusive(folder: AnyPath) -> contextlib.AbstractContextManager[None]:
    """Locks a directory for the whole job: the main process does. Raises as `locks.exclusive`."""
    return locks.exclusive(folder) if jax.process_index() == 0 else contextlib.nullcontext()


def make_watchdog(workdir: AnyPath, settings: ConfigDict) -> Watchdog:
    """A watchdog over the training loop of this process, which ends the whole job."""
    return Watchdog(workdir, settings, _failure_detector)


def log(text: str) -> None:
    """Prints a line above the progress bar, on the main process only."""
    if jax.process_index() == 0:
        tqdm.write(text)


@contextlib.contextmanager
def announced(work: str, every: float = 20.0) -> Iterator[None]:
    """Logs the elapsed time of silent work, such as a compilation, every so many seconds."""
    began = time.monotonic()

    def report() -> None:
        log(f"{work}: {time.monotonic() - began:.0f} s")

    with threads.repeated(report, every, "announced"):
        yield


class StopSignal:
    """Records SIGTERM and SIGINT, so that the training loop can save and stop between two steps.

    In a job of several processes, JAX's preemption service watches SIGTERM, and all processes stop
    at the same step, whichever one received it. A cloud's maintenance notice becomes a SIGTERM.
    """

    def __init__(self) -> None:
        self._received = False
        if jax.process_count() == 1:
            handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._remember)
        else:
            self.name = "a signal to one of the processes"
            handlers = {signal.SIGINT: lambda *_: _terminate_self()}
        self._previous = {number: signal.signal(number, f) for number, f in handlers.items()}
        self._stop_watching = preemption_notice.watch(self._announce)

    def _remember(self, number: int, frame: Any) -> None:
        del frame
        self.name, self._received = signal.Signals(number).name, True

    def _announce(self, notice: str) -> None:
        print(f"this host will be taken away: {notice}", file=sys.stderr, flush=True)
        _terminate_self()

    def received(self, step: int) -> bool:
        """Whether to stop before ``step``; the same on every process at the same step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def restore(self) -> None:
        """Restores the previous signal handlers."""
        self._stop_watching()
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def required(flag: flags.FlagHolder[str | None]) -> str:
    """The value of a flag; `flags.mark_flags_as_required` checks it first, for the usual message.

    Raises:
      UsageError: the flag was not given.
    """
    if flag.value is None:
        raise app.UsageError(f"--{flag.name} is required")
    return flag.value


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits with its status.

    An error that the user can fix ends the command with one line and status 2, or 75 where it may
    be gone by itself. An error in one of several processes ends them all; see
    ``failure_detector``.

    Args:
      main: takes the program's name and the positional arguments; returns an exit status, or None
        for 0. The docstring of its module is the text of ``--help``.
      argv: the arguments without the program's name; None: those of this process.
    """

    def guarded(argv: list[str]) -> int | None:
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns about intended behaviour
        cli.quiet_libraries()
        try:
            with user_errors():
                status = main(argv)
        except UserError as error:
            if _failure_detector and isinstance(error, LibraryError):
                _failure_detector.await_failure_report()
            show(error)
            if _failure_detector:
                _failure_detector.abort(str(error), cli.status_of(error))
            sys.exit(cli.status_of(error))
        except Exception as error:
            if not _failure_detector:
                raise
            _failure_detector.await_failure_report()
            traceback.print_exc()
            _failure_detector.abort(repr(error), status=1)
        if _failure_detector:
            _failure_detector.deregister()
        return status

    def parse(argv: list[str]) -> list[str]:
        if any(argument.lstrip("-") in ("help", "helpfull", "h") for argument in argv[1:]):
            print(_help_text(sys.modules[main.__module__], argv[1:]))
            sys.exit(0)
        return _parse_flags(argv)

    arguments = None if argv is None else [sys.argv[0], *argv]
    app.run(guarded, argv=arguments, flags_parser=parse)


def _terminate_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
    """Like absl's parser, but an error in a recipe or a key becomes one line."""
    recipe = _recipe(argv)
    try:
        if recipe:
            config_lib.load(recipe)  # a clear error; ml_collections puts a traceback in its own
            argv = [
                f"--config={config_lib.recipe_file(recipe)}" if a == f"--config={recipe}" else a
                for a in argv
            ]
        return flags.FLAGS(argv)
    except UserError as error:
        _exit(str(error))
    except (AttributeError, KeyError, TypeError) as error:  # an override of the wrong type
        keys = [a[len("--config.") :] for a in argv if a.startswith("--config.")]
        _exit(config_lib.explain_override(recipe, keys) or str(error))
    except flags.Error as error:
        text = " ".join(str(error).split())
        missing = re.match(r"flag --(\w+)=None:", text)
        _exit(f"--{missing[1]} is required; --help explains it" if missing else text)


def _recipe(argv: Sequence[str]) -> str:
    """The value of --config=RECIPE; "" if there is none."""
    return next((a.partition("=")[2] for a in argv if a.startswith("--config=")), "")


def _help_text(module: types.ModuleType, arguments: list[str]) -> str:
    """The module's docstring, its flags, and the keys of the recipe if --config names one."""
    name = sys.argv[0] if module.__name__ == "__main__" else module.__name__
    lines = [(module.__doc__ or "").strip(), "", "flags:"]
    for flag in sorted(flags.FLAGS.get_key_flags_for_module(name), key=lambda flag: flag.name):
        default = "" if flag.default in (None, "", []) else f" (default: {flag.default_as_str})"
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    if recipe := _recipe(arguments):
        lines += ["", f"keys of {recipe}, each set with --config.KEY=VALUE:"]
        lines += [
            f"  {key}={value!r}" for key, value in config_lib.flatten(config_lib.load(recipe))
        ]
    return "\n".join(lines)
