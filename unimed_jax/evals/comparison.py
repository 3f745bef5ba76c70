"""Results of several evaluations beside each other, and what keeps them from being comparable."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from input_pipeline.io.errors import UserError
from unimed_jax.evals.benchmark import spec as suite_files

PUBLISHED = "published"
_COLUMNS = {"as_published": "", "leak_free": ", leak-free"}


@dataclass(frozen=True)
class Score:
    """One number of a column.

    Attributes:
      value: a fraction of 1, or what else a run's results.json has.
      interval: of 95 %, where there is one.
      made_of: what must be equal for two scores of a row to be comparable, name -> value.
    """

    value: float
    interval: tuple[float, float] | None = None
    made_of: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """The scores of one model: row -> score.

    Attributes:
      name: short, unique among the columns.
      facts: what it is, name -> text.
      suite: its suite; "" for the evaluators of a run.
      warnings: what its own evaluation found wrong with the sets.
    """

    name: str
    facts: Mapping[str, str]
    suite: str
    scores: Mapping[str, Score]
    warnings: tuple[str, ...] = ()

    @property
    def is_published(self) -> bool:
        """Whether the scores were printed by others."""
        return self.facts.get("source") == PUBLISHED


@dataclass(frozen=True)
class Comparison:
    """Columns beside each other.

    Attributes:
      columns: measured ones first.
      rows: those that any measured column has.
      differences: row -> what its measured scores differ in besides the model.
    """

    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    differences: Mapping[str, tuple[str, ...]]

    @property
    def is_of_suites(self) -> bool:
        """Whether scores are fractions of 1 with intervals."""
        return bool(self.columns[0].suite)


def compare(paths: Sequence[Path], with_published: bool = True) -> Comparison:
    """Reads results.json files, or directories that hold one.

    Args:
      paths: in the order of the columns.
      with_published: add the published scores of the suites' own files.

    Raises:
      UserError: no such file, not a results.json, or files of different kinds.
    """
    columns = [
        _read(file, name) for file, name in zip(map(_file, paths), _names(paths), strict=True)
    ]
    suites = list(dict.fromkeys(column.suite for column in columns))
    if "" in suites and len(suites) > 1:
        flat = next(c.name for c in columns if not c.suite)
        raise UserError(f"{flat} is of a run's evaluators, others are of suites: not one table")
    rows = tuple(dict.fromkeys(row for column in columns for row in column.scores))
    if with_published:
        columns += [c for suite in suites if suite for c in published(suite)]
    return Comparison(tuple(columns), _ordered(rows, suites), _differences(rows, columns))


def published(suite: str) -> list[Column]:
    """The models whose scores the files of a suite and of its sets hold."""
    content = suite_files.load_suite(suite)
    scores: dict[str, dict[str, Score]] = {}
    for spec in content.sets:
        for model, value in spec.published.items():
            scores.setdefault(model, {})[spec.key] = Score(value / 100)
    for model, values in content.published.items():
        means = {_mean_row(name, "as_published"): Score(v / 100) for name, v in values.items()}
        scores.setdefault(model, {}).update(means)
    return [
        Column(model, {"source": PUBLISHED, "protocol": "the paper's"}, suite, found)
        for model, found in scores.items()
    ]


def _file(path: Path) -> Path:
    return path / "results.json" if path.is_dir() else path


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path that tells it from the others."""
    folders = [p.parent if p.name == "results.json" else p for p in paths]
    short = [folder.name or str(folder) for folder in folders]
    return [
        name if short.count(name) == 1 else str(p) for name, p in zip(short, paths, strict=True)
    ]


def _read(file: Path, name: str) -> Column:
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file} is not a results.json")
    try:
        return _of_suite(content, name) if "sets" in content else _of_run(content, name)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not a results.json of this version: {error!r}") from error


def _of_run(content: Mapping[str, Any], name: str) -> Column:
    scores = {row: Score(float(value)) for row, value in content.items()}
    return Column(name, {"source": "evaluators of a run"}, "", scores)


