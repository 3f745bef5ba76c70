"""What the published evaluation does around the model: tables, prompts, pixels (parity sheet)."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver
from helpers.html_page import Page
from helpers.small_model import write_export
from helpers.suite_archive import Archive, write_archive
from PIL import Image

from input_pipeline.io import images as image_files
from input_pipeline.io.errors import ConfigError, CorpusError
from unimed_jax import evaluate
from unimed_jax.evals.benchmark import images as set_files
from unimed_jax.evals.benchmark import report, run, set_prompts
from unimed_jax.evals.benchmark import results as suite_results
from unimed_jax.evals.benchmark import spec as suite_files
from unimed_jax.evals.benchmark.image_embeddings import published_pixels
from unimed_jax.evals.failures import EvaluationFailed
from unimed_jax.evals.prompt_sets import parse_prompts
from unimed_jax.inference import dual_encoder
from unimed_jax.inference.dual_encoder import preprocess

UNIMED21 = suite_files.load_suite("unimed21")
SPECS = {spec.key: spec for name in suite_files.suite_names()
         for spec in suite_files.load_suite(name).sets}  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_archive(root)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), text={"context_length": 32})


def rename_columns(table: Path, names: dict[str, str]) -> None:
    header, *rows = table.read_text().splitlines(keepends=True)
    for old, new in names.items():
        assert old in header
        header = header.replace(old, new)
    table.write_text("".join([header, *rows]))


# --- tables -------------------------------------------------------------------------------------

RENAMED = [
    ("CT_axial", "organs_axial/annotations.csv", {"filepath": "path", "tasks/organ": "organ"},
     ("annotations.csv has no column 'filepath'; column 1, 'path', was read for it",
      "annotations.csv has no column 'tasks/organ label'; column 3, 'organ label', was read "
      "for it")),
    ("dr_regular", "dr_regular/annotations.csv", {"tasks/DR level": "grade"},
     ("annotations.csv has no column 'tasks/DR level'; column 3, 'grade', was read for it",)),
    ("skin_cancer", "skin_tumor/data/tiles-v2.csv", {"file": "tile", "class": "tissue"},
     ("tiles-v2.csv has no column 'file'; column 2, 'tile', was read for it",
      "tiles-v2.csv has no column 'class'; column 3, 'tissue', was read for it")),
    ("odir_retina", "08_ODIR200x3.csv", {"categories": "labels"},
     ("08_ODIR200x3.csv has no column 'categories'; column 4, 'labels', was read for it",)),
]  # fmt: skip


@pytest.mark.parametrize(("key", "table", "names", "notes"), RENAMED)
def test_columns_of_other_names_are_read_by_position(key, table, names, notes, archive, tmp_path):
    shutil.copytree(archive, tmp_path / "sets")
    rename_columns(tmp_path / "sets" / table, names)
    expected = set_files.open_set(SPECS[key], archive)
    found = set_files.open_set(SPECS[key], tmp_path / "sets")
    assert expected.notes == () and found.notes == notes
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_columns_are_read_by_name_in_any_order(archive, tmp_path):
    """MedIMeta's own writer puts several tasks before what we need, and others behind it."""
    shutil.copytree(archive / "organs_axial", tmp_path / "organs_axial")
    Archive(tmp_path).table(
        "organs_axial/annotations.csv",
        ("split", "tasks/side", "original_filepath", "tasks/organ label", "filepath"),
        ("test", "1", "volume-7.nii", "3", "images/000000.tiff"),
        ("test", "0", "volume-7.nii", "10", "images/000001.tiff"),
        ("train", "0", "volume-9.nii", "0", "images/000002.tiff"),
    )
    found = set_files.open_set(SPECS["CT_axial"], tmp_path)
    assert found.labels.tolist() == [3, 10] and found.notes == ()
    assert found.groups == ("volume-7.nii", "volume-7.nii")


def test_intervals_are_by_patient_where_a_table_has_patients(archive, tmp_path):
    assert set(SPECS["meniscal_mri"].layout.group) == set(SPECS["acl_mri"].layout.group)
    assert set_files.open_set(SPECS["meniscal_mri"], archive).groups == (
        "0",
        "0",
        "1",
        "1",
        "2",
        "2",
    )
    for key, folder in (("CT_coronal", "organs_coronal"), ("dr_regular", "dr_regular")):
        shutil.copytree(archive / folder, tmp_path / folder)
        table = tmp_path / folder / "annotations.csv"
        header, *rows = table.read_text().splitlines()
        with_patients = [f"{header},original_filepath,patient_id"]
        with_patients += [
            f"{row},v{i}.nii,{'' if i == 1 else i // 3}" for i, row in enumerate(rows)
        ]
        table.write_text("\n".join(with_patients))
        groups = set_files.open_set(SPECS[key], tmp_path).groups
        assert groups[1:3] == ("0", "1")  # the patient rather than the volume
        assert groups[0] == f"{folder}/images/000000.tiff"  # an empty cell: its own group


