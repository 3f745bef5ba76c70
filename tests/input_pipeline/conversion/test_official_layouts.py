"""The parts whose captions UniMed's authors made, from the files that their owners distribute."""

import dataclasses
import gzip
import html
import json
import shutil

import pytest
from helpers import corpora, official_layouts, unimed_layouts
from helpers.corpora import convert
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.conversion.official import (
    attributes,
    findings,
    mimic,
    nih,
    openi,
    reports,
    retina,
    splits,
    table,
)
from input_pipeline.conversion.official.findings import FINDINGS, FindingOptions
from input_pipeline.conversion.planned_rows import Rejection
from unimed_jax import caption_labels

TEMPLATES = {"version": 1, "modalities": {"xray": {"*": ["{label} on {modality}"]}}}


@pytest.fixture
def run(tmp_path):
    """Builds the official layout of a part and converts it; returns the output directory."""
    (tmp_path / "templates.json").write_text(json.dumps(TEMPLATES))

    def run(key, *flags, raw=None, status=0, captions=True, **layout):
        if raw is None:
            raw = tmp_path / "raw" / key
            if not raw.exists():
                getattr(official_layouts, key)(raw, **layout)
        out = tmp_path / "out" / f"{key}{len(list(tmp_path.glob('out/*')))}"
        flags = (f"--captions={tmp_path / 'templates.json'}", *flags) if captions else flags
        assert convert(key, out, f"--raw={raw}", *flags) == status
        return out

    return run


def labels(out, split="train"):
    return {id_: s.labels for id_, s in corpora.samples_of(out, split).items()}


# --- CheXpert -----------------------------------------------------------------------------------


def test_chexpert_is_read_from_its_official_tables(run, capsys):
    out = run("chexpert", "--max_rejected=0.6")
    assert labels(out) == {
        "chexpert/train/patient00001/study1/view1_frontal.jpg": ("No Finding",),
        "chexpert/train/patient00002/study1/view1_frontal.jpg": ("Edema",),
    }
    (sample,) = corpora.samples_of(out, "val").values()
    assert sample.group == "patient64541" and sample.labels == ("Support Devices",)
    report = corpora.report(out)
    assert report["rejected_by_reason"] == {"not a frontal view": 1, "no finding is positive": 1}
    assert report["read"] == 5
    facts = report["facts"]
    assert facts["layout"] == "official"
    assert [f["file"] for f in facts["annotations"]] == [
        "CheXpert-v1.0-small/train.csv",
        "CheXpert-v1.0-small/valid.csv",
    ]
    assert facts["cells_of_findings"] == {
        "uncertain": "ignore",
        "unmentioned": "ignore",
        "denied": "ignore",
    }
    printed = capsys.readouterr().out
    assert "official layout, CheXpert-v1.0-small/train.csv" in printed
    assert "counted in UniMed's derived files" in printed


def test_cells_of_findings_become_labels_by_the_flags(run):
    flags = ("--uncertain=positive", "--denied=negative")
    found = labels(run("chexpert", *flags))
    assert list(found.values()) and set(found.values()) == {
        ("No Finding",),
        ("Cardiomegaly", "Edema", "no Fracture"),
        ("Edema",),
    }
    found = labels(run("chexpert", "--uncertain=negative", "--unmentioned=negative"))
    assert next(x for x in found.values() if "Edema" in x)[:2] == (
        "no Enlarged Cardiomediastinum",
        "no Cardiomegaly",
    )


@pytest.mark.parametrize(
    ("folder", "stated", "inner"),
    [
        ("CheXpert-v1.0-small", "CheXpert-v1.0-small", True),
        ("CheXpert-v1.0", "CheXpert-v1.0", False),
        ("CheXpert-v1.0-small", "CheXpert-v1.0", False),
        ("CheXpert-v1.0", "CheXpert-v1.0-small", True),
    ],
)
def test_copies_of_chexpert_differ_in_folders(run, tmp_path, folder, stated, inner):
    raw = tmp_path / "raw"
    official_layouts.chexpert(raw, folder, stated)
    out = run("chexpert", raw=raw / folder if inner else raw)
    assert "chexpert/train/patient00001/study1/view1_frontal.jpg" in labels(out)
    assert len(corpora.samples_of(out)) == 2


def test_the_full_version_of_chexpert_is_read_from_its_batches(run, tmp_path):
    official_layouts.chexpert_batches(tmp_path / "raw")
    top = tmp_path / "raw/chexpertchestxrays-u20210408"
    small = labels(run("chexpert"))
    for raw in (top.parent, top):
        out = run("chexpert", raw=raw)
        assert labels(out) == small and len(corpora.samples_of(out, "val")) == 1
        folders = [name.rpartition("/")[2] for name in corpora.report(out)["facts"]["image_folder"]]
        assert folders == [
            "valid",
            "CheXpert-v1.0 batch 2 (train 1)",
            "CheXpert-v1.0 batch 3 (train 2)",
            "CheXpert-v1.0 batch 4 (train 3)",
        ]


