"""The process: start-up, messages, signals, and errors as one line."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from tqdm import tqdm

from input_pipeline.errors import UserError
from unimed_jax import config as config_lib


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
    """Joins the job's other processes if there are any; TensorFlow never takes an accelerator.

    On TPU pods and under Slurm JAX finds the job by itself; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID name it.
    """
    os.environ.update(compiler_environment())
    if "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


def say(text: str) -> None:
    """Prints a line for people, above the progress bar; on the first host only."""
    if jax.process_index() == 0:
        tqdm.write(text)


class StopSignal:
    """Remembers SIGTERM and SIGINT, so that the loop can save and leave between two steps.

    In a job of several processes JAX's preemption service watches SIGTERM, and all stop at the same
    step.
    """

    def __init__(self) -> None:
        self.name = "the preemption notice"
        self._received = False
        watched = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._previous = {number: signal.signal(number, self._remember) for number in watched}

    def _remember(self, number: int, frame: Any) -> None:
        del frame
        self.name, self._received = signal.Signals(number).name, True

    def received(self, step: int) -> bool:
        """Whether to stop before ``step``; every process answers the same at the same step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def restore(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a command; an error of the user's ends it with one line and status 2."""

    def guarded(argv: list[str]) -> None:
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax warns of what is meant to be
        try:
            main(argv)
        except UserError as error:
            _exit(str(error))

    app.run(guarded, flags_parser=_parse_flags)


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
    """As absl's own parser, but what it raises about a recipe or a key becomes one line."""
    try:
        return app.parse_flags_with_usage(argv) if _wants_help(argv) else flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError) as error:  # of an override that does not fit
        recipe = next((a for a in argv if a.startswith("--config=")), "").partition("=")[2]
        keys = [a[len("--config.") :] for a in argv if a.startswith("--config.")]
        _exit(config_lib.explain_override(recipe, keys) or str(error))
    except flags.Error as error:
        # ml_collections puts a recipe's traceback into its message; its last line is the cause
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        _exit(lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}")


def _wants_help(argv: list[str]) -> bool:
    return any(argument.lstrip("-").startswith("help") for argument in argv[1:])
