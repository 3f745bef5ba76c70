"""`--held_out=unimed21` keeps the images of the suite out of a corpus, by names and by pictures."""

import csv
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from helpers import official_layouts, suite_archive
from helpers.corpora import contents, convert, rejections, report, samples
from helpers.pictures import jpeg, picture
from helpers.unimed_layouts import put_csv
from PIL import Image

pytest.importorskip("imagehash", reason="the extra [inspect] is not installed")

from input_pipeline.conversion.held_out import Pictures, path_of
from input_pipeline.io.perceptual_hash import perceptual_hash
from unimed_jax.evals.benchmark.spec import load_suite

UUIDS = [f"0004cfab-14fd-4e49-80ba-63a80b6bdd{n:02x}" for n in range(6)]


@pytest.fixture(scope="module")
def generated_sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    suite_archive.write_archive(root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    suffixes = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
    for n, path in enumerate(path for path in files if path.suffix in suffixes):
        picture(1000 + n).save(path)
    return root


@pytest.fixture
def sets(generated_sets, tmp_path):
    """A folder of test sets with a picture in each image file of the archive's layout."""
    return shutil.copytree(generated_sets, tmp_path / "sets")


def run(key, tmp_path, sets, *flags, status=0, raw="raw"):
    out = tmp_path / "out" / f"{key}{len(list(tmp_path.glob('out/*')))}"
    folder = tmp_path / raw
    suite = ("--held_out=unimed21", f"--suite_data={sets}", "--max_rejected=1")
    flags = (f"--raw={folder}", *suite, *flags)
    assert convert(key, out, *flags) == status
    return out


def kept(out):
    return {name.partition("/")[2] for split in samples(out).values() for name in split}


def refused(out):
    return {x["path"].rpartition("/")[2]: x["reason"] for x in rejections(out)}


# --- by name ------------------------------------------------------------------------------------


def chexpert_list(sets, patients):
    """CheXpert-5x200 in the layout of its list, with reports over several lines."""
    names = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
    rows = []
    for n, patient in enumerate(patients):
        path = f"CheXpert-v1.0-small/train/{patient}/study1/view1_frontal.jpg"
        place = sets / "chexpert" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(500 + n).save(place)
        rows.append([n, path, "F", *(float(i == n % 5) for i in range(5)), "two\nlines, quoted"])
    for stale in (sets / "chexpert").glob("*.csv"):
        stale.unlink()
    put_csv(sets / "chexpert-5x200.csv", ["", "imgpath", "Sex", *names, "Report Impression"], rows)


@pytest.mark.parametrize(("by", "left"), [("group", 2), ("image", 3)])
def test_chexpert_5x200_and_its_patients_leave_chexpert(tmp_path, sets, capsys, by, left):
    official_layouts.chexpert(tmp_path / "raw")
    table = tmp_path / "raw" / "CheXpert-v1.0-small" / "train.csv"
    rows = list(csv.reader(table.open()))
    for n in (1, 2):  # further images of a patient of the test set, and of another
        row = list(rows[n])
        row[0] = row[0].replace("study1", "study7")
        place = tmp_path / "raw" / row[0]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg(picture(n)))
        rows.append(row)
    put_csv(table, rows[0], rows[1:])
    chexpert_list(sets, ["patient00002", "patient64540"])
    out = run("chexpert", tmp_path, sets, "--captions=auto", f"--held_out_by={by}")
    assert {name.split("/")[1] for name in kept(out) if name.startswith("train")} == {
        "patient00001", *(["patient00002"] if by == "image" else [])
    }  # fmt: skip
    assert len([name for name in kept(out) if name.startswith("train")]) == left
    found = report(out)
    held_out = [r for r in rejections(out) if r["reason"].startswith("in the test set")]
    assert {r["reason"].partition(":")[0] for r in held_out} == {
        "in the test set chexpert-5x200 by name"
    }
    assert found["rejected_by_reason"]["in the test set chexpert-5x200 by name"] == len(held_out)
    assert found["facts"]["test_sets"]["names"] == 2
    said = capsys.readouterr().out
    assert f"held out, images of unimed21: {len(held_out)}" in said and "by 2 names" in said