def test_images_of_a_half_downloaded_copy_are_found_though_the_first_rows_lack_theirs(
    run, tmp_path, monkeypatch
):
    raw = tmp_path / "raw"
    official_layouts.chexpert(raw)
    monkeypatch.setattr("input_pipeline.conversion.image_places.PROBED_ROWS", 1)
    (raw / "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg").unlink()
    out = run("chexpert", "--max_rejected=0.7", raw=raw / "CheXpert-v1.0-small")
    assert list(labels(out)) == ["chexpert/train/patient00002/study1/view1_frontal.jpg"]
    assert corpora.report(out)["rejected_by_reason"]["cannot read the image"] == 1


def test_a_table_that_excel_saved_is_read(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.chexpert(raw)
    path = raw / "CheXpert-v1.0-small/train.csv"
    text = path.read_text().replace(",", ";").replace("1.0;", "1,0;")
    path.write_bytes("\ufeff".encode() + text.encode())
    assert len(corpora.samples_of(run("chexpert", raw=raw))) == 2


def test_broken_rows_are_named_and_the_others_are_kept(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.chexpert(raw)
    path = raw / "CheXpert-v1.0-small/train.csv"
    good = path.read_text().splitlines()
    broken = ["CheXpert-v1.0-small/train/x.jpg,Male", good[1] + ",,", good[2] + "7"]
    path.write_text("\n".join([*good, *broken]))
    out = run("chexpert", "--max_rejected=0.9", raw=raw)
    reasons = corpora.report(out)["rejected_by_reason"]
    assert reasons["wrong number of fields"] == 1
    assert reasons["unknown cell"] == 1
    assert reasons["duplicate id"] == 1
    assert len(corpora.samples_of(out)) == 2


def test_the_derived_file_is_read_where_somebody_has_it(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.chexpert(raw)
    unimed_layouts.chexpert(raw)
    report = corpora.report(run("chexpert", raw=raw))
    assert report["facts"]["layout"] == "unimed" and "counted_in" not in report["expected"]
    report = corpora.report(run("chexpert", "--layout=official", raw=raw))
    assert report["facts"]["layout"] == "official"


def test_flags_of_the_official_layout_are_checked(run, capsys):
    for flag, message in (
        ("--uncertain=maybe", "--uncertain=maybe: expected ignore, positive or negative"),
        ("--denied=positive", "--denied=positive: expected ignore or negative"),
        ("--layout=new", "--layout=new: expected official or unimed"),
        ("--released_captions", "the official files of chexpert have no generated captions"),
        ("--layout=unimed", "none of ['chexpert_with_captions_only_frontal_view.csv'"),
    ):
        run("chexpert", flag, status=2)
        assert message in capsys.readouterr().err


CELLS = st.sampled_from(["1.0", "1", "0.0", "0", "-1.0", "-1", "", " ", "nan", "NaN"])


@given(
    st.lists(CELLS, min_size=14, max_size=14),
    st.sampled_from(["ignore", "positive", "negative"]),
    st.sampled_from(["ignore", "negative"]),
    st.sampled_from(["ignore", "negative"]),
)
def test_every_cell_becomes_what_its_flag_says(found, uncertain, unmentioned, denied):
    options = FindingOptions(None, uncertain=uncertain, unmentioned=unmentioned, denied=denied)
    row = dict(zip(FINDINGS, (cell.strip() for cell in found), strict=True))
    result = findings.labels(row, options)
    for finding, cell in row.items():
        number = float(cell or "nan")
        becomes = {1: "positive", 0: denied, -1: uncertain}.get(number, unmentioned)
        if finding == findings.NO_FINDING:
            becomes = "positive" if number == 1 else "ignore"
        assert (finding in result) == (becomes == "positive")
        assert (f"no {finding}" in result) == (becomes == "negative")
    assert [x.removeprefix("no ") for x in result] == [
        x for x in FINDINGS if x in result or f"no {x}" in result
    ]


@given(st.text(max_size=5))
def test_other_cells_are_refused(cell):
    row = dict.fromkeys(FINDINGS, "") | {"Edema": cell.strip()}
    try:
        known = float(cell) in (1, 0, -1) or cell.strip().lower() == "nan"
    except ValueError:
        known = not cell.strip()
    if known:
        findings.labels(row, FindingOptions(None))
    else:
        with pytest.raises(ValueError, match="unknown cell"):
            findings.labels(row, FindingOptions(None))


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("packed", [False, True])
def test_tables_are_read_whatever_their_line_ends_encoding_and_packing(
    tmp_path, end, encoding, packed
):
    text = end.join(["b, a ,x,", '"1,\n5",2,,', "", "3,4,,,", "5,6"]) + end
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(text.encode(encoding)) if packed else text.encode(encoding))
    ten = tmp_path / "ten.csv"
    ten.write_text("a,b\n" + "x,y\n" * 10)
    *before, first, second, third = table.rows([ten, path], ("a", "b"), ("none",))
    assert [row.number for row in before] == [*range(1, 11)]
    cells = {"none": "", "a": "2", "b": "1,\n5"}
    assert dataclasses.astuple(first) == (11, path.name, cells)
    assert second.cells["b"] == "3" and second.number == 12
    assert isinstance(third, Rejection) and third.row == 13
    assert "2 in line" in third.reason and "the header has 4" in third.reason


def test_a_table_without_a_column_is_an_error(tmp_path, run, capsys):
    raw = tmp_path / "raw"
    official_layouts.chexpert(raw)
    path = raw / "CheXpert-v1.0-small/train.csv"
    path.write_text(path.read_text().replace("Edema", "Oedema"))
    run("chexpert", raw=raw, status=2)
    assert "no column 'Edema'; found ['Path'" in capsys.readouterr().err


# --- NIH ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "_v2020"])
@pytest.mark.parametrize("in_one_folder", [False, True])
@pytest.mark.parametrize("top", ["", "CXR8"])
def test_nih_is_read_from_its_official_table(run, version, in_one_folder, top):
    out = run("chestxray8", version=version, in_one_folder=in_one_folder, top=top)
    assert labels(out) == {
        "chestxray8/00000001_000.png": ("Cardiomegaly",),
        "chestxray8/00000001_001.png": ("Cardiomegaly", "Emphysema"),
        "chestxray8/00000002_000.png": ("No Finding",),
    }
    assert labels(out, "test") == {
        "chestxray8/00000003_000.png": ("Pleural_Thickening",),
        "chestxray8/00000004_000.png": ("Infiltration", "Mass"),
    }
    assert {s.group for s in corpora.samples_of(out).values()} == {"00000001", "00000002"}
    report = corpora.report(out)
    assert (
        report["rejected"] == 0
        and report["facts"]["official_split"] == "test_list.txt, train_val_list.txt"
    )
    assert report["facts"]["official_split_counts"] == {"train": 3, "test": 2}
    assert report["facts"]["layout"] == "official"
    assert len(report["facts"]["image_folder"]) == (1 if in_one_folder else 3)


def test_a_folder_of_nih_images_that_is_missing_costs_its_images_only(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.chestxray8(raw)
    shutil.rmtree(raw / "images_002")
    out = run("chestxray8", raw=raw)
    assert corpora.report(out)["rejected_by_reason"] == {"cannot read the image": 2}
    assert len(corpora.samples_of(out)) == 2


@pytest.mark.parametrize("damage", ["test list cut off", "train list cut off", "in both"])
def test_no_image_of_nih_that_is_in_neither_official_list_is_trained_on(run, tmp_path, damage):
    raw = tmp_path / "raw"
    official_layouts.chestxray8(raw)
    train, test = raw / "train_val_list.txt", raw / "test_list.txt"
    names = {path: path.read_text().split() for path in (train, test)}
    expected = {"train": 3, "test": 2}
    if damage == "in both":
        train.write_text("\n".join(names[train] + names[test][:1]))
        expected["in both lists, kept in the held-back one"] = 1
    else:
        cut = test if damage.startswith("test") else train
        cut.write_text("\n".join(names[cut][:1]) + "\n0000")
        expected = {"train": 3, "test": 1} if cut == test else {"train": 1, "test": 2}
    out = run("chestxray8", raw=raw)
    report = corpora.report(out)
    assert report["facts"]["official_split_counts"] == expected
    found = {split: len(samples) for split, samples in corpora.samples(out).items()}
    assert found == {split: expected[split] for split in ("train", "test")}
    missing = 5 - sum(found.values())
    assert report["rejected_by_reason"] == ({"in no official split": missing} if missing else {})


def test_one_official_list_of_nih_is_enough_and_one_without_names_is_refused(run, tmp_path, capsys):
    raw = tmp_path / "raw"
    official_layouts.chestxray8(raw)
    (raw / "train_val_list.txt").unlink()
    assert len(corpora.samples_of(run("chestxray8", raw=raw), "test")) == 2
    (raw / "test_list.txt").write_text("<html>moved</html>")
    run("chestxray8", raw=raw, status=2)
    assert "test_list.txt names no image" in capsys.readouterr().err


def test_suffixes_of_nih_images_may_be_in_capitals(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.chestxray8(raw)
    path = raw / "images_001/images/00000001_000.png"
    path.rename(path.with_suffix(".PNG"))
    table_path = raw / "Data_Entry_2017_v2020.csv"
    table_path.write_text(table_path.read_text().replace("00000004_000.png", "00000004_000.PNG"))
    out = run("chestxray8", raw=raw)
    assert {split: len(found) for split, found in corpora.samples(out).items()} == {
        "train": 3,
        "test": 2,
    }


def test_nih_rows_that_name_no_image_or_finding_are_refused(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.chestxray8(raw)
    with (raw / "Data_Entry_2017_v2020.csv").open("a") as file:
        rest = "0,9,58,M,PA,2682,2749,0.143,0.143"
        file.write(f",Mass,{rest}\nx.txt,Mass,{rest}\n00000009_000.png,|,{rest}\n")
    reasons = corpora.report(run("chestxray8", raw=raw))["rejected_by_reason"]
    assert reasons == {"no image": 2, "no finding": 1}


@given(st.lists(st.text(st.characters(exclude_characters="|"), min_size=1).map(str.strip)))
def test_joined_findings_are_taken_apart(names):
    expected = tuple(dict.fromkeys(filter(None, names)))
    assert nih.finding_labels("|".join(names)) == expected
    assert nih.finding_labels(" | ".join(names)) == expected


# --- Open-I -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reports", "images"),
    [
        ("ecgen-radiology", "NLMCXR_png"),
        ("openI/NLMCXR_reports/ecgen-radiology", "openI/image"),
        ("NLMCXR_reports/ecgen-radiology", "."),
    ],
)
def test_open_i_is_read_from_its_xml_reports(run, reports, images):
    out = run("openi", captions=False, reports=reports, images=images)
    found = {id_: s.captions for id_, s in corpora.samples_of(out).items()}
    first = ("Invented lungs <5 mm. heart.", "Nothing invented.")
    assert found == {
        "openi/CXR1_1_IM-0001-3001.png": first,
        "openi/CXR1_1_IM-0001-4001.png": first,
        "openi/CXR2_IM-0652-1001.png": ("Only an impression.",),
        "openi/CXR3_1_IM-1384-1001.png": ("Invented.",),
    }
    for sample in corpora.samples_of(out).values():
        assert sample.num_original_captions == len(sample.captions)
        assert sample.group == sample.id.partition("/")[2].partition("_")[0]
    report = corpora.report(out)
    assert report["read"] == 6
    assert report["rejected_by_reason"] == {
        "report without an image": 1,
        "report without findings and impression": 1,
    }
    assert report["notes"] == {openi.MARKS_NOTE: 2}
    (file,) = report["facts"]["annotations"]
    assert file["files"] == 5 and len(file["sha256"]) == 64


def test_reports_that_are_no_xml_and_images_that_are_missing_are_counted(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.openi(raw)
    (raw / "ecgen-radiology/2.xml").write_text("<eCitation><parentImage")
    (raw / "ecgen-radiology/0.xml").write_bytes(b"")
    (raw / "NLMCXR_png/CXR3_1_IM-1384-1001.png").unlink()
    out = run("openi", "--max_rejected=0.9", captions=False, raw=raw)
    reasons = corpora.report(out)["rejected_by_reason"]
    assert reasons["cannot read the report"] == 2 and reasons["cannot read the image"] == 1
    assert len(corpora.samples_of(out)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("XXXX-year-old male, chest pain.", "year-old male, chest pain."),
        ("Compared to XXXX, no change. XXXX. Stable.", "Compared to, no change. Stable."),
        ("Nodule (XXXX) in the XXXX XXXX lobe .", "Nodule in the lobe."),
        ("Dr. XXXX called at XXXX/XXXX.", "Dr. called at."),
        ("1. XXXX effusion. 2. XXXX.", "1. effusion. 2."),
        ("Seen on ___, at ___.", "Seen on, at."),
        ("XXXX", ""),
        ("XXXX's heart", "heart"),
        ("Size 3.5 mm, T12-XXXX ,XXXX.", "Size 3.5 mm, T12."),
        ("Double.. dots  stay.", "Double.. dots stay."),
    ],
)
def test_marks_of_removed_words_are_deleted_by_the_rule(text, expected):
    assert reports.clean(text)[0] == expected


WORDS = st.lists(st.sampled_from(["no", "effusion", "XXXX", "3.5", "left-sided", "___", "T12"]))


@given(WORDS, st.sampled_from([" ", "  ", ". ", ", ", "\n"]))
def test_cleaning_deletes_marks_and_no_other_word(words, separator):
    cleaned, marked = reports.clean(separator.join(words))
    kept = [word for word in words if word not in ("XXXX", "___")]
    assert [w.strip(".,") for w in cleaned.split() if w.strip(".,")] == kept
    assert marked == (kept != words)
    assert reports.clean(cleaned) == (cleaned, False)


XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")))


@given(XML_TEXT, XML_TEXT, st.lists(st.from_regex(r"\ACXR\d+_IM-\d{4}-\d{4}\Z"), max_size=5))
def test_reports_are_parsed_whole(found, concluded, ids):
    sections = {"FINDINGS": html.escape(found), "IMPRESSION": html.escape(concluded)}
    report = openi.parse(official_layouts.openi_report(sections, ids).encode())
    assert report.images == tuple(dict.fromkeys(ids))
    assert report.sections == {
        "FINDINGS": " ".join(found.split()),
        "IMPRESSION": " ".join(concluded.split()),
    }


# --- MIMIC-CXR ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "reports_in", "packed"),
    [
        ("", "", True),
        ("mimic-cxr-jpg/2.1.0", "mimic-cxr-reports/files", True),
        ("physionet.org/files/mimic-cxr-jpg/2.0.0", "mimic-cxr/2.0.0/files", False),
    ],
)
def test_mimic_is_joined_from_its_tables_and_reports(run, top, reports_in, packed):
    out = run("mimic_cxr", top=top, reports=reports_in, packed=packed)
    name = "mimic_cxr/p10/p{}/s{}/{}.jpg"
    both = name.format(10000032, 50414267, official_layouts.mimic_name(0))
    labelled = name.format(10000033, 53189527, official_layouts.mimic_name(1))
    samples = corpora.samples_of(out)
    assert samples.keys() == {both, labelled}
    texts = (
        "Invented lungs are clear since. LUNGS: No focus: none.",
        "1. Nothing invented. 2. No change.",
    )
    assert samples[both].captions == (*texts, "Edema on xray")
    assert samples[both].num_original_captions == 2 and samples[both].labels == ("Edema",)
    assert samples[labelled].captions == ("No Finding on xray",)
    assert samples[both].group == "p10000032"
    validation = corpora.samples_of(out, "val").values()
    assert [s.captions for s in validation] == [texts, texts]
    report = corpora.report(out)
    assert report["read"] == len(official_layouts.MIMIC_VIEWS)
    assert report["rejected_by_reason"] == {"not a frontal view": 2, "no finding is positive": 1}
    assert report["notes"][mimic.NO_REPORT_NOTE] == 1
    assert report["notes"][mimic.MARKS_NOTE] == 3


def test_mimic_reports_may_be_elsewhere_or_nowhere(run, tmp_path, capsys):
    raw = tmp_path / "raw"
    official_layouts.mimic_cxr(raw, reports="../texts/files")
    out = run("mimic_cxr", "--max_rejected=0.9", raw=raw)
    assert {s.num_original_captions for s in corpora.samples_of(out).values()} == {0}
    assert corpora.report(out)["facts"]["reports"] == "none"
    for folder in ("texts", "texts/files"):
        out = run("mimic_cxr", f"--reports={tmp_path / folder}", raw=raw)
        assert max(s.num_original_captions for s in corpora.samples_of(out).values()) == 2
    run("mimic_cxr", f"--reports={raw}", raw=raw, status=2)
    assert "none of the first reports is there, for example p10/p10000032" in (
        capsys.readouterr().err
    )
    (raw / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    run("mimic_cxr", raw=raw, status=2)
    assert "there would be no label and no text" in capsys.readouterr().err


def test_bad_rows_of_mimics_labels_are_counted_and_cost_their_labels_alone(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.mimic_cxr(raw, packed=False)
    path = raw / "mimic-cxr-2.0.0-chexpert.csv"
    header, with_report, labelled, _ = path.read_text().splitlines()
    bad = [with_report.replace("1.0", "7"), labelled + ",x", labelled.replace("53189527", "s5")]
    other = labelled.replace("1.0", "") + "1.0"
    path.write_text("\n".join([header, *bad, labelled, labelled, other]))
    out = run("mimic_cxr", "--max_rejected=0.9", raw=raw)
    samples = {s.group: s for s in corpora.samples_of(out).values()}
    assert samples["p10000032"].labels == () and samples["p10000032"].num_original_captions == 2
    assert samples["p10000033"].labels == ("No Finding",)
    report = corpora.report(out)
    assert report["rejected_by_reason"] == {
        "row of labels left out": 4,
        "not a frontal view": 2,
        "neither a report nor a row of labels for the study": 1,
    }
    assert report["read"] == report["written"] + report["rejected"]
    reasons = [r["reason"] for r in corpora.rejections(out) if r["path"] == path.name]
    assert [reason.split(": ", 1)[1][:40] for reason in reasons] == [
        "row 1, unknown cell: '7' under 'Edema' i",
        "wrong number of fields: 17 in line 3 of ",
        "row 3, 's5' is no number of a study",
        "row 6, study 53189527 has other labels i",
    ]


def test_no_image_of_mimic_without_an_official_split_is_trained_on(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.mimic_cxr(raw, packed=False)
    path = raw / "mimic-cxr-2.0.0-split.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("train", "unsure"), *lines[3:]]))
    out = run("mimic_cxr", "--max_rejected=0.9", raw=raw)
    assert len(corpora.samples_of(out, "val")) == 2 and "train" not in corpora.samples(out)
    report = corpora.report(out)
    assert report["rejected_by_reason"]["in no official split"] == 2
    assert report["facts"]["official_split_counts"] == {
        "train": 3,
        "val": 2,
        "rows without a split": 1,
    }


def test_an_image_with_two_official_splits_is_held_back(tmp_path):
    table = "key,part\na,test\nb,train\na,train\nb,validate\nc,train\n"
    (tmp_path / "split.csv").write_text(table)
    wanted = splits.SplitFile(("split.csv",), key_column="key", split_column="part")
    found = splits.read(wanted, tmp_path, "(?P<key>.+)", "")
    assert {key: found.of(key) for key in "abc"} == {"a": "test", "b": "val", "c": "train"}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("FINDINGS: A.\nIMPRESSION: B.", ("A.", "B.")),
        (" FINDINGS AND IMPRESSION:\n A.\n\n B.", ("A.\n\n B.", "")),
        (" FINDINGS/IMPRESSION: A.", ("A.", "")),
        (" Findings: A. IMPRESSION: b\n CONCLUSION: C", ("A. IMPRESSION: b", "C")),
        (" IMPRESSION:  A.\n\n RECOMMENDATION(S):  B.", ("", "A.")),
        (" IMPRESSION:\n A\n ADDENDUM:\n x\n IMPRESSION: C", ("", "A C")),
        (" PA VIEW:  A.\n FINDINGS:\n HEART AND LUNGS: B", ("HEART AND LUNGS: B", "")),
        (" FINDINGS:\r A.\r\r IMPRESSION:\r B.\r", ("A.", "B.")),
        (" FINDINGS:\r\n A.\r\n IMPRESSION: B.", ("A.", "B.")),
        ("no section at all", ("", "")),
    ],
)
def test_sections_of_reports(report, expected):
    assert reports.findings_and_impression(report) == expected


BODY = st.lists(st.sampled_from(["no", "mass:", "Heart", "5 mm.", "\n "])).map(" ".join)


@given(st.permutations(["FINDINGS", "IMPRESSION", "HISTORY", "WET READ"]), st.data())
def test_sections_are_found_in_any_order_and_hold_all_their_text(names, data):
    bodies = {name: data.draw(BODY) for name in names}
    report = "".join(f"\n {name}:  {body}\n" for name, body in bodies.items())
    found = reports.findings_and_impression(report)
    assert found == (bodies["FINDINGS"].strip(), bodies["IMPRESSION"].strip())


# --- captions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["chexpert", "chestxray8", "mimic_cxr"])
def test_captions_are_made_in_the_same_command(key, run, tmp_path):
    """The texts are those of the detour over a table of label sets and a caption file."""
    flags = ["--denied=negative"] if key == "mimic_cxr" else []
    out = run(key, "--captions=auto", *flags, captions=False)
    raw = f"--raw={tmp_path / 'raw' / key}"
    table_file, file = tmp_path / "labels.jsonl", tmp_path / "captions.json"
    assert corpora.main([key, raw, f"--labels_out={table_file}", *flags]) == 0
    command = [f"--labels={table_file}", f"--out={file}", "--provider=template"]
    assert caption_labels.main(command) == 0
    detour = run(key, f"--captions={file}", *flags, captions=False)
    for split, found in corpora.samples(out).items():
        others = corpora.samples_of(detour, split)
        assert {id_: s.captions for id_, s in found.items()} == {
            id_: s.captions for id_, s in others.items()
        }
        for sample in found.values():
            made = sample.caption_provenance[sample.num_original_captions :]
            assert len(made) == (10 if sample.labels else 0)
            for provenance in map(json.loads, made):
                assert provenance["provider"] == "template" and provenance["checks"]
                assert provenance["prompt_version"] == "grammar-1" and "time" not in provenance
    again = run(key, "--captions=auto", *flags, captions=False)
    assert corpora.contents(out) == corpora.contents(again)


def test_captions_of_a_row_that_denies_all_other_findings_name_some_of_them(run):
    out = run("chexpert", "--captions=auto", "--denied=negative", captions=False)
    (sample,) = corpora.samples_of(out, "val").values()
    assert len(sample.labels) == 13 and len(sample.captions) == 10
    for caption in map(str.lower, sample.captions):
        assert any(word in caption for word in ("support device", "medical device", "lines and"))
        assert "without" in caption and "fracture" not in caption


# --- RadImageNet, fundus sets -------------------------------------------------------------------


@pytest.mark.parametrize("top", ["", "radimagenet"])
def test_radimagenet_is_read_from_its_lists(run, top):
    out = run("radimagenet", "--captions=auto", captions=False, top=top)
    assert labels(out) == {
        "radimagenet/CT/abd/normal/abd-normal023599.png": ("normal", "anatomy=abdomen"),
        "radimagenet/MR/knee/acl_tear/knee-acl000001.png": ("acl_tear", "anatomy=knee"),
    }
    assert [s.modality for s in corpora.samples_of(out).values()].count("mri") == 1
    assert [*labels(out, "val").values()] == [("gallstone",)]
    assert [*labels(out, "test").values()] == [("nodule", "anatomy=chest")]
    report = corpora.report(out)
    assert report["facts"]["layout"] == "official" and report["rejected"] == 0
    assert len(report["facts"]["annotations"]) == 3


@pytest.mark.parametrize(
    ("annotations", "images"), [("Retina-Annotations", "Retina-Datasets"), (".", ".")]
)
def test_fundus_sets_are_read_from_the_lists_of_the_flair_family(run, annotations, images):
    out = run(
        "retina_part1", "--captions=auto", captions=False, annotations=annotations, images=images
    )
    assert labels(out) == {
        "retina_part1/08_ODIR-5K/preprocessed_images/0_right.jpg": ("normal",),
        "retina_part1/08_ODIR-5K/preprocessed_images/1_left.jpg": ("cataract", "hard exudates"),
        "retina_part1/15_APTOS/train_images/000c1434d8d7.png": ("moderate diabetic retinopathy",),
    }
    counts = sorted(len(s.captions) for s in corpora.samples_of(out).values())
    assert counts == [10, 10, 15]
    groups = {s.id.rpartition("/")[2]: s.group for s in corpora.samples_of(out).values()}
    assert groups["0_right.jpg"] == "0" and groups["1_left.jpg"] == "1"
    facts = corpora.report(out)["facts"]
    assert facts["annotations_left_out"] == {
        "06_DEN.csv": "part retina_part2",
        "13_FIVES.csv": "test set of unimed21",
    }


def test_an_unknown_diagnosis_is_no_category(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.retina_part1(raw)
    rows = [["['unknown diagnosis']"], ["['Unknown diagnosis', 'drusen']"]]
    table_rows = [[n, f"11_STARE/im000{n}.ppm", "[]", *row] for n, row in enumerate(rows)]
    header = ["", "image", "atributes", "categories"]
    unimed_layouts.put_csv(raw / "Retina-Annotations/11_STARE.csv", header, table_rows)
    for n in range(2):
        unimed_layouts.put_image(raw / f"Retina-Datasets/11_STARE/im000{n}.ppm", n, "PPM")
    out = run("retina_part1", "--captions=auto", captions=False, raw=raw)
    assert labels(out)["retina_part1/11_STARE/im0001.ppm"] == ("drusen",)
    assert corpora.report(out)["rejected_by_reason"] == {"no category": 1}


# --- ROCOv2, LLaVA-Med --------------------------------------------------------------------------


@pytest.mark.parametrize(("top", "images"), [("", "{0}"), ("ROCOv2", "{0}_images/{0}")])
def test_rocov2_is_read_with_its_concepts_and_splits(run, top, images):
    out = run("rocov2", captions=False, top=top, images=images)
    found = {id_: s for split in corpora.samples(out).values() for id_, s in split.items()}
    name = "rocov2/ROCOv2_2023_{}_{:06}.jpg"
    tomography = "X-Ray Computed Tomography"
    assert {id_: (s.labels, s.modality) for id_, s in found.items()} == {
        name.format("train", 1): ((tomography, "Liver"), "ct"),
        name.format("train", 2): ((tomography, "C1306645"), "radiology"),
        name.format("train", 3): ((tomography,), "ct"),
        name.format("valid", 1): (("C0024485",), "mri"),
        name.format("test", 1): (("C0041618", "C9999999"), "ultrasound"),
    }
    for id_, sample in found.items():
        split, number = id_.split("_")[2], id_[-5]
        assert sample.captions == (f"Invented figure of {split}, {number}.",)
        assert sample.num_original_captions == 1
    assert corpora.samples(out).keys() == {"train", "val", "test"}
    report = corpora.report(out)
    assert report["read"] == report["written"] == 5
    assert len(report["facts"]["annotations"]) == 10


def test_rocov2_is_read_without_concepts_and_with_bad_rows(run, tmp_path):
    raw = tmp_path / "raw"
    official_layouts.rocov2(raw)
    for path in raw.rglob("*_concepts_manual.csv"):
        path.unlink()
    concepts = raw / "ROCOv2/train_concepts.csv"
    concepts.write_text(concepts.read_text() + "ROCOv2_2023_train_000003,C1,x\n")
    (raw / "ROCOv2/valid_concepts.csv").unlink()
    with (raw / "ROCOv2/cui_mapping.csv").open("a") as file:
        file.write("C0000001,name,more,than,that\n")
    with (raw / "ROCOv2/train_captions.csv").open("a") as file:
        file.write(",no image\nx\nROCOv2_2023_train_000009,\n")
    out = run("rocov2", captions=False, raw=raw)
    assert corpora.report(out)["rejected_by_reason"] == {
        "row of concepts left out": 1,
        "row of names of concepts left out": 1,
        "no image": 1,
        "wrong number of fields": 1,
        "neither text nor label": 1,
    }
    assert next(iter(corpora.samples_of(out, "val").values())).labels == ()


def test_microsofts_own_alignment_file_is_read(run):
    out = run("llava_med_alignment", captions=False)
    samples = corpora.samples_of(out)
    assert [s.captions for s in samples.values()] == [
        (f"Invented description 2434498{n}_F{n}.",) for n in range(3)
    ]
    assert {s.group for s in samples.values()} == {"24344980", "24344981", "24344982"}
    assert corpora.report(out)["facts"]["layout"] == "official"


# --- the published corpus -----------------------------------------------------------------------


def test_the_published_corpus_takes_training_lists_whole(run):
    """NIH's and MIMIC's test images, too; of ROCOv2 and RadImageNet the training lists alone."""
    for key, size in {"chestxray8": 5, "mimic_cxr": 4, "rocov2": 3, "radimagenet": 2}.items():
        out = run(key, "--corpus=published", "--captions=auto", captions=False)
        (split,) = corpora.samples(out)
        assert split == "train" and len(corpora.samples_of(out)) == size, key
        facts = corpora.report(out)["facts"]
        assert facts["corpus"] == "published" and facts["official_split"] is None


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)))))
def test_lists_as_text_are_parsed(names):
    names = [*names, "Unknown diagnosis "]
    expected = tuple(dict.fromkeys(filter(None, (" ".join(x.split()) for x in names[:-1]))))
    assert retina.categories(repr(names)) == expected