def test_four_sets_are_read_from_a_clone_of_radimagenet(archive, tmp_path):
    clone = tmp_path / "RadImageNet"
    folders = {"acl_mri": "acl", "meniscal_mri": "meniscus", "breast_us": "breast",
               "thyroid_us": "thyroid"}  # fmt: skip
    for key, folder in folders.items():
        shutil.copytree(archive / key, clone / folder)
        (clone / folder / "dataframe").mkdir()
        (table,) = (clone / folder).glob("*.csv")
        table.rename(clone / folder / "dataframe" / table.name)
        expected = set_files.open_set(SPECS[key], archive)
        found = set_files.open_set(SPECS[key], tmp_path)
        assert [i.removeprefix(f"RadImageNet/{folder}/") for i in found.ids] == [
            i.removeprefix(f"{key}/") for i in expected.ids
        ]
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert SPECS[key].source.access == "public"


def write_bach(root: Path, count: int, header: bool) -> None:
    a, labels = Archive(root), ("Benign", "InSitu", "Invasive", "Normal")
    rows = [(f"b{i:03d}.tif", labels[i % 4]) for i in range(count)]
    for name, label in rows:
        a.image(f"BACH/{label}/{name}")
    a.table("BACH/microscopy_ground_truth.csv", *([("image", "class")] if header else []), *rows)


@pytest.mark.parametrize("header", [False, True])
def test_bach_with_and_without_a_header(header, tmp_path):
    write_bach(tmp_path, 400, header)
    ours = set_files.open_set(SPECS["BACH"], tmp_path)
    published = set_files.open_set(SPECS["BACH"], tmp_path, as_published=True)
    assert len(ours.ids) == 400 and ours.num_left_out == 0
    if header:
        assert published.ids == ours.ids and published.notes == ours.notes
        assert ours.notes == ("the first row of microscopy_ground_truth.csv is a header: image, "
                              "class",)  # fmt: skip
    else:
        assert published.ids == ours.ids[1:] and published.num_left_out == 1
        assert "the published reader takes its first row for one" in published.notes[0]
        assert ours.places[0].endswith("line 1") and published.places[0].endswith("line 2")


def test_a_misspelt_class_in_the_first_row_of_bach_is_not_lost_in_silence(tmp_path):
    """It is taken for a header, so the number of rows tells."""
    write_bach(tmp_path, 8, header=False)
    table = tmp_path / "BACH" / "microscopy_ground_truth.csv"
    table.write_text(table.read_text().replace("b000.tif,Benign", "b000.tif,Bening"))
    found = set_files.open_set(SPECS["BACH"], tmp_path)
    assert len(found.ids) == 7
    assert found.notes == ("the first row of microscopy_ground_truth.csv is a header: b000.tif, "
                           "Bening",)  # fmt: skip


# --- a set that fails ---------------------------------------------------------------------------


def test_one_wrong_table_does_not_stop_the_other_sets(checkpoint, archive, tmp_path, capsys):
    sets = tmp_path / "sets"
    shutil.copytree(archive, sets)
    rename_columns(sets / "organs_axial" / "annotations.csv", {"split": "part"})
    rename_columns(sets / "skin_tumor" / "data" / "SkinTumorSubset.csv", {"file": "tile"})
    chosen = ["acl_mri", "CT_axial", "skin_tumor", "PCAM"]
    out = tmp_path / "out"
    evaluate.flags.FLAGS.mark_as_parsed()
    given = {"suite": "unimed21", "suite.sets": chosen, "protocol": "paper", "data": str(sets)}
    with (
        flagsaver.flagsaver(checkpoint=str(checkpoint), out=str(out), **given),
        pytest.raises(EvaluationFailed) as error,
    ):
        evaluate._main(["evaluate"])
    assert "failed of CT_axial: " in str(error.value)
    assert "annotations.csv has no column 'split'; found filepath, part" in str(error.value)
    results = json.loads((out / "results.json").read_text())
    assert [entry["dataset"] for entry in results["sets"]] == ["acl_mri", "PCAM", "skin_tumor"]
    assert "no column 'split'" in results["failed"]["CT_axial"]
    assert "CT_axial" in results["means"]["as_published"]["mean"]["without"]
    note = "SkinTumorSubset.csv has no column 'file'; column 2, 'tile', was read for it"
    assert results["sets"][2]["files"]["notes"] == [note]
    printed = capsys.readouterr().out
    assert f"skin_tumor: {note}" in printed and "CT_axial failed: " in printed
    page = Page((out / "report.html").read_text())
    assert note in next(" ".join(row) for row in page.rows if row and row[0] == "skin_tumor")