def rsna_list(sets, ids):
    folder = sets / "rsna_custom_test_set"
    for stale in folder.glob("images/*"):
        stale.unlink()
    rows = [[n, f"images/{name}.png", n % 2] for n, name in enumerate(ids)]
    for n, (_, name, _) in enumerate(rows):
        picture(700 + n).save(folder / name)
    put_csv(folder / "RSNA_pneumonia_balanced_testfile.csv", ["", "path", "Target"], rows)


def rsna_mapping(sets, pairs):
    entries = [
        {"subset_img_id": rsna, "img_id": nih, "StudyInstanceUID": "1.2", "orig_labels": ["x"]}
        for rsna, nih in pairs.items()
    ]
    name = "pneumonia-challenge-dataset-mappings_2018.json"
    (sets / name).write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("row_id", "path"),
    [
        ("nih/a/b.png", "a/b.png"),
        ("nih/a/b.png#0123abcd", "a/b.png"),  # the same image with other texts
        ("nih/a#1/b#2.png", "a#1/b#2.png"),
    ],
)
def test_the_path_of_a_row_is_without_the_hash_of_its_texts(row_id, path):
    assert path_of("nih", row_id) == path


def test_rsna_leaves_nih_by_the_public_mapping(tmp_path, sets):
    official_layouts.chestxray8(tmp_path / "raw")
    rsna_list(sets, UUIDS[:2])
    # the third is no test image: only those of the list are held out
    pairs = {
        UUIDS[0]: "00000001_000.png",
        UUIDS[1].upper(): "00000009_000.png",
        UUIDS[2]: "00000002_000.png",
    }
    rsna_mapping(sets, pairs)
    flags = ("--captions=auto", "--official_split=ignore")
    out = run("chestxray8", tmp_path, sets, *flags)
    assert kept(out) == {"00000002_000.png", "00000003_000.png", "00000004_000.png"}
    assert refused(out) == {
        name: f"in the test set rsna_pneumonia by the mapping of RSNA: {name}"
        for name in ("00000001_000.png", "00000001_001.png")
    }
    by_image = run("chestxray8", tmp_path, sets, *flags, "--held_out_by=image")
    assert kept(by_image) == kept(out) | {"00000001_001.png"}


def test_odir_by_patient_and_whole_sets_of_the_retina_family_by_folder(tmp_path, sets):
    raw = tmp_path / "raw"
    official_layouts.retina_part1(raw)
    own = [
        ("08_ODIR-5K/preprocessed_images/00_right.jpg", ["normal"]),  # the patient of 00_left.jpg
        ("13_FIVES/test/7_A.png", ["normal"]),
        ("25_REFUGE/g0001.jpg", ["glaucoma"]),
        ("37_DeepDRiD/regular/1.jpg", ["normal"]),
        ("99_Own/1.jpg", ["normal"]),
    ]
    table = [[n, image, "[]", repr(found)] for n, (image, found) in enumerate(own)]
    put_csv(raw / "Retina-Annotations/99_own.csv", ["", "image", "atributes", "categories"], table)
    for n, (image, _) in enumerate(own):
        place = raw / "Retina-Datasets" / image
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(n).save(place)
    out = run("retina_part1", tmp_path, sets, "--captions=auto")
    assert "99_Own/1.jpg" in kept(out) and len(kept(out)) == 4
    assert {why.partition(":")[0] for why in refused(out).values()} == {
        "in the test set odir_retina by name",
        "in the test set five_retina by folder",
        "in the test set refuge_retina by folder",
        "in the test set dr_regular by folder",
    }


# --- by picture ---------------------------------------------------------------------------------


def test_copies_of_all_21_sets_are_recognised_whatever_their_names(tmp_path, sets):
    """A folder with an image of every set, re-encoded, and other pictures."""
    folder = tmp_path / "raw" / "scan"
    folder.mkdir(parents=True)
    keys = [spec.key for spec in load_suite("unimed21").sets]
    for n in range(12):
        (folder / f"other{n}.jpg").write_bytes(jpeg(picture(n)))
    copied = one_of_each(sets)
    assert copied.keys() == set(keys)
    for n, (key, path) in enumerate(copied.items()):
        with Image.open(path) as image:
            copy = image.convert("RGB")
        if n % 2:
            copy = copy.resize((128, 107))
        (folder / f"{key}.jpg").write_bytes(jpeg(copy, 70))
    out = run("folder", tmp_path, sets, "--modality=ct", "--captions=auto")
    assert {name.rpartition("/")[2] for name in kept(out)} == {f"other{n}.jpg" for n in range(12)}
    found = refused(out)
    # skin_tumor's pictures are among skin_cancer's
    named = {name: why.split()[4] for name, why in found.items()}
    for key in keys:
        expected = {key} | ({"skin_cancer"} if key == "skin_tumor" else set())
        assert named[f"{key}.jpg"] in expected, key
        assert "by nearly equal picture" in found[f"{key}.jpg"]


