"""tools/compare_results.py on results of real runs of the suite, and on what it must refuse."""

import csv
import json
from pathlib import Path

import pytest
from helpers.html_page import Page
from helpers.small_model import write_export
from helpers.suite_archive import write_archive

from input_pipeline.io.errors import UserError
from tools import compare_results
from unimed_jax.evals import comparison
from unimed_jax.evals.benchmark import report, run, spec
from unimed_jax.evals.benchmark import results as suite_results
from unimed_jax.inference import dual_encoder

SETS = ["acl_mri", "CT_axial", "rsna_pneumonia"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of results: a, and others that differ in one thing each."""
    root = tmp_path_factory.mktemp("results")
    write_archive(root / "sets")
    model = dual_encoder.load(write_export(root))
    name = suite_results.ModelName(model.architecture, "export")

    def evaluate(out: str, keys: list[str], **options: object) -> None:
        chosen = spec.load_suite("unimed21", keys)
        found = run.evaluate_suite(model, chosen, root / "sets", root / "cache", **options)
        report.write(root / out, found, name, {})

    evaluate("a", SETS)
    evaluate("same", SETS)
    evaluate("fewer", SETS[:2])
    evaluate("paper", SETS, protocol="paper")
    image = next((root / "sets" / "acl_mri" / "images").iterdir())
    image.write_bytes(image.read_bytes()[:40])
    evaluate("damaged", SETS)
    (root / "run").mkdir()
    (root / "run" / "results.json").write_text('{"zero_shot/modality/auc": 0.5, "x": "nan"}')
    return root


def test_equal_results_differ_in_nothing(results):
    found = comparison.compare([results / "a", results / "same" / "results.json"])
    assert [c.name for c in found.columns[:2]] == ["a", "same"]
    assert not any(found.differences.values())
    assert found.rows[:4] == ("rsna_pneumonia", "acl_mri", "CT_axial", "mean")
    assert "mean, leak-free" in found.rows and "acl_mri, leak-free" not in found.rows  # no less
    for row in found.rows:
        if row in found.columns[0].scores:
            assert found.columns[0].scores[row] == found.columns[1].scores[row]
    *counts, note = comparison.notes(found)
    assert note.startswith("Published scores were made with the paper's prompts")
    assert (
        counts[0] == "Images of a: acl_mri: 6 rows, expected 208; CT_axial: 11 rows, expected 618."
    )


def test_the_published_rows_are_those_of_the_files(results):
    found = comparison.compare([results / "a"])
    column = next(c for c in found.columns if c.name == "BiomedCLIP")
    assert column.is_published and column.scores["acl_mri"].value == pytest.approx(0.4789)
    assert column.scores["mean"].value == pytest.approx(0.4902)
    assert column.scores["mean of fundus"].value == pytest.approx(0.492)
    assert "mean of fundus" not in found.rows  # no such set was measured
    assert len(comparison.compare([results / "a"], with_published=False).columns) == 1


def test_what_is_not_comparable_is_marked(results):
    def differences(other: str) -> dict[str, tuple[str, ...]]:
        found = comparison.compare([results / "a", results / other], with_published=False)
        return {row: wrong for row, wrong in found.differences.items() if wrong}

    fewer = differences("fewer")
    assert fewer["rsna_pneumonia"] == ("not in fewer",) and fewer["mean"] == ("sets",)
    assert "acl_mri" not in fewer and "mean of mri" not in fewer
    assert differences("paper")["rsna_pneumonia"] == ("number of prompts",)
    damaged = differences("damaged")
    assert damaged["acl_mri"] == ("images", "bad images")
    assert damaged["mean of mri"] == ("incomplete sets",)
    found = comparison.compare([results / "a", results / "paper", results / "damaged"])
    notes = " ".join(comparison.notes(found))
    assert "Not the same protocol: a: ours, paper: paper, damaged: ours." in notes
    assert "expected 618; acl_mri: 1 do not decode." in notes


def test_the_command(results, tmp_path, capsys):
    paths = [str(results / name) for name in ("a", "fewer")]
    assert compare_results.main([*paths, f"--out={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("acl_mri "))
    a = json.loads((results / "a" / "results.json").read_text())
    entry = next(e for e in a["sets"] if e["dataset"] == "acl_mri")
    assert f"{100 * entry['metrics']['auc']:.2f} [" in line and "47.89" in line
    assert any(line.startswith("rsna_pneumonia") and "≠ not in fewer" in line for line in lines)

    with (tmp_path / "comparison.csv").open() as file:
        rows = {(row["result"], row["row"]): row for row in csv.DictReader(file)}
    assert float(rows["a", "acl_mri"]["value"]) == entry["metrics"]["auc"]
    assert float(rows["a", "acl_mri"]["low"]) == entry["as_published"]["auc"]["interval"][0]
    assert rows["BiomedCLIP", "acl_mri"]["low"] == ""
    assert rows["a", "mean"]["differs_in"] == "sets"
    page = Page((tmp_path / "comparison.html").read_text())
    about = next(row for row in page.rows if row[0] == "a")
    assert about[:5] == ["a", "measured", "ViT-W32-8-32", "export", "ours"]
    assert sum(tag == "circle" for tag, _ in page.tags) == len(rows)


def test_a_page_has_a_row_per_task_and_says_what_is_best(tmp_path):
    task = {"balanced_accuracy": 0.5, "balanced_accuracy_low": 0.4, "balanced_accuracy_high": 0.6,
            "auc": 0.7, "num_samples": 30}  # fmt: skip
    first = {f"zero_shot/{t}/{k}": v for t in ("ct", "mri") for k, v in task.items()}
    first["zero_shot/mean/balanced_accuracy"] = 0.5
    first["segmentation/lung/hd95_mm"] = 4.0
    second = first | {"zero_shot/ct/balanced_accuracy": 0.625, "segmentation/lung/hd95_mm": 3.0}
    third = {k: v for k, v in second.items() if "mri" not in k} | {"zero_shot/ct/num_samples": 31}
    for name, content in (("a", first), ("b", second), ("c", third)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))

    same = comparison.compare([tmp_path / "a", tmp_path / "b"])
    assert not any(same.differences.values())
    main = [row for row in same.rows if comparison.is_main(same, row)]
    assert main == ["zero_shot/ct/balanced_accuracy", "zero_shot/mri/balanced_accuracy",
                    "zero_shot/mean/balanced_accuracy", "segmentation/lung/hd95_mm"]  # fmt: skip
    assert [comparison.best(same, row) for row in main] == [(1,), (0, 1), (0, 1), (1,)]
    assert comparison.difference(same, main[0]) == "+0.1250"
    assert comparison.cells(same, main[0])[:2] == ["0.5000 [0.400, 0.600]", "0.6250 [0.400, 0.600]"]
    assert (
        compare_results.main([str(tmp_path / "a"), str(tmp_path / "b"), f"--out={tmp_path}"]) == 0
    )
    text = (tmp_path / "comparison.html").read_text()
    assert "<b>0.6250 [0.400, 0.600]</b>" in text and "2 more rows" in text
    assert len([row for row in Page(text).rows if row[0].startswith("zero_shot/")]) == 5

    # a mean over other tasks, and other images, are marked and have no best
    other = comparison.compare([tmp_path / "a", tmp_path / "c"])
    assert other.differences["zero_shot/mean/balanced_accuracy"] == ("tasks",)
    assert other.differences["zero_shot/ct/balanced_accuracy"] == ("images",)
    assert comparison.best(other, "zero_shot/mean/balanced_accuracy") == ()
    assert comparison.difference(other, "zero_shot/mean/balanced_accuracy") == ""


def test_results_of_runs_and_mistakes(results, tmp_path, capsys):
    assert compare_results.main([str(results / "run")]) == 0
    assert "zero_shot/modality/auc  0.5000" in capsys.readouterr().out
    for wrong, message in (
        (["a", "run"], "run holds results of a run's evaluators, others hold results of suites"),
        (["nowhere"], "cannot read .*nowhere: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            comparison.compare([results / name for name in wrong])
    file = tmp_path / "results.json"
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "is not a results.json"),
        ('{"sets": [{}]}', "is not a results.json of this version: KeyError"),
        ('{"x": "many"}', "is not a results.json of this version: ValueError"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            comparison.compare([tmp_path])
    assert compare_results.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_equal_names_are_distinguished(results):
    found = comparison.compare([results / "a", results / "a" / ".." / "a"], with_published=False)
    assert len({c.name for c in found.columns}) == 2
