"""All thirteen parts from their exact layouts; the defects of earlier converters stay away."""

import json
import shutil

import pytest
from helpers import corpora
from helpers import unimed_layouts as layouts
from helpers.corpora import convert

from input_pipeline.conversion.sources import SOURCES
from input_pipeline.conversion.unimed_parts import PARTS

TEMPLATES = {
    "version": 1,
    "modalities": {
        m: {"*": ["{label} on {modality}"]} for m in ("ct", "mri", "ultrasound", "xray", "fundus")
    },
}

# part: samples per split, rejections by reason
EXPECTED = {
    "radimagenet": ({"train": 3}, {}),
    "chexpert": ({"train": 3, "val": 1}, {}),
    "openi": ({"train": 3}, {}),
    "chestxray8": ({"test": 2, "train": 2}, {}),
    "mimic_cxr": ({"train": 2, "val": 1}, {"cannot read the image": 1}),
    "rocov2": ({"train": 3}, {}),
    "pmc_oa": ({"train": 3}, {}),
    "llava_med_alignment": ({"train": 3}, {"cannot read the image": 1}),
    "llava_med_hq60k": ({"train": 3}, {"neither text nor label": 1}),
    "quilt1m": ({"train": 2, "val": 1}, {"duplicate id": 1, "neither text nor label": 1}),
    "retina_part1": ({"train": 5}, {}),
    "retina_part2": ({"train": 2}, {"no usable label": 1}),
    "retina_part3": ({"train": 1}, {"neither text nor label": 1}),
}


@pytest.fixture
def run(tmp_path):
    """Builds the layout of a part and converts it; returns the output directory."""
    (tmp_path / "templates.json").write_text(json.dumps(TEMPLATES))

    def run(key, *flags, raw=None, status=0, captions=True):
        if raw is None:
            raw = tmp_path / "raw" / key
            if not raw.exists():
                layouts.BUILDERS[key](raw)
        out = tmp_path / "out" / f"{key}{len(list(tmp_path.glob('out/*')))}"
        flags = (f"--captions={tmp_path / 'templates.json'}", *flags) if captions else flags
        assert convert(key, out, f"--raw={raw}", *flags) == status
        return out

    return run


def error(run, capsys, key, *flags, **options):
    capsys.readouterr()
    out = run(key, *flags, status=2, **options)
    assert not (out / "manifest.json").exists()
    return capsys.readouterr().err


def only(out, split="train"):
    (sample,) = corpora.samples_of(out, split).values()
    return sample


# --- all thirteen -------------------------------------------------------------------------------


def test_there_are_thirteen():
    assert len(PARTS) == 13 and PARTS.keys() <= SOURCES.keys()
    assert PARTS.keys() == layouts.BUILDERS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("key", PARTS)
def test_every_row_of_a_part_is_written_or_refused_with_a_reason(key, run, capsys):
    out = run(key)
    samples, reasons = EXPECTED[key]
    report = corpora.report(out)
    found = corpora.samples(out)
    assert {split: len(part) for split, part in found.items()} == samples
    assert report["rejected_by_reason"] == reasons
    assert report["read"] == sum(samples.values()) + sum(reasons.values())
    for part in found.values():
        for sample in part.values():
            assert sample.id.startswith(f"{key}/") and sample.source == key and sample.captions

    facts = report["facts"]
    assert facts["licence"] and facts["access"]
    assert all(len(file["sha256"]) == 64 for file in facts["annotations"])
    expected = report["expected"]
    below = min(expected["found"] - expected["low"], 0)
    assert expected["difference"] == below
    assert f"difference {below:+d}" in capsys.readouterr().out


@pytest.mark.parametrize("key", [key for key in PARTS if not key.startswith("retina")])
def test_the_folder_itself_may_be_given_as_raw(key, run, tmp_path):
    whole = run(key)
    (folder,) = (tmp_path / "raw" / key).iterdir()
    inner = run(key, raw=folder)
    counts = [{s: len(x) for s, x in corpora.samples(out).items()} for out in (whole, inner)]
    assert counts[0] == counts[1]


# --- captions -----------------------------------------------------------------------------------


def test_generated_captions_are_taken_only_when_asked_for(run):
    """Defect 12: the published ones hold invented findings."""
    with_templates = corpora.samples_of(run("radimagenet"))
    assert {c for s in with_templates.values() for c in s.captions} == {
        "finding 0 on ct",
        "finding 1 on mri",
        "finding 2 on ultrasound",
    }
    released = corpora.samples_of(run("radimagenet", "--released_captions", captions=False))
    for sample in released.values():
        assert len(sample.captions) == 10 and sample.num_original_captions == 0