def one_of_each(sets):
    """The file of one image of each set."""
    from unimed_jax.evals.benchmark.images import open_set

    specs = load_suite("unimed21").sets
    return {spec.key: sets / open_set(spec, sets).ids[-1] for spec in specs}


def test_equal_and_nearly_equal_pictures_leave_a_part_and_others_stay(tmp_path, sets):
    raw = tmp_path / "raw"
    folder = raw / "pmc_oa" / "caption_T060_filtered_top4_sep_v0_subfigures"
    folder.mkdir(parents=True)
    original = sets / "breast_us" / "images" / "2_1.png"
    with Image.open(original) as image:
        smaller = image.convert("RGB").resize((144, 120))
    contents_of = {
        "PMC1_F1_1.jpg": original.read_bytes(),  # a PNG under another name
        "PMC1_F1_2.jpg": jpeg(smaller, 80),
        "PMC1_F1_3.jpg": jpeg(picture(3)),
        "PMC1_F1_4.jpg": jpeg(Image.new("RGB", (64, 64), "white")),  # no picture at all
    }
    for name, data in contents_of.items():
        (folder / name).write_bytes(data)
    lines = [{"image": name, "caption": f"Invented {name}"} for name in contents_of]
    (raw / "pmc_oa" / "pmc_oa.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    Image.new("RGB", (64, 64), "white").save(sets / "breast_us" / "images" / "3_1.png")  # nor this
    out = run("pmc_oa", tmp_path, sets)
    assert kept(out) == {"PMC1_F1_3.jpg", "PMC1_F1_4.jpg"}
    assert refused(out) == {
        "PMC1_F1_1.jpg": "in the test set breast_us by equal file: breast_us/images/2_1.png",
        "PMC1_F1_2.jpg": "in the test set breast_us by nearly equal picture: "
        "breast_us/images/2_1.png",
    }


def test_pictures_leave_the_tars_of_unimed_which_have_no_names(tmp_path, sets):
    folder = tmp_path / "raw" / "chexpert_webdataset"
    folder.mkdir(parents=True)
    leak = (sets / "acl_mri" / "images" / "1_sagittal_2.000000.png").read_bytes()
    with tarfile.open(folder / "dataset-000001.tar", "w") as tar:
        for n, image in enumerate((jpeg(picture(1)), leak, jpeg(picture(2)))):
            text = "".join(f"Invented {n} {k}._chexpert_" for k in range(10)).encode()
            for suffix, data in (("jpg", image), ("txt", text)):
                member = tarfile.TarInfo(f"{n:06}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    out = run("webdataset", tmp_path, sets, "--part=chexpert")
    assert len(kept(out)) == 2
    (why,) = (rejection["reason"] for rejection in rejections(out))
    assert why.startswith("in the test set acl_mri by equal file: acl_mri/images/1_sagittal")


@pytest.mark.slow
def test_the_bytes_are_the_same_with_workers_and_from_the_cache(tmp_path, sets):
    folder = tmp_path / "raw" / "scan"
    folder.mkdir(parents=True)
    for n in range(6):
        (folder / f"{n}.jpg").write_bytes(jpeg(picture(n)))
    (folder / "leak.png").write_bytes((sets / "breast_us" / "images" / "2_1.png").read_bytes())
    flags = ("--modality=ct", "--captions=auto", "--name=x")
    first = run("folder", tmp_path, sets, *flags)
    cache = sets / ".unimed21_pictures.npz"
    state = cache.read_bytes()
    second = run("folder", tmp_path, sets, *flags, "--workers=2")
    assert contents(first) == contents(second) and cache.read_bytes() == state
    # a picture that has changed since, and a damaged cache
    picture(4).save(sets / "breast_us" / "images" / "2_1.png")
    third = run("folder", tmp_path, sets, *flags)
    assert refused(third).keys() == {"4.jpg"} and cache.read_bytes() != state
    cache.write_bytes(cache.read_bytes()[:-30])
    assert refused(run("folder", tmp_path, sets, *flags)).keys() == {"4.jpg"}


def test_sets_that_are_not_there_are_named(tmp_path, sets, capsys):
    folder = tmp_path / "raw" / "scan"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(jpeg(picture(1)))
    (sets / "BACH" / "microscopy_ground_truth.csv").unlink()
    (sets / "breast_us" / "images" / "2_1.png").unlink()
    out = run("folder", tmp_path, sets, "--modality=ct", "--captions=auto")
    facts = report(out)["facts"]["test_sets"]
    assert facts["without_pictures"].keys() == {"BACH", "breast_us"}
    assert "no such file" in facts["without_pictures"]["breast_us"]
    assert facts["pictures"]["BACH"] == 0 and facts["pictures"]["thyroid_us"] == 72
    assert "not by pictures of breast_us, BACH" in capsys.readouterr().out


def test_the_nearest_picture_is_named_and_none_beyond_reach():
    images = [picture(n) for n in range(4)]
    hashes = np.stack([perceptual_hash(image) for image in images])
    found = Pictures(frozenset(), hashes, ("a", "b", "c", "d"), ("0", "1", "2", "3"))
    assert found.find(jpeg(images[2], 60)) == "in the test set c by nearly equal picture: 2"
    assert found.find(jpeg(picture(9))) == ""
    again = Pictures(frozenset(), hashes.copy(), ("a", "b", "c", "d"), ("0", "1", "2", "3"))
    assert repr(again) == repr(found)
    assert repr(Pictures(frozenset(), hashes[::-1], found.sets, found.ids)) != repr(found)
    assert Pictures(frozenset(), np.empty((0, 32), np.uint8), (), ()).find(jpeg(images[0])) == ""


# --- wrong calls --------------------------------------------------------------------------------


def error(key, tmp_path, capsys, *flags):
    capsys.readouterr()
    out = tmp_path / "refused"
    assert convert(key, out, f"--raw={tmp_path / 'raw'}", *flags) == 2
    assert not (out / "manifest.json").exists()
    return capsys.readouterr().err


def test_a_list_that_is_needed_and_missing_is_an_error(tmp_path, sets, capsys):
    official_layouts.chexpert(tmp_path / "raw")
    official_layouts.chestxray8(tmp_path / "raw")
    flags = ("--held_out=unimed21", f"--suite_data={sets}")
    # the archive's list names no such image
    text = error("chexpert", tmp_path, capsys, "--held_out=unimed21", f"--suite_data={tmp_path}")
    assert "images of chexpert-5x200 are in chexpert, and its list is not in" in text
    rsna_list(sets, UUIDS[:2])
    rsna_mapping(sets, {UUIDS[0]: "00000001_000.png"})
    text = error("chestxray8", tmp_path, capsys, *flags)
    assert f"lacks 1 of the 2 images of {sets}" in text and UUIDS[1] in text
    (sets / "pneumonia-challenge-dataset-mappings_2018.json").write_text('{"a": 1}')
    assert "is not RSNA's mapping" in error("chestxray8", tmp_path, capsys, *flags)
    (sets / "pneumonia-challenge-dataset-mappings_2018.json").unlink()
    text = error("chestxray8", tmp_path, capsys, *flags)
    assert "it tells which of NIH's images are RSNA's; get it from https://" in text


def test_flags_that_need_each_other(tmp_path, sets, capsys):
    official_layouts.chexpert(tmp_path / "raw")
    text = error("chexpert", tmp_path, capsys, "--held_out=unimed21")
    assert "--held_out=unimed21 needs --suite_data=DIR" in text
    text = error("chexpert", tmp_path, capsys, f"--suite_data={sets}")
    assert "--suite_data needs --held_out, one of" in text
    (tmp_path / "empty").mkdir()
    flags = ("--modality=ct", "--held_out=unimed21", f"--suite_data={tmp_path / 'empty'}")
    assert "there is no image of a test set" in error("folder", tmp_path, capsys, *flags)
    flags = ("--modality=ct", "--held_out=unimed12")
    assert "--held_out=unimed12: expected" in error("folder", tmp_path, capsys, *flags)
