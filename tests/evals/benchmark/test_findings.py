"""Multi-label sets: a finding of chest X-rays is present or absent, by pairs of prompts."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver
from helpers.html_page import Page
from helpers.small_model import write_export
from helpers.suite_archive import CHEXPERT_LABELS, NIH_LABELS, VINDR_LABELS, write_chest
from sklearn import metrics as sk

from input_pipeline.io import images as image_files
from input_pipeline.io.errors import ConfigError, CorpusError
from unimed_jax import evaluate
from unimed_jax.evals.benchmark import finding_tables, images, run
from unimed_jax.evals.benchmark import spec as suite_files
from unimed_jax.inference import dual_encoder

CHEST = suite_files.load_suite("chest")
LABELS = {"chexpert14": CHEXPERT_LABELS, "nih14": NIH_LABELS, "vindr": VINDR_LABELS}


def of_family(family: str) -> list[suite_files.SetSpec]:
    return [spec for spec in CHEST.sets if spec.family == family]


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("chest")
    return root, write_chest(root)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), text={"context_length": 32})


def opened(root: Path, family: str) -> finding_tables.FindingTable:
    layout = of_family(family)[0].layout
    assert isinstance(layout, suite_files.FindingsLayout)
    table = images.find(layout, root)
    assert table is not None
    return finding_tables.open_table(layout, root, table)


# --- files --------------------------------------------------------------------------------------


def test_the_suite_has_the_findings_of_their_owners():
    names = {family: [s.finding for s in of_family(family)] for family in LABELS}
    assert names["chexpert14"] == list(CHEXPERT_LABELS)
    assert names["nih14"] == list(NIH_LABELS)
    left_out = {"Other lesion", "Other diseases"}
    assert set(names["vindr"]) == set(VINDR_LABELS) - left_out
    five = {"Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"}
    assert {s.finding for s in of_family("chexpert5")} == five
    counts = {s.family: s.num_images for s in CHEST.sets}
    assert counts == {"chexpert5": 202, "chexpert14": 202, "nih14": 25596, "vindr": 3000}
    for spec in CHEST.sets:
        assert spec.prompts.classes == ("absent", "present") and spec.metric == "auc"
        absent, present = (c.prompts for c in spec.classes)
        assert len(absent) == len(present) == 4  # pairs


@pytest.mark.parametrize("family", list(LABELS))
def test_each_layout_is_read(family, chest):
    root, truth = chest
    ids, labels = truth[family]
    table = opened(root, family)
    assert list(table.images.ids) == ids
    for spec in of_family(family):
        rows, found = table.of_finding(spec.finding)
        assert rows.tolist() == list(range(len(ids)))
        expected = labels[:, LABELS[family].index(spec.finding)]
        np.testing.assert_array_equal(found, expected, spec.key)
    data = next(iter(table.images.read(1, 2)))
    assert image_files.decode(data)[0].size == (14, 12)


def test_patients_are_groups(chest):
    root, _ = chest
    assert opened(root, "chexpert14").images.groups[:3] == ("patient64541",) * 2 + ("patient64542",)
    assert opened(root, "nih14").images.groups[:4] == ("3", "3", "3", "4")


def test_uncertain_and_empty_cells(chest, tmp_path):
    """An uncertain finding is left out of that finding; what is not mentioned is absent."""
    shutil.copytree(chest[0], tmp_path, dirs_exist_ok=True)
    table = tmp_path / "CheXpert-v1.0-small" / "valid.csv"
    lines = table.read_text().splitlines()
    cells = lines[1].split(",")
    cells[5 + CHEXPERT_LABELS.index("Edema")] = "-1.0"
    cells[5 + CHEXPERT_LABELS.index("Fracture")] = ""
    lines[1] = ",".join(cells)
    table.write_text("\n".join(lines))
    found = opened(tmp_path, "chexpert14")
    rows, labels = found.of_finding("Edema")
    assert rows.tolist() == list(range(1, 12)) and len(labels) == 11
    chosen = found.images.select(rows, labels)
    assert chosen.num_left_out == 1 and chosen.ids == found.images.ids[1:]
    assert list(chosen.read(0, 2)) == list(found.images.read(1, 3))
    rows, labels = found.of_finding("Fracture")
    assert len(rows) == 12 and labels[0] == 0


@pytest.mark.parametrize(
    ("family", "file", "old", "new", "message"),
    [
        ("nih14", "nih/test_list.txt", "00000003_000.png", "00000099_000.png",
         r"test_list.txt lists 14 images, of which .*v2020.csv has 13"),
        ("nih14", "nih/Data_Entry_2017_v2020.csv", "Finding Labels", "Findings",
         r"has no column 'Finding Labels'; found Image Index, Findings"),
        ("chexpert14", "CheXpert-v1.0-small/valid.csv", "64542/study1", "64549/study1",
         r"valid.csv, row 3: image CheXpert.*64549/study1/view1_frontal.jpg: no such file"),
        ("chexpert14", "CheXpert-v1.0-small/valid.csv", "CheXpert-v1.0-small/valid/patient64541",
         "../elsewhere/patient64541", r"row 1: image \.\./elsewhere.*: no such file"),
        ("vindr", "vindr-cxr/annotations/image_labels_test.csv", f"{1:032x}", f"{0:032x}",
         r"row 2: image 0{32}: it is in .*row 1, too"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_named(family, file, old, new, message, chest, tmp_path):
    shutil.copytree(chest[0], tmp_path, dirs_exist_ok=True)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(CorpusError, match=message):
        opened(tmp_path, family)


def test_a_finding_that_is_uncertain_everywhere_is_an_error_of_its_own(chest, tmp_path):
    shutil.copytree(chest[0], tmp_path, dirs_exist_ok=True)
    table = tmp_path / "CheXpert-v1.0-small" / "valid.csv"
    header, *lines = table.read_text().splitlines()
    column = header.split(",").index("Edema")
    rows = [line.split(",") for line in lines]
    uncertain = [",".join([*row[:column], "-1.0", *row[column + 1 :]]) for row in rows]
    table.write_text("\n".join([header, *uncertain]))
    found = opened(tmp_path, "chexpert14")
    with pytest.raises(CorpusError, match=r"valid.csv: Edema is uncertain or empty in all 12 rows"):
        found.of_finding("Edema")
    assert len(found.of_finding("Fracture")[0]) == 12


def test_a_wrong_cell_or_column_is_an_error_of_its_finding(chest, tmp_path):
    shutil.copytree(chest[0], tmp_path, dirs_exist_ok=True)
    table = tmp_path / "vindr-cxr" / "annotations" / "image_labels_test.csv"
    text = table.read_text().replace("Rib fracture", "Ribs")
    table.write_text(re.sub(r",[01]\n", ",2\n", text, count=1))
    found = opened(tmp_path, "vindr")
    with pytest.raises(CorpusError, match=r"no column 'Rib fracture'; found image_id, aortic"):
        found.of_finding("Rib fracture")
    with pytest.raises(CorpusError, match=r"row 1: No finding is '2', must be 1, 0, -1 or empty"):
        found.of_finding("No finding")
    assert len(found.of_finding("Edema")[0]) == 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('empty = "absent"', 'empty = "no"', "layout.empty: must be one of present, absent, left"),
        ('images = [".", "chexpert"]', 'images = "."', "must name a folder for each path"),
        ('phrase = "edema"', 'words = "edema"', r"findings\[1\] \(Edema\): unknown key 'words'"),
        ('name = "Edema"', 'name = "Atelectasis"', "findings: need at least one, of different"),
        ("[[findings]]", "[[found]]", "findings: need at least one"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(old, new, message):
    text = (suite_files._folder() / "sets" / "chexpert5.toml").read_text("utf-8")
    text = text.replace("pulmonary edema", "edema")
    assert old in text
    with pytest.raises(ConfigError, match=f"^chexpert5.toml: .*{message}"):
        suite_files.parse_sets(text.replace(old, new).encode(), "chexpert5.toml")


# --- scores -------------------------------------------------------------------------------------


def test_scores_are_those_of_a_plain_loop_and_scikit_learn(checkpoint, chest, tmp_path):
    root, truth = chest
    model = dual_encoder.load(checkpoint)
    chosen = suite_files.load_suite("chest", ["nih14", "chexpert5.edema"])
    assert [s.key for s in chosen.sets][:2] == ["chexpert5.edema", "nih14.atelectasis"]
    found = run.evaluate_suite(model, chosen, root, tmp_path / "cache")
    assert len(found.sets) == 15 and not found.failed
    ids, labels = truth["nih14"]
    pictures = [image_files.decode((root / name).read_bytes())[0] for name in ids]
    features = np.concatenate([model.encode_image(p) for p in pictures]).astype(np.float64)
    scores: dict[str, list[float]] = {"auc": [], "auprc": [], "f1": []}
    for r in found.sets[1:]:
        vectors = [model.encode_text(c.prompts).astype(np.float64).mean(0) for c in r.spec.classes]
        absent, present = (features @ (v / np.linalg.norm(v)) for v in vectors)
        actual = labels[:, NIH_LABELS.index(r.spec.finding)]
        expected = {
            "auc": sk.roc_auc_score(actual, present - absent),
            "auprc": sk.average_precision_score(actual, present - absent),
            "f1": sk.f1_score(actual, present > absent),
        }
        for name, value in expected.items():
            assert r.scored.values[name] == pytest.approx(value, abs=1e-6), (r.spec.key, name)
            low, high = r.scored.intervals[name]
            assert low <= r.scored.values[name] <= high
            scores[name].append(value)
    for name, value in found.family_means()["nih14"].items():
        assert value == pytest.approx(np.mean(scores[name]), abs=1e-6)
    mean = found.means(leak_free=False)["nih14"]
    assert mean["value"] == pytest.approx(np.mean(scores["auc"])) and len(mean["over"]) == 14
    assert found.means(leak_free=True)["nih14"]["over"] == []  # UniMed trains on NIH


@pytest.mark.slow
def test_the_command_embeds_a_family_once_and_reports_each_finding(checkpoint, chest, tmp_path,
                                                                   capsys):  # fmt: skip
    """One finding has another column: it fails, and the others are scored."""
    root = tmp_path / "sets"
    shutil.copytree(chest[0], root)
    table = root / "vindr-cxr" / "annotations" / "image_labels_test.csv"
    table.write_text(table.read_text().replace("Rib fracture", "Ribs"))
    prompts = tmp_path / "p.json"
    classes = {"no": ["no tube"], "yes": ["a tube"]}
    tasks = {"chexpert14.support_devices": {"field": "label", "classes": classes}}
    prompts.write_text(json.dumps({"name": "mine", "version": 1, "tasks": tasks}))
    evaluate.flags.FLAGS.mark_as_parsed()
    flags = {"suite": "chest", "data": str(root), "prompts": str(prompts), "protocol": "ours"}
    flags |= {"checkpoint": str(checkpoint), "out": str(tmp_path / "out"), "suite.sets": []}
    with (
        flagsaver.flagsaver(**flags),
        pytest.raises(evaluate.UserError, match=r"failed of vindr.rib_fracture: .*no column 'Rib"),
    ):
        evaluate._main(["evaluate"])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.endswith(" images")] == [
        "chexpert5: 12 images", "chexpert14: 12 images", "nih14: 14 images", "vindr: 8 images"
    ]  # fmt: skip
    assert "mean over the findings of nih14: auc " in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["sets"]) == 58
    assert set(results["families"]) == {"chexpert5", "chexpert14", "nih14", "vindr"}
    assert results["families"]["nih14"].keys() == {"auc", "auprc", "f1"}
    devices = next(s for s in results["sets"] if s["dataset"] == "chexpert14.support_devices")
    assert devices["prompts"]["classes_by_order"] == ["no", "yes"]
    assert devices["as_published"]["auprc"]["interval"][0] <= devices["metrics"]["auprc"]
    header = (tmp_path / "out" / "results.csv").read_text().splitlines()[0]
    assert "auprc" in header.split(",")
    page = Page((tmp_path / "out" / "report.html").read_text())
    row = next(r for r in page.rows if r[:2] == ["nih14", "Pleural Thickening"])
    assert re.fullmatch(r"\d+ of 14", row[5])
    assert ["nih14", "mean of 14"] in [row[:2] for row in page.rows]


def test_where_lists_a_family_once(chest, capsys):
    evaluate.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(where=True, list=False, suite="chest", data=str(chest[0])):
        evaluate._main(["evaluate"])
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [
        "chexpert5: CheXpert's five competition findings, validation part, present",
        "chexpert14: CheXpert's fourteen labels, validation part, present",
        "nih14: NIH ChestX-ray14, official test list, present",
        "vindr: VinDr-CXR, test part, present",
    ]
