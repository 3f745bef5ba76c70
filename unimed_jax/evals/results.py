"""Writes the results of evaluators: tables on the terminal, results.json, report.html."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.io.files import AnyPath, write_text_atomically
from unimed_jax import config as config_lib
from unimed_jax.distributed import process
from unimed_jax.evals.failures import FAILED, Failures
from unimed_jax.monitoring import metrics, provenance
from unimed_jax.monitoring.goodput import Goodput
from unimed_jax.reporting import html_report
from unimed_jax.training.task import Evaluation, Evaluator

# metrics that every run logs
_LOSS_CHART = html_report.Chart("Loss", "loss")
_OPTIMIZER_CHARTS = (
    html_report.Chart("Learning rate", "learning_rate", (0.0, None)),
    html_report.Chart("Gradient norm", "grad_norm", (0.0, None)),
    html_report.Chart("Images per second", "images_per_sec", (0.0, None)),
)


def evaluate(
    evaluators: Mapping[str, Evaluator], params: Any, failures: Failures
) -> dict[str, Evaluation]:
    """Runs every evaluator on the parameters; those that fail are in ``failures`` alone."""
    evaluations = {}
    for name, evaluator in evaluators.items():
        with failures.catching(name), process.announced(f"evaluating {name}"):
            evaluations[name] = evaluator(params)
    return evaluations


def named_metrics(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """``EVALUATOR/METRIC`` -> value, as in metrics.jsonl and results.json."""
    return {
        f"{name}/{metric}": value
        for name, evaluation in evaluations.items()
        for metric, value in evaluation.metrics.items()
    }


def write_results(
    directory: AnyPath,
    title: str,
    config: ConfigDict,
    evaluations: Mapping[str, Evaluation],
    failures: Failures,
    history: Sequence[Mapping[str, Any]] = (),
    charts: Sequence[html_report.Chart] = (),
    facts: Mapping[str, str] | None = None,
    goodput: Goodput | None = None,
) -> None:
    """Logs the tables; writes results.json, report.html and the files of the evaluators.

    Args:
      directory: output directory.
      title: title of the report.
      config: resolved config, shown in the report.
      evaluations: evaluator -> result; results.json holds them as EVALUATOR/METRIC: value.
      failures: evaluators that failed; results.json holds them as EVALUATOR/failed: reason. Those
        whose part of the report fails are added.
      history: rows of metrics.jsonl for the training curves; empty outside training.
      charts: training curves of the task, in addition to those of every run.
      facts: name -> value of what was trained or evaluated, on what; for the top of the report.
      goodput: what the time of a training run went to; for the report and goodput.json.
    """
    results = {k: metrics.finite_or_name(v) for k, v in named_metrics(evaluations).items()}
    results |= {f"{name}/{FAILED}": reason for name, reason in failures.reasons.items()}
    content = json.dumps(results, indent=2, sort_keys=True) + "\n"
    write_text_atomically(directory / "results.json", content)
    curves = (_LOSS_CHART, *charts, *_OPTIMIZER_CHARTS)
    facts = {**(facts or {}), "devices": provenance.hardware(), **provenance.software()}
    sections = [
        html_report.summary_section(_headline(results, evaluations)),
        html_report.facts_section(facts),
    ]
    if history:
        sections.append(html_report.curves_section(history, curves))
    if goodput:
        content = json.dumps(goodput.as_json(), indent=2) + "\n"
        write_text_atomically(directory / "goodput.json", content)
        sections.append(_time_section(goodput))
    for name, evaluation in evaluations.items():
        process.log(f"\n{name}\n{evaluation.table}")
        for folder, text in evaluation.files.items():
            write_text_atomically(directory / folder / f"{name}.json", text)
        with failures.catching(name):
            sections += evaluation.sections()
    sections += [_failure_section(name, reason) for name, reason in failures.reasons.items()]
    sections.append(html_report.config_section(json.loads(config_lib.to_json(config))))
    html_report.write_report(directory / "report.html", title=title, sections=sections)
    process.log(f"\nresults: {directory / 'results.json'}\nreport:  {directory / 'report.html'}")


def _headline(results: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """The scores of every evaluator that matter most, with their intervals where they have one."""
    shown = {}
    for name, evaluation in evaluations.items():
        for metric in evaluation.headline:
            key = f"{name}/{metric}"
            low, high = (results.get(f"{key}_{end}") for end in ("low", "high"))
            text = html_report.number(float(results[key]))
            if isinstance(low, float) and isinstance(high, float):
                text += f" [{low:.3f}, {high:.3f}]"
            shown[key.replace("/", ": ", 1).replace("/", ", ").replace("_", " ")] = text
    return shown


def _time_section(goodput: Goodput) -> html_report.Section:
    bars = [
        (goodput.title(name), share, f"{100 * share:.1f} %")
        for name, share in goodput.shares.items()
    ]
    note = f'<p class="note">{html.escape(goodput.summary())}</p>'
    return html_report.Section("Where the time went", html_report.bars(bars) + note)


def _failure_section(name: str, reason: str) -> html_report.Section:
    return html_report.Section(f"{name}: failed", f"<p>{html.escape(reason)}</p>")
