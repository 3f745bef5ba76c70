"""The benchmark suite on generated data in all 21 layouts, run by the command."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver
from helpers.html_page import Page
from helpers.small_model import write_export
from helpers.suite_archive import write_archive
from sklearn.metrics import roc_auc_score

from input_pipeline.io import images as image_files
from input_pipeline.io.errors import ConfigError, CorpusError, UserError
from unimed_jax import evaluate
from unimed_jax.evals.benchmark import images as set_files
from unimed_jax.evals.benchmark import report
from unimed_jax.evals.benchmark import results as suite_results
from unimed_jax.evals.benchmark import run as suite
from unimed_jax.evals.benchmark import spec as suite_files
from unimed_jax.inference import dual_encoder

UNIMED21 = suite_files.load_suite("unimed21")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small export with a character tokenizer, so that different prompts differ."""
    return write_export(tmp_path_factory.mktemp("export"), text={"context_length": 32})


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_archive(root)
    return root


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> dual_encoder.Model:
    return dual_encoder.load(checkpoint)


def run(checkpoint: Path, archive: Path, out: Path, **flags: object) -> dict:
    """Runs the command in this process; returns results.json."""
    given = {"suite": "unimed21", "suite.sets": [], "protocol": "ours", "prompts": ""}
    given |= {"exclude": "", "cache": "", "list": False, "on_bad_image": None} | flags
    evaluate.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(checkpoint=str(checkpoint), data=str(archive), out=str(out), **given):
        evaluate._main(["evaluate"])
    return json.loads((out / "results.json").read_text())


def by_key(results: dict) -> dict[str, dict]:
    return {entry["dataset"]: entry for entry in results["sets"]}


# --- the files of the sets ----------------------------------------------------------------------


def test_the_suite_is_the_published_one():
    counts = {s.key: {len(c.prompts) for c in s.classes} for s in UNIMED21.sets}
    assert len(counts) == 21
    assert counts["dr_regular"] == {15} and counts["refuge_retina"] == {10, 5}
    binary = {s.key for s in UNIMED21.sets if s.metric == "auc"}
    assert binary == {"rsna_pneumonia", "acl_mri", "meniscal_mri", "breast_us", "thyroid_us",
                      "refuge_retina"}  # fmt: skip
    modalities = [s.modality for s in UNIMED21.sets]
    weights = {"xray": 2, "ct": 3, "mri": 2, "ultrasound": 2, "fundus": 4, "histopathology": 8}
    assert {m: modalities.count(m) for m in modalities} == weights
    for model, row in UNIMED21.published.items():  # the means follow from these values
        if len(row) > 1:
            mean = sum(weights[m] * row[m] for m in weights) / 21
            assert mean == pytest.approx(row["mean"], abs=0.02), model


def test_no_two_classes_of_a_set_share_a_prompt():
    for name in suite_files.suite_names():
        for spec in suite_files.load_suite(name).sets:
            sentences = [p.lower() for c in spec.classes for p in c.prompts]
            shared = {s for s in sentences if sentences.count(s) > 1}
            assert not shared, (spec.key, shared)


def edited(old: str, new: str) -> bytes:
    text = (suite_files._folder() / "sets" / "BACH.toml").read_text("utf-8")
    assert old in text
    return text.replace(old, new, 1).encode()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title", "titel", "BACH.toml: unknown key 'titel'; known are title, modality"),
        ("metric = ", "notes2 = ", "unknown key 'notes2'"),
        ('metric = "accuracy"', "", "misses 'metric'"),
        ('metric = "accuracy"', 'metric = "auc"', "metric: must be accuracy or, for two classes"),
        ('"histopathology"', '"pathology"', "modality: 'pathology'; valid: xray, ct, mri"),
        ('kind = "csv"', 'kind = "tsv"', "layout.kind must be one of csv, files"),
        ('"maybe"', '"no"', "layout.header: is 'no'; valid: always, maybe"),
        ("image = 0", 'image = "name"', "with header = 'maybe', columns are positions"),
        ('access = "registration"', 'access = "free"', "source.access: must be one of public, reg"),
        ("[source]", "[sauce]", "unknown key 'sauce'"),
        ('images = "BACH/{label}"', 'images = ["a", "b"]', "must name a folder for each path"),
        ('label = "InSitu"', 'label = "Benign"', "of different names and labels"),
        (
            'phrase = "a benign breast lesion"',
            "",
            r"classes\[0\] \(benign\): phrase and templates need each other",
        ),
        ("[layout]", "[layout", "not valid TOML"),
    ],
)
def test_a_wrong_set_file_is_named_with_its_key(old, new, message):
    with pytest.raises(ConfigError, match=message) as error:
        suite_files.parse_sets(edited(old, new), "BACH.toml")
    assert str(error.value).startswith("BACH.toml: ")


