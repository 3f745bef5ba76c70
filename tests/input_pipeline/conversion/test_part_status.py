"""Where a user stands with the thirteen parts: found and counted, or named as missing."""

import pytest
from helpers import official_layouts, unimed_layouts
from helpers.corpora import convert, report

from input_pipeline import manifest
from input_pipeline.conversion import part_status
from input_pipeline.conversion.sources.unimed import layouts
from input_pipeline.conversion.unimed_parts import PARTS
from input_pipeline.io.files import to_path
from unimed_jax import corpus_status, inspect_corpus

# rows of the tables and images of the generated layouts of UniMed's files
DERIVED = {
    "radimagenet": (3, 3),
    "chexpert": (4, 4),
    "openi": (3, 3),
    "chestxray8": (4, 4),
    "mimic_cxr": (4, 3),
    "rocov2": (3, 3),
    "pmc_oa": (3, 3),
    "retina_part1": (5, 5),
    "retina_part2": (3, 3),
    "retina_part3": (2, 2),
}
OFFICIAL = {
    "radimagenet": (4, 4),
    "chexpert": (5, 5),
    "openi": (6, 5),  # a report without an image counts as a row
    "chestxray8": (5, 5),
    "mimic_cxr": (7, 7),
    "rocov2": (5, 5),
    "llava_med_alignment": (3, 3),
    "retina_part1": (3, 3),  # without the lists of part 2 and of FIVES, a test set
}


def statuses(raw=None, corpora=None):
    return {status.key: status for status in part_status.of_parts(raw, corpora)}


@pytest.mark.parametrize("beside", [False, True])
def test_parts_in_the_layout_of_unimed_are_found_and_counted(tmp_path, beside):
    """In a folder for each part, of any name, or all in one folder, as far as it can hold them."""
    for key, build in unimed_layouts.BUILDERS.items():
        build(tmp_path if beside else tmp_path / f"my_{key}")
    found = statuses(tmp_path)
    assert all(status.found and not status.problem for status in found.values())
    for key, counts in DERIVED.items():
        status = found[key]
        assert (status.rows, status.images) == counts, key
        assert status.layout == layouts(PARTS[key])[0].name
        places = (tmp_path, tmp_path / key) if beside else (tmp_path / f"my_{key}",)
        assert status.raw in places


def test_official_layouts_are_found_and_counted(tmp_path):
    for key in OFFICIAL:
        getattr(official_layouts, key)(tmp_path / key)
    found = statuses(tmp_path)
    assert {key: (found[key].rows, found[key].images) for key in OFFICIAL} == OFFICIAL
    assert {found[key].layout for key in OFFICIAL} == {"official"}
    assert found["llava_med_alignment"].raw == tmp_path / "llava_med_alignment"
    missing = {key for key, status in found.items() if not status.found}
    assert missing == PARTS.keys() - OFFICIAL.keys() - {"retina_part2"}  # in part 1's folder


def test_images_in_several_folders_are_counted_together(tmp_path):
    official_layouts.chexpert_batches(tmp_path)
    found = statuses(tmp_path)["chexpert"]
    assert (found.layout, found.rows, found.images) == ("official", 5, 5)


def test_what_the_status_calls_raw_is_what_the_conversion_takes(tmp_path):
    for key in ("chexpert", "openi", "radimagenet", "retina_part1"):
        getattr(official_layouts, key)(tmp_path / "data" / f"of_{key}")
    found = statuses(tmp_path / "data")
    for key in ("chexpert", "openi", "radimagenet", "retina_part1"):
        out = tmp_path / "corpora" / key
        assert convert(key, out, f"--raw={found[key].raw}", "--captions=auto") == 0
        read = report(out)
        assert read["read"] == found[key].rows and read["facts"]["layout"] == found[key].layout
    after = statuses(tmp_path / "data", tmp_path / "corpora")
    for key in ("chexpert", "openi", "radimagenet", "retina_part1"):
        content = manifest.load(tmp_path / "corpora" / key)
        assert after[key].samples == content.written and after[key].corpus is not None
    only_corpora = statuses(corpora=tmp_path / "corpora")
    assert only_corpora["chexpert"].layout == "official" and only_corpora["chexpert"].raw is None


