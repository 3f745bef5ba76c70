"""Ablation runs of a recipe, one after the other, and their scores as rows."""

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
Row = Mapping[str, object]


def train(
    recipe: str,
    settings: Mapping[str, str],
    more: Sequence[str],
    workdir: Path,
    environment: Mapping[str, str] = {},
) -> None:
    """One run of the trainer; nothing if it is finished, the rest of it if it was stopped.

    Args:
      recipe: FILE:variant.
      settings: key of the config -> value; those without a value keep the recipe's.
      more: KEY=VALUE of the config.
      workdir: of the run.
      environment: variables besides our own.
    """
    if (workdir / "results.json").is_file():
        return
    flags = [f"--config.{key}={value}" for key, value in settings.items() if value]
    flags += [f"--config.{setting}" for setting in more]
    command = [sys.executable, "-m", "unimed_jax.train", f"--config={recipe}"]
    command += [f"--workdir={workdir.absolute()}", *flags]
    subprocess.run(command, cwd=REPO, env={**os.environ, **environment}, check=True)


def metrics_of(workdir: Path) -> list[dict[str, float]]:
    """What a run logged, in order."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def step_seconds(workdir: Path) -> float:
    """Median time of a step, without the first that was logged if there are more."""
    seconds = [row["step_seconds"] for row in metrics_of(workdir) if "step_seconds" in row]
    return statistics.median(seconds[1:] or seconds)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def grouped(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[object, ...], list[Row]]:
    """Rows by the values of some columns, in the order in which they first occur."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def spread(rows: Sequence[Row], score: str, decimals: int) -> str:
    """Mean and standard deviation over seeds, of those that have the score."""
    values = [float(row[score]) for row in rows if isinstance(row[score], float)]
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.{decimals}f} ± {deviation:.{decimals}f}"