def test_if_every_set_is_wrong_each_is_named(checkpoint, archive, tmp_path):
    for key in ("acl_mri", "breast_us"):
        shutil.copytree(archive / key, tmp_path / key)
        (table,) = (tmp_path / key).glob("*.csv")
        table.write_text("a,b\nc,d\n")
    chosen = suite_files.load_suite("unimed21", ["acl_mri", "breast_us"])
    with pytest.raises(CorpusError, match=r"^acl_mri: .*'d' is none of.*; breast_us: .*'d' is"):
        run.evaluate_suite(dual_encoder.load(checkpoint), chosen, tmp_path, tmp_path / "cache")


@pytest.mark.slow
def test_bach_under_both_protocols(checkpoint, tmp_path):
    """The published evaluation of 60 rows without a header counts 59."""
    write_bach(tmp_path, 60, header=False)
    chosen = suite_files.load_suite("unimed21", ["BACH"])
    model = dual_encoder.load(checkpoint)
    results = {
        protocol: run.evaluate_suite(model, chosen, tmp_path, tmp_path / "c", protocol=protocol)
        for protocol in run.PROTOCOLS
    }
    (ours,), (paper,) = results["ours"].sets, results["paper"].sets
    assert (ours.scored.num_images, paper.scored.num_images) == (60, 59)
    assert paper.count_problem == ours.count_problem == "60 rows, expected 400"
    np.testing.assert_array_equal(paper.result.logits, ours.result.logits[1:])
    entry = suite_results.as_json(results["paper"], suite_results.ModelName("ViT", "x"))["sets"][0]
    assert entry["files"]["rows_left_out"] == 1


# --- prompts ------------------------------------------------------------------------------------


def prompt_file(tasks: dict[str, dict[str, list[str]]]) -> bytes:
    entries = {key: {"field": "label", "classes": classes} for key, classes in tasks.items()}
    return json.dumps({"name": "mine", "version": 1, "tasks": entries}).encode()


def given(tasks: dict[str, dict[str, list[str]]], suite: suite_files.Suite = UNIMED21):
    return set_prompts.from_file(suite, parse_prompts(prompt_file(tasks), "p.json"), "p.json")


def test_our_own_names_and_labels_are_distinct():
    for spec in SPECS.values():
        for names in (spec.prompts.classes, spec.file_labels):
            assert len({set_prompts._plain(name) for name in names}) == len(names), spec.key


@pytest.mark.parametrize(
    ("key", "keys", "order", "by_order"),
    [
        ("acl_mri", ["ACL pathology", "normal knee"], [1, 0], ()),  # our names
        ("acl_mri", ["yes", "no"], [1, 0], ()),  # labels of the files
        ("PCAM", ["1", "0"], [1, 0], ()),  # numbers are labels, too
        ("LC25000_lung", ["Lung-SCC", "lung_aca", "lung N"], [1, 2, 0], ()),
        ("BACH", ["benign", "insitu", "invasive", "normal"], [0, 1, 2, 3], ()),
        ("BACH", ["In situ carcinoma", "benign", "NORMAL", "invasive carcinoma"], [1, 0, 3, 2], ()),
        ("meniscal_mri", ["no", "yes"], [0, 1], ("no", "yes")),
        ("dr_regular", ["no_dr", "mild", "moderate_dr", "severe", "full"], [0, 1, 2, 3, 4],
         ("no_dr", "moderate_dr", "full")),
    ],
)  # fmt: skip
def test_classes_of_a_prompt_file(key, keys, order, by_order):
    """By our names, by the labels of the files, or merely in our order."""
    found = given({key: {name: [f"text of {name}"] for name in keys}})[key]
    assert found.task.classes == SPECS[key].prompts.classes
    assert found.task.prompts == tuple((f"text of {keys[i]}",) for i in order)
    assert found.by_order == by_order and found.origin == "--prompts"


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("acl_mri", ["normal", "partial", "torn"]),  # another number
        ("acl_mri", ["tear", "normal knee"]),  # a name of ours at another place
        ("BACH", ["a", "Benign", "c", "d"]),
    ],
)
def test_classes_that_contradict_the_order_are_an_error(key, keys):
    names = ", ".join(SPECS[key].prompts.classes)
    message = rf"^p.json: tasks.{key}.classes: must be {names}, or as many names of your own in"
    with pytest.raises(ConfigError, match=message):
        given({key: {name: ["text"] for name in keys}})