@pytest.mark.parametrize(
    "cell", ["", "normal", "['a'", "[1]", "('a',)", "{'a'}", "[nan]", "__import__('os').abort()"]
)
def test_cells_that_are_no_list_of_texts_are_refused(cell):
    with pytest.raises(ValueError, match="no list of texts"):
        retina.categories(cell)


# --- attributes ---------------------------------------------------------------------------------


def test_captions_state_attributes_only_if_asked_to(run, capsys):
    words = ("female", "frontal", "elderly")
    plain = corpora.samples_of(run("chexpert", "--captions=auto", captions=False))
    captions = " ".join(c.lower() for s in plain.values() for c in s.captions)
    assert not any(word in captions for word in words)
    flags = ("--captions=auto", "--attributes=view,age_group,sex")
    stated = corpora.samples_of(run("chexpert", *flags, captions=False))
    assert stated.keys() == plain.keys()
    for id_, sample in stated.items():
        added = ("view=frontal", "age_group=elderly", "sex=female")
        assert sample.labels == (*plain[id_].labels, *added)
        assert len(sample.captions) == 10
        for caption in sample.captions:
            assert all(word in caption.lower() for word in words)
    run("chexpert", "--attributes=weight", status=2)
    assert "--attributes=weight: this part has view, age_group, sex" in capsys.readouterr().err
    run("mimic_cxr", "--attributes=sex", status=2)
    assert "--attributes=sex: this part has view" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["", "_v2020"])
