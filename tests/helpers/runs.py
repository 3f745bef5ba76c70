"""Starts real training processes and reads their output, for several test files."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from unimed_jax.monitoring import metrics
from unimed_jax.training.data_loader import DataLoader

ROOT = Path(__file__).parents[2]
# what the fixture ``finished_run`` was trained with
WHOLE_RUN = {"num_train_steps": 40, "checkpoint__every_steps": 5, "checkpoint__keep": 2}


def xla_flags(num_devices: int) -> str:
    """``XLA_FLAGS`` of this process, with ``num_devices`` simulated devices."""
    name = "--xla_force_host_platform_device_count"
    others = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(name)]
    return " ".join([*others, f"{name}={num_devices}"])


def losses_of(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in metrics.read_metrics(workdir / "metrics.jsonl")}


def write_recipe(path: Path, corpus: Path, **changes: object) -> Path:
    path.write_text(
        "from unimed_jax.testing import tiny_config\n\n\n"
        f"def get_config():\n    return tiny_config({str(corpus)!r}, {changes!r})\n"
    )
    return path


def start(
    recipe: Path,
    workdir: Path,
    *arguments: str,
    program: Sequence[str] = ("-m", "unimed_jax.train"),
    **environment: str,
) -> subprocess.Popen:
    """Starts a training process with one device, unless ``environment`` says otherwise."""
    return subprocess.Popen(
        [sys.executable, *program, f"--config={recipe}", f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        # on eight simulated devices a run takes twice the time, or three times if its step is new
        env={**os.environ, "XLA_FLAGS": xla_flags(1), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def full_compilation() -> Iterator[None]:
    """Compiles as users do; ``conftest.py`` turns most optimisations off."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def job_environment(count: int, devices_each: int = 1) -> list[dict[str, str]]:
    """The variables that make ``count`` processes on this machine one job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
            "XLA_FLAGS": xla_flags(devices_each),
        }
        for index in range(count)
    ]


def wait_for_row(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns as soon as metrics.jsonl holds a row of ``step`` or later."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if path.is_file() and any(s >= step for s in losses_of(workdir)):
            return
        time.sleep(0.01)
    raise AssertionError(f"no row of step {step} within 240 s")


def freeze(process: subprocess.Popen) -> None:
    """Stops a process; returns when all of its threads have stopped."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output = process.communicate(timeout=900)[0]
    assert process.returncode == status, output
    return output


# --- which records a process was given ------------------------------------------------------------


def recording(read, directory: Path):
    """``DataLoader.read``, which also writes down the ids of every batch: ``<process>.jsonl``."""

    def read_and_record(self: DataLoader, start: int, stop: int, stages=None):
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / f"{jax.process_index()}.jsonl").open("a", buffering=1) as file:
            for step, (ids, batch) in enumerate(read(self, start, stop, stages), start + 1):
                file.write(json.dumps([step, ids]) + "\n")
                yield ids, batch

    return read_and_record


def recorded(directory: Path) -> dict[int, list[str]]:
    """step -> ids of the global batch, hosts in order; checks that repeated reads are equal."""
    batches: dict[int, list[str]] = {}
    for file in sorted(directory.iterdir()):
        own: dict[int, list[str]] = {}
        for step, ids in map(json.loads, file.read_text().splitlines()):
            assert own.setdefault(step, ids) == ids
        for step, ids in own.items():
            batches[step] = batches.get(step, []) + ids
    return batches