def test_labels_without_captions_are_refused_with_the_remedy(run, capsys):
    capsys.readouterr()
    out = run("radimagenet", captions=False, status=1)  # with reports, and without a corpus
    message = capsys.readouterr().err
    assert not (out / "manifest.json").exists() and corpora.report(out)["rejected"] == 3
    assert "label 'finding" in message
    assert "--captions" in message


@pytest.mark.parametrize("key", [key for key, part in PARTS.items() if part.labels is not None])
def test_label_sets_are_listed_for_captioning(key, tmp_path):
    raw, table = tmp_path / "raw", tmp_path / "labels.jsonl"
    layouts.BUILDERS[key](raw)
    assert corpora.main([key, f"--raw={raw}", f"--labels_out={table}"]) == 0
    sets = [json.loads(line) for line in table.read_text().splitlines()]
    assert all(s["source"] == key and s["labels"] and s["modality"] for s in sets)
    assert len({(s["modality"], *sorted(s["labels"])) for s in sets}) == len(sets)
    if key == "mimic_cxr":
        assert sets == [{"source": key, "modality": "xray", "labels": ["edema"], "rows": 4}]


def test_a_part_without_labels_has_no_label_sets(tmp_path, capsys):
    layouts.pmc_oa(tmp_path)
    flags = ["pmc_oa", f"--raw={tmp_path}"]
    assert corpora.main([*flags, f"--labels_out={tmp_path / 'labels.jsonl'}"]) == 2
    assert "no row of the source has a label" in capsys.readouterr().err
    assert corpora.main(flags) == 2
    assert "--labels_out=FILE" in capsys.readouterr().err


def test_full_stops_are_the_same_everywhere(run, tmp_path):
    """Defect 11."""
    raw = tmp_path / "raw/chexpert"
    layouts.chexpert(raw)
    path = raw / "CheXpert-v1.0-small/chexpert_with_captions_only_frontal_view.csv"
    text = path.read_text().replace("caption 0 with", "caption 0 ends..', 'Another with")
    path.write_text(text)
    out = run("chexpert", "--released_captions", captions=False)
    captions = [c for s in corpora.samples_of(out).values() for c in s.captions]
    assert "Invented caption 0 ends." in captions
    assert all(c.endswith(".") and not c.endswith("..") for c in captions)


def test_a_row_with_fewer_captions_than_ten_gets_no_empty_one(run):
    """Defect 9."""
    report = corpora.report(run("retina_part1", "--released_captions"))
    assert report["notes"]["fewer than 10 released captions"] == 1


def test_original_and_generated_captions_are_kept_apart(run):
    """Defects 8 and 10: kinds are stored, and training draws by the rule of the part."""
    openi = next(iter(corpora.samples_of(run("openi", "--released_captions")).values()))
    assert openi.num_original_captions == 1 and len(openi.captions) == 4
    assert openi.captions[0].startswith("Invented report")
    mimic = corpora.samples_of(run("mimic_cxr"))
    assert sorted(s.num_original_captions for s in mimic.values()) == [0, 1]
    assert all("edema on xray" in s.captions for s in mimic.values())
    assert PARTS["openi"].caption_rule == "original:1"
    assert PARTS["mimic_cxr"].caption_rule == "original:1"


def test_caption_and_mention_are_two_samples_of_the_published_corpus(run):
    out = run("llava_med_hq60k", "--corpus=published", captions=False)
    samples = corpora.samples_of(out)
    found = sorted((id_.partition("#")[0], s.captions, s.group) for id_, s in samples.items())
    assert found == [
        ("llava_med_hq60k/PMC300_F1.jpg", ("Caption zero",), "PMC300"),
        ("llava_med_hq60k/PMC300_F1.jpg", ("The figure is mentioned here.",), "PMC300"),
        ("llava_med_hq60k/PMC301_F1.jpg", ("Caption one",), "PMC301"),
        ("llava_med_hq60k/PMC302_F1.jpg", ("The figure is mentioned here.",), "PMC302"),
    ]
    report = corpora.report(out)
    assert report["rejected_by_reason"] == {"neither text nor label": 1}
    assert (report["read"], report["written"], report["merged"]) == (5, 4, 0)
    assert report["expected"]["found"] == 4 and report["facts"]["corpus"] == "published"