@pytest.mark.parametrize("sex", ["Patient Gender", "Patient Sex"])
def test_attributes_of_nih_in_all_versions(run, tmp_path, version, sex):
    raw = tmp_path / "raw"
    official_layouts.chestxray8(raw, version)
    path = raw / f"Data_Entry_2017{version}.csv"
    path.write_bytes(path.read_bytes().replace(b"Patient Gender", sex.encode()))
    out = run("chestxray8", "--attributes=view,age_group,sex", raw=raw)
    for sample in corpora.samples_of(out).values():
        assert sample.labels[-3:] == ("view=frontal", "age_group=adult", "sex=male")


@pytest.mark.parametrize(
    ("age", "group"),
    [
        *(("58", "adult"), ("058Y", "adult"), ("64.0", "adult"), ("65", "elderly")),
        *(("17", "child"), ("024M", "child"), ("013M", "infant"), ("1", "infant")),
        *(("010D", "newborn"), ("0", ""), ("000D", ""), ("411", ""), ("", ""), ("unknown", "")),
    ],
)
def test_ages_are_grouped(age, group):
    assert attributes.age_group(age) == group


@given(st.integers(1, 119))
def test_years_are_the_same_in_both_spellings(years):
    group = attributes.age_group(str(years))
    assert group == attributes.age_group(f"{years:03}Y") != ""
