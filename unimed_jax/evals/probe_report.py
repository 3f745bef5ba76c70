"""Results of probes: metrics, a table for the terminal, and sections of the report."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unimed_jax.evals import classification_report, statistics
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.reporting import charts, html_report
from unimed_jax.training.task import Evaluation

_MAIN = "balanced_accuracy"


@dataclass(frozen=True)
class ProbeDraw:
    """Result of one probe on the test split.

    Attributes:
      num_train: number of training samples.
      c: inverse regularization strength.
      converged: whether all fits converged.
      scores: score -> value.
      intervals: score -> 95 % interval; empty if the budget has several draws.
      logits: (M, C) of the test samples.
    """

    num_train: int
    c: float
    converged: bool
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    logits: np.ndarray


@dataclass(frozen=True)
class TaskResult:
    """The probes of one task.

    Attributes:
      test: the test samples, with zeros as logits.
      num_validation: number of samples of the validation part.
      num_seen: number of test samples whose group also has training samples.
      draws: budget -> one probe per draw.
      not_run: budget -> reason why it has no probe.
    """

    test: ClassificationResult
    num_validation: int
    num_seen: int
    draws: Mapping[str, Sequence[ProbeDraw]]
    not_run: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.test.task

    def spread(self, budget: str, score: str = _MAIN) -> tuple[float, float]:
        """Mean and sample standard deviation (0 for one draw) of a score over the draws."""
        values = [draw.scores[score] for draw in self.draws[budget]]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def evaluation(
    title: str, budgets: Sequence[str], results: Sequence[TaskResult], files: Mapping[str, str]
) -> Evaluation:
    """The Evaluation of probes; ``budgets`` gives the order of the columns."""
    return Evaluation(
        metrics=(metrics := _metrics(budgets, results)),
        headline=[
            name
            for name in metrics
            if name.startswith("mean/") and name.endswith("/balanced_accuracy")
        ],
        table=html_report.text_table(
            [["task", "test images", *budgets], *_rows(budgets, results, "-")]
        )
        + "".join(f"\n{line}" for line in _notes(results)),
        sections=lambda: _sections(title, budgets, results),
        files=files,
    )


def _metrics(budgets: Sequence[str], results: Sequence[TaskResult]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for result in results:
        metrics[f"{result.name}/num_samples"] = float(len(result.test.ids))
        metrics[f"{result.name}/num_left_out"] = float(result.test.num_left_out)
        metrics[f"{result.name}/num_validation"] = float(result.num_validation)
        metrics[f"{result.name}/num_seen"] = float(result.num_seen)
        for budget, draws in result.draws.items():
            key = f"{result.name}/{budget}"
            for score in statistics.SCORES:
                mean, deviation = result.spread(budget, score)
                metrics[f"{key}/{score}"] = mean
                if len(draws) > 1:
                    metrics[f"{key}/{score}_std"] = deviation
                for interval in (d.intervals[score] for d in draws if d.intervals):
                    metrics[f"{key}/{score}_low"], metrics[f"{key}/{score}_high"] = interval
            metrics[f"{key}/num_train"] = float(draws[0].num_train)
            metrics[f"{key}/num_draws"] = float(len(draws))
            metrics[f"{key}/c"] = float(np.median([d.c for d in draws]))
    for budget in budgets:  # a mean over some of the tasks would not be comparable
        if all(budget in result.draws for result in results):
            values = [metrics[f"{result.name}/{budget}/{_MAIN}"] for result in results]
            metrics[f"mean/{budget}/{_MAIN}"] = float(np.mean(values))
    return metrics


def _rows(budgets: Sequence[str], results: Sequence[TaskResult], dash: str) -> list[list[str]]:
    def cell(result: TaskResult, budget: str) -> str:
        if budget not in result.draws:
            return dash
        mean, deviation = result.spread(budget)
        draws = result.draws[budget]
        if len(draws) > 1:
            return f"{mean:.3f} ± {deviation:.3f}"
        low, high = draws[0].intervals[_MAIN]
        return f"{mean:.3f} [{low:.2f}, {high:.2f}]"

    return [
        [result.name, f"{len(result.test.ids):,}", *(cell(result, b) for b in budgets)]
        for result in results
    ]


def _notes(results: Sequence[TaskResult]) -> list[str]:
    notes = [
        f"{result.name}: {budget} not run: {reason}"
        for result in results
        for budget, reason in result.not_run.items()
    ]
    notes += [
        f"{result.name}: {result.num_seen:,} test images share their group with training images"
        for result in results
        if result.num_seen
    ]
    limited = sum(not d.converged for r in results for draws in r.draws.values() for d in draws)
    if limited:
        notes.append(f"probes with a fit that reached the limit of iterations: {limited}")
    return notes


def _sections(
    title: str, budgets: Sequence[str], results: Sequence[TaskResult]
) -> list[html_report.Section]:
    series = {
        result.name: [result.spread(b) if b in result.draws else None for b in budgets]
        for result in results
    }
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(results))
    details = [
        [
            result.name,
            budget,
            f"{draws[0].num_train:,}",
            f"{len(draws)}",
            *(
                "{:.3f} ± {:.3f}".format(*result.spread(budget, score))
                for score in statistics.SCORES
            ),
            ", ".join(f"{d.c:g}" for d in draws),
        ]
        for result in results
        for budget, draws in result.draws.items()
    ]
    header = ["Task", "Budget", "Trained on", "Draws", "Accuracy", "Balanced", "AUC", "F1", "C"]
    chart = charts.spread_chart(
        budgets, series, x_label="training images", y_label="balanced accuracy"
    )
    body = (
        f'<figure class="single"><figcaption>Balanced accuracy</figcaption>'
        f"{chart}{html_report.legend(list(series))}</figure>"
        + html_report.table(["Task", "Test images", *budgets], _rows(budgets, results, "—"))
        + '<p class="note">Balanced accuracy: mean ± standard deviation over draws, or one value '
        "with its 95 % bootstrap interval. Logistic regression on frozen unit features; C by the "
        "balanced accuracy of a validation part, of "
        f"{', '.join(f'{r.num_validation:,} ({r.name})' for r in results)} images.</p>"
        + (f'<ul class="note">{notes}</ul>' if notes else "")
        + "<details><summary>All scores</summary>"
        + html_report.table(header, details, compact=True)
        + "</details>"
    )
    single_draws = [
        dataclasses.replace(result.test, logits=draws[0].logits)
        for result in results
        for draws in result.draws.values()
        if len(draws) == 1
    ]
    sections = [html_report.Section(title, body)]
    if single_draws:
        sections.append(
            classification_report.confusion_section(single_draws, f"{title}: confusion matrices")
        )
    return sections
