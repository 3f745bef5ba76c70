"""Side-by-side comparison of results, with the differences that make them incomparable."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import AnyPath
from unimed_jax.evals.benchmark import spec as suite_files
from unimed_jax.evals.failures import FAILED

PUBLISHED = "published"
# the metric that stands for a task of a run, the first that it has
MAIN_METRICS = ("balanced_accuracy", "dice", "recall@1", "auc", "accuracy")
_COLUMNS = {"as_published": "", "leak_free": ", leak-free"}


@dataclass(frozen=True)
class Score:
    """One number of a column.

    Attributes:
      value: fraction of 1 for suites, else the value in the results.json of a run.
      interval: 95 % interval; None: unknown.
      made_of: conditions that must be equal for scores of a row to be comparable, name -> value.
    """

    value: float
    interval: tuple[float, float] | None = None
    made_of: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """The scores of one model: row -> score.

    Attributes:
      name: short name, unique among the columns.
      facts: description of the model and the evaluation, name -> text.
      suite: name of the suite; "" for the evaluators of a run.
      warnings: problems with the data sets that the evaluation recorded.
    """

    name: str
    facts: Mapping[str, str]
    suite: str
    scores: Mapping[str, Score]
    warnings: tuple[str, ...] = ()

    @property
    def is_published(self) -> bool:
        """Whether the scores come from a publication."""
        return self.facts.get("source") == PUBLISHED


@dataclass(frozen=True)
class Comparison:
    """Columns side by side.

    Attributes:
      columns: the columns, measured ones first.
      rows: the rows of all measured columns.
      differences: row -> conditions in which its measured scores differ, besides the model.
    """

    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    differences: Mapping[str, tuple[str, ...]]

    @property
    def is_of_suites(self) -> bool:
        """Whether the scores are those of suites: fractions of 1 with intervals."""
        return bool(self.columns[0].suite)


def compare(paths: Sequence[AnyPath], with_published: bool = True) -> Comparison:
    """Reads results.json files, or directories that hold one.

    Args:
      paths: files or directories, in the order of the columns.
      with_published: add the published scores in the files of the suites.

    Raises:
      UserError: a file does not exist or is not a results.json, or suites and runs are mixed.
    """
    columns = [
        _read(file, name) for file, name in zip(map(_file, paths), _names(paths), strict=True)
    ]
    suites = list(dict.fromkeys(column.suite for column in columns))
    if "" in suites and len(suites) > 1:
        flat = next(c.name for c in columns if not c.suite)
        raise UserError(
            f"{flat} holds results of a run's evaluators, others hold results of suites; "
            "they cannot share a table"
        )
    rows = tuple(dict.fromkeys(row for column in columns for row in column.scores))
    if with_published:
        columns += [c for suite in suites if suite for c in published(suite)]
    return Comparison(tuple(columns), _ordered(rows, suites), _differences(rows, columns))


def published(suite: str) -> list[Column]:
    """One column for each model with published scores in the files of a suite and its sets."""
    content = suite_files.load_suite(suite)
    scores: dict[str, dict[str, Score]] = {}
    for spec in content.sets:
        for model, value in spec.published.items():
            scores.setdefault(model, {})[spec.key] = Score(value / 100)
    for model, values in content.published.items():
        means = {_mean_row(name, "as_published"): Score(v / 100) for name, v in values.items()}
        scores.setdefault(model, {}).update(means)
    return [
        Column(model, {"source": PUBLISHED, "protocol": "the paper's"}, suite, rows)
        for model, rows in scores.items()
    ]


def _file(path: AnyPath) -> AnyPath:
    return path / "results.json" if path.is_dir() else path


def _names(paths: Sequence[AnyPath]) -> list[str]:
    """The last part of each path, or the whole path where this is not unique."""
    folders = [p.parent if p.name == "results.json" else p for p in paths]
    short = [folder.name or str(folder) for folder in folders]
    return [
        name if short.count(name) == 1 else str(p) for name, p in zip(short, paths, strict=True)
    ]


def _read(file: AnyPath, name: str) -> Column:
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
    values = {row: float(value) for row, value in content.items() if not row.endswith(f"/{FAILED}")}
    ends = {f"{row}_{end}" for row in values for end in ("low", "high")}
    scores = {}
    for row, value in values.items():
        if row in ends or row.endswith("/num_samples"):
            continue
        low, high = (values.get(f"{row}_{end}") for end in ("low", "high"))
        interval = None if low is None or high is None else (low, high)
        scores[row] = Score(value, interval, _made_of(row, values))
    return Column(name, {"source": "evaluators of a run"}, "", scores)


def _made_of(row: str, values: Mapping[str, float]) -> Mapping[str, Any]:
    """The tasks of a mean, and the images of a task."""
    task, _, metric = row.rpartition("/")
    if task.rpartition("/")[2] == "mean":
        evaluator = task.removesuffix("mean")
        names = (k.removeprefix(evaluator) for k in values if k.startswith(evaluator))
        tasks = {k.removesuffix(f"/{metric}") for k in names if k.endswith(f"/{metric}")}
        return {"tasks": tuple(sorted(tasks - {"mean"}))}
    images = values.get(f"{task}/num_samples")
    return {} if images is None else {"images": images}


def _of_suite(content: Mapping[str, Any], name: str) -> Column:
    scores = {}
    for entry in content["sets"]:
        for column, suffix in _COLUMNS.items():
            if not isinstance(entry[column], dict):  # the reason why there is no score
                continue
            all_images = entry["as_published"]["num_images"]
            if column == "leak_free" and entry[column]["num_images"] == all_images:
                continue  # the same score again
            score = entry[column][entry["metric"]]
            low, high = score["interval"]
            scores[entry["dataset"] + suffix] = Score(
                _number(score["value"]),
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
    """Rows of suites in the order of their sets, then means; rows of runs in their order."""
    keys = [spec.key for suite in suites if suite for spec in suite_files.load_suite(suite).sets]

    def place(row: str) -> tuple[bool, int]:
        key = row.partition(",")[0]
        return (row.startswith("mean"), keys.index(key) if key in keys else len(keys))

    return tuple(sorted(rows, key=place)) if keys else tuple(rows)


def _differences(rows: Sequence[str], columns: Sequence[Column]) -> dict[str, tuple[str, ...]]:
    """The conditions in which the measured scores of each row differ."""
    measured = [column for column in columns if not column.is_published]
    differences = {}
    for row in rows:
        scores = [c.scores[row] for c in measured if row in c.scores]
        names = dict.fromkeys(name for score in scores for name in score.made_of)
        unequal = [n for n in names if len({repr(score.made_of.get(n)) for score in scores}) > 1]
        if scores:
            unequal += [f"not in {c.name}" for c in measured if row not in c.scores]
        differences[row] = tuple(unequal)
    return differences


def notes(comparison: Comparison) -> list[str]:
    """Caveats of the comparison, one sentence each."""
    measured = [c for c in comparison.columns if not c.is_published]
    sentences = []
    for fact in ("protocol", "unimed_jax"):
        values = dict.fromkeys(c.facts.get(fact, "") for c in measured)
        if len(values) > 1:
            each = ", ".join(f"{c.name}: {c.facts.get(fact)}" for c in measured)
            sentences.append(f"Not the same {fact}: {each}.")
    rows = [row for row, unequal in comparison.differences.items() if unequal]
    if rows:
        sentences.append(
            f"Rows that are not comparable, marked ≠: {len(rows)} of {len(comparison.rows)}."
        )
    for column in measured:
        if column.warnings:
            sentences.append(f"Images of {column.name}: {'; '.join(column.warnings)}.")
    if len(measured) < len(comparison.columns):
        sentences.append(
            "Published scores were made with the paper's prompts, on copies of the sets that "
            "cannot be had: not comparable with measured ones, and without intervals."
        )
    return sentences


def is_main(comparison: Comparison, row: str) -> bool:
    """Whether a row is the one that stands for its set or task; the others give details."""
    if comparison.is_of_suites:
        return not row.endswith(_COLUMNS["leak_free"])
    task, _, metric = row.rpartition("/")
    others = [r.rpartition("/")[2] for r in comparison.rows if r.rpartition("/")[0] == task]
    main = next((name for name in MAIN_METRICS if name in others), others[0])
    return metric == main


def best(comparison: Comparison, row: str) -> tuple[int, ...]:
    """Indices of the columns with the best score of a row; none if it is not comparable."""
    if comparison.differences[row]:
        return ()
    scores = [
        math.nan if column.is_published or row not in column.scores else column.scores[row].value
        for column in comparison.columns
    ]
    defined = [score for score in scores if not math.isnan(score)]
    if len(defined) < 2:
        return ()
    lower_is_better = "hd95" in row or row.endswith("loss")
    wanted = min(defined) if lower_is_better else max(defined)
    return tuple(index for index, score in enumerate(scores) if score == wanted)


def difference(comparison: Comparison, row: str) -> str:
    """Score of the second measured column minus that of the first.

    "" unless there are two columns, and the row is comparable.
    """
    if comparison.differences[row]:
        return ""
    measured = [column for column in comparison.columns if not column.is_published]
    if len(measured) != 2 or not all(row in column.scores for column in measured):
        return ""
    before, after = (column.scores[row].value for column in measured)
    if math.isnan(before) or math.isnan(after):
        return ""
    factor, decimals = (100, 2) if comparison.is_of_suites else (1, 4)
    return f"{factor * (after - before):+.{decimals}f}"


def cells(comparison: Comparison, row: str) -> list[str]:
    """The scores of a row as text, '—' where there is none, followed by their differences."""
    shown = []
    for column in comparison.columns:
        score = column.scores.get(row)
        if score is None or math.isnan(score.value):
            shown.append("—")
        elif not comparison.is_of_suites:
            low, high = score.interval or (math.nan, math.nan)
            text = f"{score.value:.4f}"
            shown.append(text if math.isnan(low) else f"{text} [{low:.3f}, {high:.3f}]")
        elif score.interval is None:
            shown.append(f"{100 * score.value:.2f}")
        else:
            low, high = score.interval
            shown.append(f"{100 * score.value:.2f} [{100 * low:.1f}, {100 * high:.1f}]")
    unequal = comparison.differences[row]
    return [*shown, f"≠ {', '.join(unequal)}" if unequal else ""]


def as_csv(comparison: Comparison) -> str:
    """CSV with a line per score: result, row, value, low, high, source, protocol, differs_in."""
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