def test_the_published_corpus_has_released_captions_and_ignores_splits(run):
    """What `--official_split=ignore --released_captions` give, in one flag."""
    for key in ("chexpert", "openi", "chestxray8", "retina_part1"):
        flags = ("--released_captions", "--official_split=ignore")
        out, other = (run(key, *f, captions=False) for f in (("--corpus=published",), flags))
        assert list(corpora.samples(out)) == ["train"]
        assert corpora.samples(out) == corpora.samples(other)
        assert corpora.report(out)["generated_captions"] > 0
    assert list(corpora.samples(run("quilt1m", "--corpus=published", captions=False))) == ["train"]


def test_a_corpus_is_clean_or_published(run, capsys):
    message = error(run, capsys, "pmc_oa", "--corpus=old")
    assert "--corpus=old: expected clean or published" in message


def test_caption_and_mention_are_two_texts_of_one_sample(run):
    out = run("llava_med_hq60k")
    samples = corpora.samples_of(out)
    both = samples["llava_med_hq60k/PMC300_F1.jpg"]
    assert both.captions == ("Caption zero", "The figure is mentioned here.")
    assert both.modality == "xray" and both.group == "PMC300"
    mention = samples["llava_med_hq60k/PMC302_F1.jpg"]
    assert (
        mention.captions == ("The figure is mentioned here.",) and mention.modality == "pathology"
    )
    assert corpora.report(out)["expected"]["of"] == "original captions"
    assert corpora.report(out)["expected"]["found"] == 4


def test_several_texts_of_one_image_are_samples_of_one_group(run):
    samples = corpora.samples_of(run("quilt1m"))
    assert {s.captions for s in samples.values()} == {
        ("Invented caption a",),
        ("Invented caption b",),
    }
    assert {s.group for s in samples.values()} == {"vid_0.jpg"}


def test_open_i_lists_of_different_length_are_refused(run, tmp_path, capsys):
    """Defect 21: joined by position, a missing entry would shift all captions."""
    raw = tmp_path / "raw/openi"
    layouts.openi(raw)
    layouts.put_json(raw / "openI/openai_refined_concepts.json", {"refined_captions": [["a"]]})
    assert "fewer entries" in error(run, capsys, "openi", "--released_captions")
    assert len(corpora.samples_of(run("openi"))) == 3


def test_keywords_become_one_caption_and_cells_are_never_run(run):
    """Defect 18: no random choice, no evaluation of cells."""
    samples = corpora.samples_of(run("retina_part2", captions=False))
    captions = {id_.rpartition("/")[2]: s.captions for id_, s in samples.items()}
    assert captions["1.jpg"] == ("Retinal fundus image: drusen.",)
    assert captions["3.jpg"] == ("Retinal fundus image: __import__('os').abort().",)


# --- splits and evaluation sets -----------------------------------------------------------------


def test_official_test_images_are_no_training_images(run):
    """Defect 5."""
    assert {s.group for s in corpora.samples_of(run("chestxray8"), "test").values()} == {"00000002"}
    assert only(run("mimic_cxr"), "val").group == "p10000002"
    assert only(run("chexpert"), "val").group == "patient64541"
    assert only(run("quilt1m"), "val").captions == ("Invented caption c",)


def test_a_missing_split_file_is_an_error_unless_waived(run, tmp_path, capsys):
    raw = tmp_path / "raw/chestxray8"
    layouts.chestxray8(raw)
    (raw / "chest_xray8/test_list.txt").unlink()
    message = error(run, capsys, "chestxray8")
    assert "test_list.txt" in message and "--official_split=ignore" in message
    out = run("chestxray8", "--official_split=ignore")
    assert corpora.samples(out).keys() == {"train"}
    assert corpora.report(out)["facts"]["official_split"] is None


@pytest.mark.parametrize(
    ("key", "names", "by", "left"),
    [
        # Defect 3: CheXpert-5x200 lies in train/
        (
            "chexpert",
            "Path\nCheXpert-v1.0/train/patient00002/study1/view1_frontal.jpg,1",
            "group",
            1,
        ),
        (
            "chexpert",
            "Path\nCheXpert-v1.0/train/patient00002/study1/view1_frontal.jpg,1",
            "image",
            2,
        ),
        # Defect 4: RSNA images are NIH images
        ("chestxray8", '[{"img_id": "00000001_000.png", "subset_img_id": "x"}]', "group", 0),
        ("chestxray8", "00000001_000.png 00000001_001.png", "image", 0),
        # Defect 2: ODIR200x3 shares patients with ODIR-5K
        ("retina_part1", "08_ODIR-5K/ODIR-5K/1_left.jpg\n", "group", 3),
        ("retina_part1", "08_ODIR-5K/ODIR-5K/1_left.jpg\n", "image", 4),
        ("retina_part1", "a,b\n1, 11_STARE/im0001.ppm \n", "group", 4),
        ("retina_part1", "34_Cataract/b.png", "image", 4),
    ],
)
def test_images_of_evaluation_sets_are_held_out(run, tmp_path, key, names, by, left):
    (tmp_path / "held_out").write_text(names)
    out = run(key, f"--held_out={tmp_path / 'held_out'}", f"--held_out_by={by}")
    assert len(corpora.samples(out).get("train", {})) == left
    report = corpora.report(out)
    assert report["rejected_by_reason"]["held out"] == report["rejected"] > 0