def test_a_part_in_a_bucket_is_found_without_counting_images(tmp_path, storage, monkeypatch):
    monkeypatch.setattr(part_status, "PARTS", {"chexpert": PARTS["chexpert"]})  # requests are slow
    official_layouts.chexpert(tmp_path / "raw" / "any")
    out = tmp_path / "corpora" / "chexpert"
    assert convert("chexpert", out, f"--raw={tmp_path / 'raw' / 'any'}", "--captions=auto") == 0
    for name in ("raw", "corpora"):
        storage.put_folder(tmp_path / name, f"status/{name}")
    top = to_path("gs://bucket/status")
    status = statuses(top / "raw", top / "corpora")["chexpert"]
    assert (status.layout, status.rows, status.images) == ("official", 5, None)
    assert str(status.raw) == "gs://bucket/status/raw/any" and status.samples == 3


def test_tars_of_unimed_are_found(tmp_path):
    folder = tmp_path / "mimic_cxr"
    folder.mkdir()
    for n in (1, 2):
        (folder / f"dataset-{n:06}.tar").touch()
    found = statuses(tmp_path)["mimic_cxr"]
    assert (found.layout, found.images, found.rows) == ("tars of UniMed", 2, None)


def test_what_cannot_be_used_is_a_problem_and_not_missing(tmp_path, capsys):
    unimed_layouts.BUILDERS["rocov2"](tmp_path / "raw")
    (tmp_path / "raw" / "ROCOV2" / "train_captions.csv").write_text("ID\nonly_one_column\n")
    (tmp_path / "corpora" / "quilt1m").mkdir(parents=True)  # an unfinished conversion
    arguments = [f"--raw={tmp_path / 'raw'}", f"--corpora={tmp_path / 'corpora'}"]
    assert corpus_status.main(arguments) == 0
    text = capsys.readouterr().out
    assert "rocov2: " in text and "has no column 'Caption'" in text
    assert "quilt1m: corpus directory" in text and "has no manifest.json" in text
    rows = {line.split()[0]: line for line in text.splitlines() if "  " in line}
    assert "cannot be read" in rows["rocov2"] and "cannot be read" in rows["quilt1m"]


def test_the_command_prints_a_table_and_writes_the_report(tmp_path, capsys):
    official_layouts.chexpert(tmp_path / "raw")
    page = tmp_path / "status.html"
    assert corpus_status.main([f"--raw={tmp_path / 'raw'}", f"--out={page}"]) == 0
    text = capsys.readouterr().out
    assert "13 parts: 0 converted, source data of 1 found; missing: radimagenet, openi," in text
    (line,) = (x for x in text.splitlines() if x.startswith("chexpert "))
    assert line.split() == ["chexpert", "official", "5", "5", "-", "211,001", "to", "212,000"]
    assert "mimic_cxr: https://physionet.org/content/mimic-cxr-jpg/2.1.0/; PhysioNet" in text
    html = page.read_text()
    for part in PARTS.values():
        assert part.access.split(" ")[0] in html
    assert "Stanford research use agreement" in html and "missing" in html


def test_the_report_of_an_inspection_has_the_table(tmp_path):
    pytest.importorskip("imagehash", reason="the extra [inspect] is not installed")
    official_layouts.chexpert(tmp_path / "raw")
    out = tmp_path / "corpora" / "chexpert"
    assert convert("chexpert", out, f"--raw={tmp_path / 'raw'}", "--captions=auto") == 0
    arguments = [str(out), f"--out={tmp_path / 'inspection'}", "--text_images=0"]
    assert inspect_corpus.main(arguments) == 0
    html = (tmp_path / "inspection" / "report.html").read_text()
    assert "The thirteen parts" in html and "13 parts: 1 converted" in html
    assert "corpus from official" in html and PARTS["mimic_cxr"].access in html


@pytest.mark.parametrize("flags", [[], ["--raw=DIR/none"], ["--corpora=DIR/none"]])
def test_a_wrong_call_is_one_line(tmp_path, capsys, flags):
    flags = [flag.replace("DIR", str(tmp_path)) for flag in flags]
    assert corpus_status.main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("no such folder" in error or "give --raw=DIR" in error)


def test_counting_images_lists_folders_and_stops_at_its_bound(tmp_path, monkeypatch):
    official_layouts.chexpert(tmp_path)
    folder = tmp_path / "CheXpert-v1.0-small" / "train" / "many"
    folder.mkdir()
    for n in range(3000):
        (folder / f"{n}.jpg").touch()  # empty: they would not decode
    (folder / "notes.txt").touch()
    found = statuses(tmp_path)["chexpert"]
    assert (found.images, found.images_exact) == (3005, True)
    monkeypatch.setattr(part_status, "MOST_IMAGES", 1000)
    bounded = statuses(tmp_path)["chexpert"]
    assert (bounded.images, bounded.images_exact) == (1000, False)