def test_one_file_serves_all_sets(tmp_path):
    """Those of other suites, and those that were not chosen, are skipped."""
    tasks = {
        key: {c.name: [f"{key} {c.name} {i}" for i in range(2)] for c in spec.classes}
        for key, spec in SPECS.items()
    }
    assert given(tasks).keys() == {spec.key for spec in UNIMED21.sets}
    chosen = suite_files.load_suite("unimed21", ["PCAM", "BACH"])
    found = given(tasks, chosen)
    assert found.keys() == {"PCAM", "BACH"}
    assert found["BACH"].task.prompts[1] == ("BACH in situ carcinoma 0", "BACH in situ carcinoma 1")
    with pytest.raises(
        ConfigError, match=r"tasks.bach: no set of a suite; unimed21 has PCAM, BACH, chex"
    ):
        given({**tasks, "bach": tasks["BACH"]}, chosen)


@pytest.mark.slow
def test_what_is_said_of_classes_taken_in_order(checkpoint, archive, tmp_path, capsys):
    file = tmp_path / "p.json"
    file.write_bytes(prompt_file({"meniscal_mri": {"no": ["abc"], "yes": ["zz"]},
                                  "PCAM": {"0": ["a"], "1": ["b"]}}))  # fmt: skip
    evaluate.flags.FLAGS.mark_as_parsed()
    flags = {"suite": "unimed21", "suite.sets": ["meniscal_mri"], "prompts": str(file)}
    flags |= {"checkpoint": str(checkpoint), "data": str(archive), "out": str(tmp_path / "out")}
    with flagsaver.flagsaver(**flags):
        evaluate._main(["evaluate"])
    assert (
        f"meniscal_mri: {file} names classes otherwise (no, yes); they were taken in our order: "
        "normal knee, meniscal abnormality"
    ) in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())["sets"]
    assert entry["prompts"]["classes_by_order"] == ["no", "yes"]
    assert entry["prompts"]["from"] == "--prompts"


# --- pixels -------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    """A picture with structure, in every mode that a file can have."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    rgb = coarse.resize((120, 90), Image.Resampling.BICUBIC)
    alpha = coarse.convert("L").resize(rgb.size, Image.Resampling.BICUBIC)
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    exif = Image.Exif()
    exif[274] = 6
    return {
        "jpeg": encoded(rgb, "JPEG"),
        "grey": encoded(rgb.convert("L"), "PNG"),
        "cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "palette": encoded(rgb.quantize(64), "PNG"),
        "one_bit": encoded(rgb.convert("1"), "PNG"),
        "rgba": encoded(rgba, "PNG"),
        "grey_alpha": encoded(rgba.convert("LA"), "PNG"),
        "turned": encoded(rgb, "JPEG", exif=exif),
        "frames": encoded(rgb, "TIFF", save_all=True, append_images=[rgb.rotate(90)] * 3),
    }


@pytest.mark.slow
@pytest.mark.parity
def test_published_pixels_are_those_of_torchvision(tmp_path):
    """Bit for bit in all modes, of which some differ where RGB comes first."""
    files = pictures()
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in files.items()}
    np.savez(tmp_path / "in.npz", size=56, **arrays)
    script = Path(__file__).parents[2] / "helpers" / "torch_reference.py"
    command = [sys.executable, script, "resize_crop", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True)
    differs = set()
    with np.load(tmp_path / "out.npz") as expected:
        for name, data in files.items():
            np.testing.assert_array_equal(published_pixels(data, 56), expected[name], name)
            ours = preprocess(image_files.decode(data)[0], 56)
            if not np.array_equal(ours, expected[name]):
                differs.add(name)
    assert differs == set(files) - {"jpeg", "grey"}


def test_deep_grey_is_scaled_under_both_protocols():
    """The published code would clip it to white."""
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    data = encoded(Image.fromarray(ramp), "PNG")
    np.testing.assert_array_equal(
        published_pixels(data, 32), preprocess(image_files.decode(data)[0], 32)
    )
    assert 100 < published_pixels(data, 32).mean() < 155


# --- where to get the sets ----------------------------------------------------------------------


def test_where_names_every_set_and_its_folder(archive, tmp_path, capsys):
    evaluate.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(where=True, suite="unimed21", data=str(tmp_path)):
        evaluate._main(["evaluate"])
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert len(blocks) == 21
    clones = [block for block in blocks if "git clone https://github.com/BMEII-AI" in block]
    assert [block.partition(":")[0] for block in clones] == [
        "acl_mri", "meniscal_mri", "breast_us", "thyroid_us"]  # fmt: skip
    for spec, block in zip(UNIMED21.sets, blocks, strict=True):
        lines = block.splitlines()
        assert lines[0] == f"{spec.key}: {spec.title}, absent"
        assert (
            lines[1] == f"  from     {spec.source.url} ({suite_files.ACCESS[spec.source.access]})"
        )
        assert lines[2] == f"  licence  {spec.source.licence}"
        assert all(f"{tmp_path}/{path}" in lines[3] for path in spec.layout.path)
        assert len(lines) == 4 + len(spec.source.steps)
        assert "SETS" not in block
    present = report.sources(UNIMED21, {}, "SETS")
    assert present.count(", present\n") == 21 and "git clone" in present
