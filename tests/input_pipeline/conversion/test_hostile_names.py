"""File names that no program expects: the row is rejected and named, the others are converted."""

import os

import numpy as np
import pytest
from helpers import corpora
from helpers.damaged_images import encoded, picture
from PIL import Image

LONG = "x" * 300 + ".png"  # longer than any file system takes, as a caption in the wrong column is
LATIN_1 = os.fsdecode(b"caf\xe9.png")
MASK = encoded(Image.fromarray(np.eye(29, 37, dtype=np.uint8)), "PNG")


def fill(folder, content):
    """Ten good files, one of a name in latin-1, and a link to nowhere."""
    folder.mkdir(parents=True)
    for number in range(10):
        image = encoded(picture(seed=number), "PNG") if content is None else content
        (folder / f"{number}.png").write_bytes(image)
    (folder / LATIN_1).write_bytes(MASK)
    (folder / "nowhere.png").symlink_to(folder / "absent")


def table(path, header, rows):
    path.write_text("\n".join(",".join(cells) for cells in (header, *rows)) + "\n")
    return path


def convert(source, root, *flags):
    """Runs the conversion; returns what was rejected, by path."""
    assert corpora.convert(source, root / "out", *flags, "--num_shards=1") == 0
    return {line["path"]: line["reason"] for line in corpora.rejections(root / "out")}


def test_folder(tmp_path):
    fill(tmp_path / "raw" / "a", None)
    fill(tmp_path / "raw" / "b", None)
    captions = tmp_path / "captions.json"
    captions.write_text('{"version": 1, "sources": {"raw": {"a": ["an a"], "b": ["a b"]}}}')
    found = convert("folder", tmp_path, f"--raw={tmp_path / 'raw'}", "--modality=ct",
                    f"--captions={captions}")  # fmt: skip
    assert found[f"a/{LATIN_1}"] == "the name is not UTF-8: rename the file"
    assert corpora.report(tmp_path / "out")["written"] == 20


def test_csv(tmp_path):
    fill(tmp_path / "raw", None)
    os.mkfifo(tmp_path / "raw" / "pipe.png")
    (tmp_path / "raw" / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "raw" / "folder.png").mkdir()
    unreadable = [LONG, "absent.png", "nowhere.png", "folder.png", "pipe.png", "endless.png"]
    names = ["0.png", *unreadable, "../raw/1.png", "2.png"]
    rows = [(f"raw/{name}", "ct", "mine", f"picture {name}"[:40]) for name in names]
    file = table(tmp_path / "table.csv", ("image", "modality", "source", "text"), rows)
    found = convert("csv", tmp_path, f"--input={file}", "--max_rejected=0.9")
    assert found[f"raw/{LONG}"].startswith("cannot read the image: File name too long")
    assert found["raw/pipe.png"] == "cannot read the image: a pipe or device, not a file"
    assert set(found) == {f"raw/{name}" for name in unreadable}


@pytest.mark.parametrize("source", ["masks", "mask_table"])
def test_masks(tmp_path, source):
    fill(tmp_path / "raw" / "images", None)
    fill(tmp_path / "raw" / "masks", MASK)
    flags = ("--modality=ct", "--classes=a", "--held_out=0")
    if source == "masks":
        found = convert("masks", tmp_path, f"--raw={tmp_path / 'raw'}", *flags)
        assert found == {f"images/{LATIN_1}": "the name is not UTF-8: rename the file"}
        return
    names = [*(f"{n}.png" for n in range(5)), LONG, "nowhere.png"]
    rows = [(f"images/{name}", f"masks/{name}") for name in names]
    file = table(tmp_path / "raw" / "table.csv", ("image", "mask"), rows)
    found = convert("mask_table", tmp_path, f"--input={file}", "--image_column=image",
                    "--mask_column=mask", *flags)  # fmt: skip
    assert found[f"images/{LONG}"].startswith("no such file")
    assert found["images/nowhere.png"].startswith("no such file")


def test_nifti_slices(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    raw = tmp_path / "raw"
    raw.mkdir()
    values, labels = np.random.default_rng(0).normal(size=(8, 8, 4)), np.zeros((8, 8, 4), np.uint8)
    labels[2:5] = 1
    for name in ("a", "b", "link"):
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), raw / f"label_{name}.nii")
        if name != "link":
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), raw / f"image_{name}.nii")
    (raw / "image_link.nii").symlink_to(raw / "absent")
    (raw / "label_b.nii").write_bytes(b"no volume")
    found = convert("nifti_slices", tmp_path, f"--raw={raw}", "--modality=ct", "--classes=a",
                    "--held_out=0", "--max_rejected=0.9")  # fmt: skip
    assert found["image_link.nii"].startswith("cannot read the volume image_link.nii")
    assert found["label_b.nii"].startswith("cannot read the volume label_b.nii")