def _of_suite(content: Mapping[str, Any], name: str) -> Column:
    scores = {}
    for entry in content["sets"]:
        for column, suffix in _COLUMNS.items():
            if not isinstance(entry[column], dict):  # the reason why there is none
                continue
            all_images = entry["as_published"]["num_images"]
            if column == "leak_free" and entry[column]["num_images"] == all_images:
                continue  # the same number again
            found = entry[column][entry["metric"]]
            low, high = found["interval"]
            scores[entry["dataset"] + suffix] = Score(
                _number(found["value"]),
                (_number(low), _number(high)),
                {
                    "metric": entry["metric"],
                    "images": (entry["files"]["sha256"], entry[column]["num_images"]),
                    "prompts": entry["prompts"]["sha256"],
                    "number of prompts": tuple(entry["prompts"]["used_per_class"]),
                    "bad images": entry["bad_images"],
                },
            )
    for column, means in content["means"].items():
        for modality, mean in means.items():
            if mean["over"]:
                made_of = {
                    "sets": tuple(mean["over"]),
                    "incomplete sets": tuple(mean["incomplete"]),
                }
                row = _mean_row(modality, column)
                scores[row] = Score(_number(mean["value"]), None, made_of)
    facts = {
        "source": "measured",
        "model": content["model"],
        "checkpoint": content["pretrained"],
        "protocol": content["protocol"]["name"],
        "unimed_jax": content["unimed_jax"],
    }
    warnings = [f"{key}: {problem}" for key, problem in content["unexpected_counts"].items()]
    warnings += [f"{key}: {len(bad)} do not decode" for key, bad in content["bad_images"].items()]
    return Column(name, facts, content["dataset"], scores, tuple(warnings))


def _mean_row(modality: str, column: str) -> str:
    name = "mean" if modality == "mean" else f"mean of {modality}"
    return name + _COLUMNS[column]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _ordered(rows: Sequence[str], suites: Sequence[str]) -> tuple[str, ...]:
    """Sets as their suites have them, means behind; the rows of a run as they came."""
    keys = [spec.key for suite in suites if suite for spec in suite_files.load_suite(suite).sets]

    def place(row: str) -> tuple[bool, int]:
        key = row.partition(",")[0]
        return (row.startswith("mean"), keys.index(key) if key in keys else len(keys))

    return tuple(sorted(rows, key=place)) if keys else tuple(rows)


def _differences(rows: Sequence[str], columns: Sequence[Column]) -> dict[str, tuple[str, ...]]:
    """What the measured scores of each row were made of that is not the same."""
    measured = [column for column in columns if not column.is_published]
    found = {}
    for row in rows:
        scores = [c.scores[row] for c in measured if row in c.scores]
        names = dict.fromkeys(name for score in scores for name in score.made_of)
        wrong = [n for n in names if len({repr(score.made_of.get(n)) for score in scores}) > 1]
        wrong += [f"not in {c.name}" for c in measured if row not in c.scores] if scores else []
        found[row] = tuple(wrong)
    return found


def notes(comparison: Comparison) -> list[str]:
    """What to know before comparing, a sentence each."""
    measured = [c for c in comparison.columns if not c.is_published]
    found = []
    for fact in ("protocol", "unimed_jax"):
        values = dict.fromkeys(c.facts.get(fact, "") for c in measured)
        if len(values) > 1:
            each = ", ".join(f"{c.name}: {c.facts.get(fact)}" for c in measured)
            found.append(f"Not the same {fact}: {each}.")
    rows = [row for row, wrong in comparison.differences.items() if wrong]
    if rows:
        found.append(
            f"Rows that are not comparable, marked ≠: {len(rows)} of {len(comparison.rows)}."
        )
    for column in measured:
        if column.warnings:
            found.append(f"Images of {column.name}: {'; '.join(column.warnings)}.")
    if len(measured) < len(comparison.columns):
        found.append(
            "Published scores were made with the paper's prompts, on copies of the sets that "
            "cannot be had: not comparable with measured ones, and without intervals."
        )
    return found


def cells(comparison: Comparison, row: str) -> list[str]:
    """The scores of a row as text, '—' where there is none, then what they differ in."""
    shown = []
    for column in comparison.columns:
        score = column.scores.get(row)
        if score is None or math.isnan(score.value):
            shown.append("—")
        elif not comparison.is_of_suites:
            shown.append(f"{score.value:.4f}")
        elif score.interval is None:
            shown.append(f"{100 * score.value:.2f}")
        else:
            low, high = score.interval
            shown.append(f"{100 * score.value:.2f} [{100 * low:.1f}, {100 * high:.1f}]")
    wrong = comparison.differences[row]
    return [*shown, f"≠ {', '.join(wrong)}" if wrong else ""]


def as_csv(comparison: Comparison) -> str:
    """A line per score: result, row, value, low, high, source, protocol, differs_in."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("result", "row", "value", "low", "high", "source", "protocol", "differs_in"))
    for column in comparison.columns:
        for row in comparison.rows:
            if row in column.scores:
                score = column.scores[row]
                writer.writerow(
                    (
                        column.name,
                        row,
                        score.value,
                        *(score.interval or ("", "")),
                        column.facts["source"],
                        column.facts.get("protocol", ""),
                        "; ".join(comparison.differences[row]),
                    )
                )
    return buffer.getvalue()
