"""An evaluator that fails does not take the results of the others with it."""

import json
import os
import subprocess
import sys

import jax
import pytest
from helpers.runs import ROOT, job_environment, losses_of

from input_pipeline.io.errors import UserError
from unimed_jax import config as config_lib
from unimed_jax import train
from unimed_jax.evals import comparison
from unimed_jax.evals.failures import EvaluationFailed, Failures
from unimed_jax.evals.results import evaluate, write_results
from unimed_jax.monitoring import metrics
from unimed_jax.reporting.html_report import Section
from unimed_jax.training.task import Evaluation


def refusing(params):
    raise UserError("no sample of\nthe split has a <caption>")


def faulty(params):
    return params["absent"]


def scoring(params):
    return Evaluation({"score": 0.5}, "a table", lambda: (Section("Scores", "<p>0.5</p>"),))


def unprintable(params):
    return Evaluation({"score": 0.25}, sections=lambda: 1 / 0)


def test_the_others_are_written_and_the_failures_named(tmp_path, capsys):
    failures = Failures()
    evaluators = {"a": refusing, "b": scoring, "c": faulty, "d": unprintable}
    evaluations = evaluate(evaluators, {}, failures)
    write_results(tmp_path, "title", config_lib.base_config(), evaluations, failures)
    said = capsys.readouterr()
    assert "a failed: no sample of the split has a <caption>\n" in said.out
    assert "in faulty" in said.err  # a fault of the program: with its traceback
    assert "in refusing" not in said.err
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "a/failed": "no sample of the split has a <caption>",
        "b/score": 0.5,
        "c/failed": "KeyError('absent')",
        "d/score": 0.25,
    }
    page = (tmp_path / "report.html").read_text()
    for text in ("<p>0.5</p>", "a: failed", "has a &lt;caption&gt;", "c: failed", "d: failed"):
        assert text in page
    with pytest.raises(EvaluationFailed, match=r"a: no sample .*; c: KeyError.*results\.json"):
        failures.raise_any(tmp_path / "results.json")
    (column,) = comparison.compare([tmp_path]).columns
    assert {row: score.value for row, score in column.scores.items()} == {
        "b/score": 0.5,
        "d/score": 0.25,
    }


def test_without_failures_nothing_is_raised(tmp_path):
    failures = Failures()
    evaluate({"b": scoring}, {}, failures)
    failures.raise_any(tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_and_says_so_at_its_end(tiny_config, tmp_path):
    config = tiny_config(eval_every_steps=3)
    with config_lib.edit(config):  # captions of this corpus are made from labels
        config.evals.retrieval = config_lib.evaluator("retrieval")
    with pytest.raises(EvaluationFailed, match=r"retrieval: .* has an original caption"):
        train.train(config, tmp_path, jax.devices()[:1])
    assert max(losses_of(tmp_path)) == 6
    scored = [row for row in metrics.read_metrics(tmp_path / "metrics.jsonl") if len(row) > 12]
    assert [row["step"] for row in scored] == [3, 6]
    results = json.loads((tmp_path / "results.json").read_text())
    assert "retrieval/failed" in results
    assert any(name.startswith("zero_shot/") for name in results)


TOGETHER = """
import jax
from input_pipeline.io.errors import UserError
from unimed_jax.distributed.failure_detector import join_job
from unimed_jax.evals import failures
detector = join_job()
failures._TOGETHER_SECONDS = 2
found = failures.Failures()
with found.catching("both"):
    raise UserError("of both")
try:
    with found.catching("one"):
        if jax.process_index() == 1:
            raise UserError("of one")
except UserError as error:
    print("raised", error)
print(found.reasons)
detector.deregister()
"""


@pytest.mark.slow
def test_in_a_job_what_fails_in_all_processes_is_caught_and_no_more():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for environment in job_environment(2)
    ]
    said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert said == [
        ["both failed: of both", "{'both': 'of both'}"],
        ["raised of one", "{'both': 'of both'}"],
    ]
