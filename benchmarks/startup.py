"""The time from a command to its first step, with the compilation cache empty and full.

    python benchmarks/startup.py [--config=configs/quickstart.py] [--repeats=3]

Runs the command in separate processes with a separate compilation cache: once to draw the
phantoms, then once with an empty cache, then --repeats times with a full one. Prints the line of
each run, and the median of the last ones.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(config: str, workdir: Path, cache: Path) -> str:
    """The start-up line of a run of one step."""
    command = [sys.executable, "-m", "unimed_jax.train", f"--config={config}"]
    command += [f"--workdir={workdir}", "--config.num_train_steps=1", "--config.evals={}"]
    output = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return next(line for line in output.splitlines() if line.startswith("start-up "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--repeats", type=int, default=3, help="runs with a full cache")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for index in range(args.repeats + 2):
            workdir = Path(folder) / str(index)
            if index:  # the phantoms are there
                workdir.mkdir()
                (workdir / "phantoms").symlink_to(Path(folder) / "0" / "phantoms")
            cache = Path(folder) / ("drawing" if index == 0 else "cache")
            line = start(args.config, workdir, cache)
            name = ("first run", "empty cache")[index] if index < 2 else "full cache"
            print(f"{name:12} {line}", flush=True)
            seconds.append(float(re.search(r"start-up ([\d.]+) s", line)[1]))
    print(f"median with a full cache: {statistics.median(seconds[2:]):.1f} s")


if __name__ == "__main__":
    main()