# --- layouts ------------------------------------------------------------------------------------


def spec_of(key: str) -> suite_files.SetSpec:
    for name in suite_files.suite_names():
        for spec in suite_files.load_suite(name).sets:
            if spec.key == key:
                return spec
    raise KeyError(key)


def test_every_layout_is_read(archive):
    for name in suite_files.suite_names():
        for spec in suite_files.load_suite(name).sets:
            if spec.family:  # test_findings.py
                continue
            if spec.key == "colorectal_histology":
                assert set_files.missing(spec, archive)
                continue
            assert set_files.missing(spec, archive) == ""
            images = set_files.open_set(spec, archive)
            if spec.key != "radimagenet":
                assert set(images.labels) == set(range(len(spec.classes))), spec.key
            assert sum(1 for _ in images.read(0, len(images.ids))) == len(images.ids)


def test_labels_are_those_of_the_files(archive):
    def classes(key: str) -> dict[str, str]:
        spec = spec_of(key)
        images = set_files.open_set(spec, archive)
        names = (spec.classes[i].name for i in images.labels)
        return dict(zip(images.ids, names, strict=True))

    chexpert = classes("chexpert-5x200")
    first = "chexpert/CheXpert-v1.0-small/train/patient00/study1/view1_frontal.jpg"
    assert chexpert[first] == "Cardiomegaly"  # the first column of the file, not of the labels
    assert classes("PCAM")["PCam_Test_preprocessed/3_1.png"] == "metastasis"
    assert classes("BACH")["BACH/Invasive/b2.tif"] == "invasive carcinoma"
    assert len(classes("BACH")) == 4  # the first line is no header
    assert classes("CT_axial")["organs_axial/images/000008.tiff"] == "bladder"
    assert classes("refuge_retina")["REFUGE-Training400/g0000.jpg"] == "glaucoma"
    skin = classes("skin_cancer")
    assert skin["skin_tumor/data/tiles/15.jpg"] == "naevus"
    assert len(skin) == 16  # the row of the training part is skipped
    assert classes("SICAPv2")["SICAPv2/images/p2_2.jpg"] == "cribriform patterns"


def test_what_is_not_in_a_set_is_counted(archive):
    assert set_files.open_set(spec_of("NCK_CRC"), archive).ignored == {"BACK": 1}
    assert set_files.open_set(spec_of("Osteo"), archive).ignored == {"viable: non-viable": 1}
    odir = set_files.open_set(spec_of("odir_retina"), archive)
    assert (len(odir.ids), odir.counts.sum()) == (6, 7)
    assert odir.groups[0] == "00"
    assert set_files.open_set(spec_of("acl_mri"), archive).groups[2:4] == ("1", "1")