def test_a_list_that_names_no_image_of_the_part_is_an_error(run, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("cat.jpg\n")
    message = error(run, capsys, "chexpert", f"--held_out={tmp_path / 'list.txt'}")
    assert "names no image of this part" in message


def test_classes_are_excluded_by_words_and_not_where_they_are_denied(run):
    """Defect 1: `cataract` also as `Cataract.`, but not `no cataract`."""
    out = run("retina_part1", "--exclude_classes=cataract,myopia")
    (rejection,) = corpora.rejections(out)
    assert rejection["reason"] == "excluded class: cataract"
    assert rejection["path"] == "34_Cataract/b.png"


def test_flags_that_mean_nothing_to_a_part_are_errors(run, capsys):
    assert "no generated captions" in error(run, capsys, "pmc_oa", "--released_captions")
    assert "no labels" in error(run, capsys, "pmc_oa", "--exclude_classes=x")
    assert "group or image" in error(run, capsys, "openi", "--held_out_by=person")
    assert "required or ignore" in error(run, capsys, "openi", "--official_split=no")


# --- files --------------------------------------------------------------------------------------


def test_image_bytes_labels_and_groups_are_kept(run, tmp_path):
    """Defects 7 and 13."""
    sample = corpora.samples_of(run("chestxray8"))["chestxray8/00000001_001.png"]
    raw = tmp_path / "raw/chestxray8/chest_xray8/images/00000001_001.png"
    assert sample.image == raw.read_bytes()
    assert sample.labels == ("nodule 1",) and sample.group == "00000001"
    assert sample.modality == "xray"


def test_ppm_images_are_stored_as_png(run):
    out = run("retina_part1")
    assert corpora.report(out)["notes"]["PPM stored as PNG"] == 1
    assert corpora.samples_of(out)["retina_part1/11_STARE/im0001.ppm"].image[1:4] == b"PNG"


def test_the_path_determines_the_modality_of_radimagenet(run):
    modalities = {s.labels[0]: s.modality for s in corpora.samples_of(run("radimagenet")).values()}
    assert modalities == {"finding 0": "ct", "finding 1": "mri", "finding 2": "ultrasound"}


def test_views_that_are_not_frontal_are_counted(run):
    """Defect 26."""
    notes = corpora.report(run("chexpert"))["notes"]
    assert notes == {"lateral view in a part said to be frontal": 1}


@pytest.mark.parametrize("prefix", ["", "2.0.0/files/", "files/", "mimic-cxr-jpg/2.0.0/files/"])
def test_path_prefixes_are_found_by_looking(run, tmp_path, prefix):
    """Defect 23. The id does not depend on them."""
    raw = tmp_path / "raw/mimic_cxr"
    layouts.mimic_cxr(raw)
    path = next(raw.rglob("mimic_cxr_with*.csv"))
    path.write_text(path.read_text().replace("2.0.0/files/", prefix))
    out = run("mimic_cxr")
    assert len(corpora.samples_of(out)) == 2
    assert all(id_.startswith("mimic_cxr/p10/p1000") for id_ in corpora.samples_of(out))
    assert corpora.report(out)["facts"]["image_folder"] == "mimic-cxr-jpg/2.0.0/files"


def test_an_empty_list_of_images_is_no_image(run, tmp_path):
    raw = tmp_path / "raw/radimagenet"
    layouts.radimagenet(raw)
    path = next(raw.rglob("radimagenet_with*.csv"))
    path.write_text(path.read_text().replace("['radiology_ai/CT/abd/x/1.png']", "[]"))
    (rejection,) = corpora.rejections(run("radimagenet"))
    assert rejection["reason"] == "no image"


def test_odd_cells_are_refused_and_odd_names_found(run, tmp_path):
    raw = tmp_path / "raw/pmc_oa"
    layouts.pmc_oa(raw)
    folder = raw / "pmc_oa/caption_T060_filtered_top4_sep_v0_subfigures"
    layouts.put_image(folder / "two  spaces, and a comma.jpg")
    cells = ["two  spaces, and a comma.jpg", {"a": 1}, None, float("nan"), ["x"], "", " "]
    lines = [json.dumps({"image": cell, "caption": "Invented"}) for cell in cells]
    lines.append(json.dumps({"image": "PMC100_Fig1_0.jpg", "caption": {"odd": 1}}))
    with (raw / "pmc_oa/pmc_oa.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
    out = run("pmc_oa", "--max_rejected=0.9")
    assert "pmc_oa/two  spaces, and a comma.jpg" in corpora.samples_of(out)
    reasons = [r["reason"] for r in corpora.rejections(out)]
    assert reasons[:6] == ["no image"] * 6 and "expected a text" in reasons[6]


def test_a_column_by_position_is_checked(run, tmp_path, capsys):
    """Defect 22."""
    raw = tmp_path / "raw/chexpert"
    layouts.chexpert(raw)
    path = next(raw.rglob("chexpert_with*.csv"))
    rows = [[repr(["opacity"]), repr(["train/x.jpg"]), repr(["c"])]]
    layouts.put_csv(path, ["a", "b", "c"], rows)
    message = error(run, capsys, "chexpert")
    assert "column 0 holds no image paths, for example 'opacity'" in message
    layouts.put_csv(path, ["a"], [["x.jpg"]])
    assert "no column 1; found ['a']" in error(run, capsys, "chexpert")


def test_quilt_columns_are_found_by_name(run, tmp_path, capsys):
    raw = tmp_path / "raw/quilt1m"
    layouts.quilt1m(raw)
    path = raw / "Quilt/quilt_1M_lookup.csv"
    path.write_text(path.read_text().replace("image_path", "image"))
    assert "no column 'image_path'; found ['', 'caption'" in error(run, capsys, "quilt1m")


def test_images_that_quilt_marks_as_no_histology_are_counted(run, tmp_path):
    """Columns of later releases of the table; where they are missing, nothing is counted."""
    raw = tmp_path / "raw/quilt1m"
    layouts.quilt1m(raw)
    path = raw / "Quilt/quilt_1M_lookup.csv"
    header, *rows = path.read_text().splitlines()
    marks = ["1.0", "0.0", "1", "", "1"]
    rows = [f"{row},0,{mark}" for row, mark in zip(rows, marks, strict=True)]
    path.write_text("\n".join([f"{header},single_wsi,not_histology", *rows]))
    notes = corpora.report(run("quilt1m"))["notes"]
    assert notes == {"marked as no histology by Quilt itself": 1}


def test_the_error_for_missing_annotations_says_where_to_get_them(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    message = error(run, capsys, "pmc_oa", raw=tmp_path / "empty")
    assert "pmc_oa.jsonl" in message and "huggingface.co/datasets/axiong/pmc_oa" in message


def test_a_missing_image_is_refused_and_does_not_stop_the_part(run, tmp_path):
    """Defect 15: every part has the one policy."""
    raw = tmp_path / "raw/radimagenet"
    layouts.radimagenet(raw)
    next(raw.rglob("1.png")).unlink()
    out = run("radimagenet")
    (rejection,) = corpora.rejections(out)
    assert rejection["reason"] == "cannot read the image: No such file or directory"
    assert rejection["row"] == 1


def test_a_corpus_of_which_too_many_rows_are_rejected_is_not_published(run, tmp_path, capsys):
    raw = tmp_path / "raw/radimagenet"
    layouts.radimagenet(raw)
    next(raw.rglob("1.png")).unlink()
    out = run("radimagenet", "--max_rejected=0.3", status=1)
    shown = capsys.readouterr()
    assert "33.3% of the rows were rejected" in shown.err
    assert "rejected, cannot read the image: 1" in shown.out
    assert not (out / "manifest.json").exists() and len(corpora.rejections(out)) == 1


def test_files_of_a_folder_are_read_in_the_order_of_names(run, tmp_path):
    """Defect 18: the corpus does not depend on how the file system lists a folder."""
    first = run("retina_part1")
    raw = tmp_path / "raw/retina_part1/Retina-Annotations"
    for path in sorted(raw.iterdir(), reverse=True):
        shutil.copy(path, tmp_path / "copy.csv")
        path.unlink()
        (tmp_path / "copy.csv").rename(path)
    again = run("retina_part1")
    assert corpora.contents(first) == corpora.contents(again)
    facts = corpora.report(first)["facts"]
    assert "07_LAG_revised.csv" in facts["annotations_left_out"]
    assert [f["file"] for f in facts["annotations"]] == sorted(
        f["file"] for f in facts["annotations"]
    )
