"""Starting real training processes and reading what they leave, for several test files."""

import os
import subprocess
import sys
import time
from pathlib import Path

from unimed_jax import metrics

ROOT = Path(__file__).parents[1]


def losses_of(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in metrics.read_metrics(workdir / "metrics.jsonl")}


def write_recipe(path: Path, corpus: Path, **changes: object) -> Path:
    path.write_text(
        "from unimed_jax.testing import tiny_config\n\n\n"
        f"def get_config():\n    return tiny_config({str(corpus)!r}, {changes!r})\n"
    )
    return path


def start(recipe: Path, workdir: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "unimed_jax.train", f"--config={recipe}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_row(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns as soon as metrics.jsonl holds a row of ``step`` or later."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if path.is_file() and any(s >= step for s in losses_of(workdir)):
            return
        time.sleep(0.01)
    raise AssertionError(f"no row of step {step} within 240 s")


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == status, output
    return output