@pytest.mark.parametrize(
    ("key", "file", "old", "new", "message"),
    [
        ("acl_mri", "acl_mri/test_fold1.csv", "yes", "maybe",
         r"test_fold1.csv, line 3: label 'maybe' is none of acl_mri's: no, yes"),
        ("acl_mri", "acl_mri/test_fold1.csv", "images/0", "images/x",
         r"line 2: image .*images/x_sagittal.*: no such file"),
        ("acl_mri", "acl_mri/test_fold1.csv", ",no", "", r"line 2: 1 fields, expected 2"),
        ("acl_mri", "acl_mri/test_fold1.csv", "images/0", "../../elsewhere/0",
         r"line 2: image .*elsewhere.*: it is outside the data root"),
        ("acl_mri", "acl_mri/test_fold1.csv", "images/0_sagittal_1", "x/../images/0_sagittal_0",
         r"line 3: 0_sagittal_0.000000.png has label 'yes', but 'no' in .*line 2"),
        ("CT_axial", "organs_axial/annotations.csv", "filepath,split,", "filepath,part,",
         r"annotations.csv has no column 'split'; found filepath, part"),
        ("CT_axial", "organs_axial/annotations.csv", ",tasks/organ label", "",
         r"annotations.csv has no column 'tasks/organ label'; found filepath, split$"),
        ("CT_axial", "organs_axial/annotations.csv", "test,10", "test,11",
         r"line 13: label '11' is none of CT_axial's: 0, 1"),
        ("chexpert-5x200", "chexpert-5x200.csv", "F,1.0,0.0", "F,1.0,1.0",
         r"line 3: exactly one class column must be 1; found Cardiomegaly=1, Edema=1"),
        ("chexpert-5x200", "chexpert-5x200.csv", "F,1.0", "F,no", "must hold numbers"),
        ("odir_retina", "08_ODIR200x3.csv", "/10_left.jpg,['x'],['pa", "/00_left.jpg,['x'],['pa",
         r"line 4: 00_left.jpg has label 'pathologic myopia', but 'normal' in .*line 2"),
        ("thyroid_us", "thyroid_us/thyroid_test_fold1.csv", "benign", '"benign', "unexpected end"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named(key, file, old, new, message, archive, tmp_path):
    shutil.copytree(archive, tmp_path / "sets")
    text = (tmp_path / "sets" / file).read_text()
    assert old in text
    (tmp_path / "sets" / file).write_text(text.replace(old, new, 1))
    with pytest.raises(CorpusError, match=message):
        set_files.open_set(spec_of(key), tmp_path / "sets")


def test_a_set_without_images_is_named(archive, tmp_path):
    shutil.copytree(archive / "acl_mri", tmp_path / "acl_mri")
    (tmp_path / "acl_mri" / "test_fold1.csv").write_text("filename,acl_label\n")
    with pytest.raises(CorpusError, match=r"test_fold1.csv holds no image of acl_mri"):
        set_files.open_set(spec_of("acl_mri"), tmp_path)
    (tmp_path / "PCam_Test_preprocessed").mkdir()
    with pytest.raises(CorpusError, match=r"PCam_Test_preprocessed holds no image of PCAM"):
        set_files.open_set(spec_of("PCAM"), tmp_path)


def test_a_file_of_an_unknown_class_is_named(archive, tmp_path):
    shutil.copytree(archive / "CRC-VAL-HE-7K", tmp_path / "CRC-VAL-HE-7K")
    (tmp_path / "CRC-VAL-HE-7K" / "ADI").rename(tmp_path / "CRC-VAL-HE-7K" / "ADX")
    with pytest.raises(CorpusError, match=r"ADX/ADI-1.tif: label 'ADX' is none of NCK_CRC's"):
        set_files.open_set(spec_of("NCK_CRC"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "dataset", "split", "name"),
    [
        ("PCAM", "patch_camelyon", "test", "id"),
        ("colorectal_histology", "colorectal_histology", "train", "filename"),
    ],
)
def test_a_set_that_tfds_prepared(key, dataset, split, name, tmp_path):
    """TFDS' own features and label names; only the download is replaced, by other images."""
    import tensorflow_datasets as tfds

    published = tfds.builder_cls(dataset)
    shape = {"patch_camelyon": (96, 96, 3), "colorectal_histology": (150, 150, 3)}[dataset]
    num_classes = len(spec_of(key).classes)
    rng = np.random.default_rng(0)
    samples = [
        {"image": rng.integers(0, 256, shape, np.uint8), "label": i % num_classes, name: str(i)}
        for i in range(2 * num_classes + 1)
    ]

    class WithoutDownload(published, skip_registration=True):
        name = dataset

        def _split_generators(self, dl_manager):
            return {"validation": enumerate(samples[:1]), split: enumerate(samples[1:])}

    builder = WithoutDownload(data_dir=tmp_path)
    builder.download_and_prepare()
    names = builder.info.features["label"].names
    if key == "colorectal_histology":  # the order of our classes is that of the labels
        assert [c.label.lower() for c in spec_of(key).classes] == names
    assert set_files.missing(spec_of(key), tmp_path) == ""
    images = set_files.open_set(spec_of(key), tmp_path)
    count = 2 * num_classes
    assert len(images.ids) == count and images.source.startswith(f"TFDS {dataset}/")
    encoded = list(images.read(0, count))
    pictures = [image_files.decode(data)[0] for data in encoded]
    stored = {sample["image"].tobytes(): sample["label"] for sample in samples[1:]}
    found = {p.tobytes(): int(label) for p, label in zip(pictures, images.labels, strict=True)}
    assert found == stored
    assert list(images.read(1, 3)) == encoded[1:3]
    assert images.ids[3] == f"{dataset}/{split}/00000003"


# --- the command --------------------------------------------------------------------------------


@pytest.mark.slow
def test_scores_are_those_of_a_plain_loop(checkpoint, model, archive, tmp_path):
    results = run(checkpoint, archive, tmp_path)
    assert len(results["sets"]) == 21 and results["absent"] == {}
    for spec in UNIMED21.sets:
        images = set_files.open_set(spec, archive)
        pictures = [image_files.decode(data)[0] for data in images.read(0, len(images.ids))]
        features = np.stack([model.encode_image(p)[0] for p in pictures]).astype(np.float64)
        vectors = []
        for c in spec.classes:
            vector = model.encode_text(c.prompts).astype(np.float64).mean(0)
            vectors.append(vector / np.linalg.norm(vector))
        cosines = features @ np.stack(vectors).T
        entry = by_key(results)[spec.key]
        accuracy = np.mean(cosines.argmax(1) == images.labels)
        assert entry["metrics"]["acc1"] == pytest.approx(accuracy), spec.key
        if len(spec.classes) == 2:
            area = roc_auc_score(images.labels, cosines[:, 1] - cosines[:, 0])
            assert entry["metrics"]["auc"] == pytest.approx(area), spec.key
        assert entry["as_published"]["num_images"] == len(images.ids)


@pytest.mark.slow
def test_what_the_results_say(checkpoint, archive, tmp_path):
    sets = tmp_path / "sets"
    shutil.copytree(archive, sets)
    shutil.rmtree(sets / "BACH")
    results = run(checkpoint, sets, tmp_path / "out")
    assert results["absent"] == {"BACH": "BACH/microscopy_ground_truth.csv"}
    published, leak_free = (results["means"][k]["mean"] for k in ("as_published", "leak_free"))
    assert len(published["over"]) == 20 and published["without"].keys() == {"BACH"}
    overlapping = {"chexpert-5x200", "rsna_pneumonia", "odir_retina"}
    assert leak_free["without"].keys() == {"BACH", *overlapping}
    entries = by_key(results)
    values = [entries[k]["metrics"][entries[k]["metric"]] for k in published["over"]]
    assert published["value"] == pytest.approx(np.mean(values))
    assert results["means"]["leak_free"]["xray"]["value"] is None
    assert results["metrics"]["as_published/mean_over_20_of_21_sets"] == published["value"]
    assert results["metrics"]["as_published/xray"] > 0
    assert results["metrics"]["leak_free/xray_over_0_of_2_sets"] is None
    assert "thyroid_us" not in results["unexpected_counts"]  # 72, as expected
    assert results["unexpected_counts"]["acl_mri"] == "6 rows, expected 208"
    assert entries["NCK_CRC"]["ignored_rows"] == {"BACK": 1}
    low, high = entries["thyroid_us"]["as_published"]["auc"]["interval"]
    assert low <= entries["thyroid_us"]["metrics"]["auc"] <= high
    prompts = entries["CT_axial"]["prompts"]
    assert len(prompts["single_prompts"]) == 10
    assert prompts["min"] <= prompts["median"] <= prompts["max"]
    assert np.sum(entries["CT_axial"]["confusion_matrix"]) == 11

    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert float(rows[0]["acc1"]) == entries["chexpert-5x200"]["metrics"]["acc1"]
    page = Page((tmp_path / "out" / "report.html").read_text())
    text = " ".join(page.text)
    assert "20 of 21 sets" in text and "17 of 21 sets" in text
    assert "6 rows, expected 208" in next(r for r in page.rows if r and r[0] == "acl_mri")
    row = next(r for r in page.rows if r and r[0] == "BACH" and "absent" in r)
    assert row[2] == "absent"
    assert page.images  # wrong predictions


@pytest.mark.slow
def test_protocols_prompts_and_exclusion(checkpoint, archive, tmp_path):
    sets = ["rsna_pneumonia", "odir_retina", "acl_mri"]
    cache = str(tmp_path / "cache")
    common = {"suite.sets": sets, "cache": cache}
    ours = by_key(run(checkpoint, archive, tmp_path / "ours", **common))
    paper = by_key(run(checkpoint, archive, tmp_path / "paper", protocol="paper", **common))
    assert ours["rsna_pneumonia"]["prompts"]["used_per_class"] == [10, 10]
    assert paper["rsna_pneumonia"]["prompts"]["used_per_class"] == [1, 1]
    first = paper["rsna_pneumonia"]["prompts"]["single_prompts"][0]
    assert paper["rsna_pneumonia"]["metrics"]["auc"] == first
    assert ours["odir_retina"]["as_published"]["num_images"] == 6
    assert paper["odir_retina"]["as_published"]["num_images"] == 7
    assert ours["odir_retina"]["duplicate_rows"] == 1
    assert paper["acl_mri"]["metrics"] == ours["acl_mri"]["metrics"]

    classes = {"ACL pathology": ["zz top"], "normal knee": ["abc", "d"]}  # in another order
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps(
            {
                "name": "mine",
                "version": 1,
                "tasks": {"acl_mri": {"field": "label", "classes": classes}},
            }
        )
    )
    listed = tmp_path / "exclude.jsonl"
    listed.write_text('{"id": "08_ODIR-5K/preprocessed_images/00_left.jpg", "reason": "seen"}\n')
    results = run(
        checkpoint, archive, tmp_path / "mine", prompts=str(file), exclude=str(listed), **common
    )
    mine = by_key(results)
    assert mine["acl_mri"]["prompts"]["from"] == "--prompts"
    assert mine["acl_mri"]["prompts"]["used_per_class"] == [2, 1]
    assert mine["acl_mri"]["prompts"]["sha256"] != ours["acl_mri"]["prompts"]["sha256"]
    assert mine["odir_retina"]["prompts"]["from"] == "packaged"
    assert mine["odir_retina"]["leak_free"]["num_images"] == 5
    assert mine["odir_retina"]["as_published"] == ours["odir_retina"]["as_published"]
    assert results["means"]["leak_free"]["mean"]["over"] == ["acl_mri", "odir_retina"]
    without = results["means"]["leak_free"]["mean"]["without"]
    assert len(without) == 19 and without["BACH"] == "not among --suite.sets"
    assert "lists none of its images" in without["rsna_pneumonia"]


@pytest.mark.slow
def test_embeddings_are_computed_once(model, archive, tmp_path, monkeypatch):
    chosen = suite_files.load_suite("unimed21", ["acl_mri", "PCAM"])
    sets = tmp_path / "sets"
    shutil.copytree(archive, sets)

    def go() -> tuple[suite.SuiteResult, int]:
        seen = []
        encode = dual_encoder.Model.encode_pixels

        def counting(self, pixels, **options):
            pixels = list(pixels)
            seen.extend(pixels)
            return encode(self, pixels, **options)

        with monkeypatch.context() as patch:
            patch.setattr(dual_encoder.Model, "encode_pixels", counting)
            return suite.evaluate_suite(model, chosen, sets, tmp_path / "cache"), len(seen)

    (first, computed), (second, again) = go(), go()
    assert (computed, again) == (10, 0)
    for a, b in zip(first.sets, second.sets, strict=True):
        np.testing.assert_array_equal(a.result.logits, b.result.logits)
    files = (sets / "PCam_Test_preprocessed").iterdir()
    small, *_, large = sorted(files, key=lambda path: path.stat().st_size)
    large.write_bytes(small.read_bytes().ljust(large.stat().st_size, b"\0"))  # same size
    third, third_computed = go()
    assert third_computed == 4  # the set with the changed file
    assert third.sets[1].digest != first.sets[1].digest
    assert third.sets[0].digest == first.sets[0].digest
    logits = dict(zip(third.sets[1].result.ids, third.sets[1].result.logits, strict=True))
    now, original = (logits[f"PCam_Test_preprocessed/{path.name}"] for path in (large, small))
    np.testing.assert_allclose(now, original, atol=1e-5)
    next((tmp_path / "cache").rglob("PCAM/*.npz")).write_bytes(b"PK torn")
    fourth, _ = go()  # the set that fails is named, and the other is scored
    assert "00000000.npz is not a file of embeddings, delete it" in fourth.failed["PCAM"]
    assert [found.spec.key for found in fourth.sets] == ["acl_mri"]


def test_an_image_that_does_not_decode_is_counted_or_stops(model, archive, tmp_path):
    shutil.copytree(archive / "acl_mri", tmp_path / "acl_mri")
    image = tmp_path / "acl_mri" / "images" / "1_sagittal_2.000000.png"
    image.write_bytes(image.read_bytes()[:40])
    counting = suite_files.load_suite("unimed21", ["acl_mri"])
    assert counting.on_bad_image == "count"
    found = suite.evaluate_suite(model, counting, tmp_path, tmp_path / "cache")
    (bad,) = found.sets[0].bad_images
    assert bad.id == "acl_mri/images/1_sagittal_2.000000.png"
    assert bad.place.endswith("test_fold1.csv, line 4")
    assert bad.reason == "not an image, or of an unknown format"  # its first 40 bytes are left
    result = found.sets[0].result
    assert (len(result.ids), result.num_left_out) == (5, 1) and bad.id not in result.ids
    assert found.means(leak_free=False)["mri"]["incomplete"] == ["acl_mri"]

    report.write(tmp_path / "out", found, suite_results.ModelName("ViT", "x"), {})
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["bad_images"]["acl_mri"][0]["place"] == bad.place
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert ["acl_mri", bad.id, bad.place, bad.reason] in page.rows
    assert "1 incomplete" in " ".join(page.text)

    stopping = dataclasses.replace(counting, on_bad_image="stop")
    with pytest.raises(CorpusError, match=r"1 of 6 images do not decode; first .*line 4: image"):
        suite.evaluate_suite(model, stopping, tmp_path, tmp_path / "cache")
    for other in image.parent.iterdir():
        other.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"6 of 6 images do not decode; .*is empty"):
        suite.evaluate_suite(model, counting, tmp_path, tmp_path / "cache")


def test_mistakes_of_the_command_line(checkpoint, archive, tmp_path):
    def message(**flags: object) -> str:
        with pytest.raises(UserError) as error:
            run(checkpoint, flags.pop("data", archive), tmp_path / "out", **flags)
        return str(error.value)

    assert "unimed21 has no such set; it has chexpert" in message(**{"suite.sets": ["nih"]})
    assert "no such folder" in message(data=tmp_path / "nowhere")
    assert "holds none of the sets" in message(data=tmp_path)
    wrong = {"field": "label", "classes": {"normal": ["a"], "torn": ["b"]}}
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"name": "m", "version": 1, "tasks": {"acl": wrong}}))
    expected = "p.json: tasks.acl: no set of a suite; unimed21 has chexpert-5x200, rsna"
    assert expected in message(prompts=str(file))


def test_the_list(archive, tmp_path, capsys):
    evaluate.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(list=True, suite="unimed21", data=str(archive)):
        evaluate._main(["evaluate"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21 and all(" present " in line for line in lines)
    with flagsaver.flagsaver(list=True, suite="unimed21", data=str(tmp_path)):
        evaluate._main(["evaluate"])
    assert (
        "absent (acl_mri/test_fold1.csv or RadImageNet/acl/dataframe/test_fold1.csv)"
        in capsys.readouterr().out
    )
