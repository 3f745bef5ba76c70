"""What is suspect about the samples of a corpus is counted, and refused where it is frequent."""

import csv
import io
import json

import numpy as np
import pytest
from helpers import corpora
from helpers.corpora import convert
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.conversion import guard
from input_pipeline.conversion.planned_rows import PlannedRow, SampleWithNotes
from input_pipeline.conversion.sources.base import Conversion
from input_pipeline.conversion.write_shards import write_corpus
from input_pipeline.io.cell_text import is_missing, says_nothing
from input_pipeline.io.errors import CorpusError
from input_pipeline.records import Sample

RAMP = np.tile(np.arange(64, dtype=np.uint8), (48, 1))


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def made(number, pixels=RAMP, caption="a text", file_varies=None, kind="PNG"):
    sample = Sample(f"s{number}", encoded(pixels, kind), (caption,), 1, (), "ct", "src")
    return SampleWithNotes(sample, (), file_varies)


def conversion_of(samples):
    """A conversion whose rows are numbers of samples."""
    rows = [PlannedRow(n, "train", f"s{n}") for n in range(len(samples))]
    return Conversion("made", rows, _Make(samples))


class _Make:
    def __init__(self, samples):
        self.samples = samples

    def __repr__(self):
        return "Make"

    def __call__(self, number):
        return self.samples[number]


def lost(number):
    return made(number, RAMP * 0, file_varies=lambda: True)


def test_images_that_lost_their_content_are_counted_and_refused_above_a_share(tmp_path):
    few = [lost(0), *(made(n) for n in range(1, 30))]
    write_corpus(tmp_path / "few", conversion_of(few))
    suspect = corpora.report(tmp_path / "few")["suspect"]
    assert suspect[guard.LOST] == {"samples": 1, "share": 0.0333, "limit": 0.05, "first": "s0"}

    many = [lost(0), lost(1), *(made(n) for n in range(2, 30))]
    with pytest.raises(CorpusError, match=r"2 samples \(6.7%\) have images of nearly one"):
        write_corpus(tmp_path / "many", conversion_of(many))
    assert not (tmp_path / "many" / "manifest.json").exists()
    assert corpora.report(tmp_path / "many")["suspect"][guard.LOST]["samples"] == 2
    with pytest.raises(CorpusError):  # nor does another start publish it
        write_corpus(tmp_path / "many", conversion_of(many))
    manifest = write_corpus(tmp_path / "many", conversion_of(many), max_suspect=0.07)
    assert manifest.written == 30 and (tmp_path / "many" / "manifest.json").exists()


def test_flat_files_and_sparse_images_are_not_lost():
    noise = np.random.default_rng(0).integers(99, 102, (200, 200), np.uint8)
    spot = RAMP * 0
    spot[:10, :10] = 200
    blue = np.zeros((48, 64, 3), np.uint8) + np.uint8([0, 0, 255])
    large = np.tile(np.arange(256, dtype=np.uint8), (300, 2))
    for pixels, found in (
        (RAMP, ()),
        (spot, ()),
        (large, ()),
        (RAMP * 0, (guard.FLAT,)),
        (noise, (guard.FLAT,)),
        (blue, (guard.FLAT,)),
        (np.zeros((900, 900), np.uint8), (guard.FLAT,)),
    ):
        assert guard.findings(made(0, pixels)) == found
    assert guard.findings(made(0, blue, kind="JPEG")) == (guard.FLAT,)
    assert guard.findings(made(0, RAMP * 0, file_varies=lambda: False)) == (guard.FLAT,)
    assert guard.findings(made(0, caption="?!")) == (guard.NO_CAPTION,)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_the_values_of_a_file_are_those_that_are_stored(kind):
    ramp = RAMP.astype(np.uint16) * 50
    assert guard.file_varies(encoded(ramp, kind))
    assert not guard.file_varies(encoded(ramp * 0 + 7, kind))


def test_values_that_are_no_numbers_are_counted_and_refused(tmp_path, capsys):
    rows = ["image,text"]
    for n in range(10):
        values = RAMP.astype(np.float32)
        values[3, 4] = (np.nan, np.inf)[n] if n < 2 else 1
        (tmp_path / f"{n}.tif").write_bytes(encoded(values, "TIFF"))
        rows.append(f"{n}.tif,a text")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    flags = (f"--input={tmp_path / 't.csv'}", "--modality=ct", "--source=s")
    assert convert("csv", tmp_path / "out", *flags) == 1
    assert "2 samples (20.0%) have values that are no numbers" in capsys.readouterr().err
    assert convert("csv", tmp_path / "out", *flags, "--max_suspect=0.2") == 0
    assert set(corpora.report(tmp_path / "out")["suspect"]) == {guard.NOT_FINITE}


def test_masks_in_which_no_class_is_left_are_refused(tmp_path, capsys):
    raw = tmp_path / "raw"
    for n in range(4):
        for folder in ("images", "masks"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
        (raw / "images" / f"{n}.png").write_bytes(encoded(RAMP))
        (raw / "masks" / f"{n}.png").write_bytes(encoded((RAMP > 40) * np.uint8(n == 0)))
    out = tmp_path / "out"
    flags = (f"--raw={raw}", "--modality=mri", "--classes=a", "--held_out=0")
    assert convert("masks", out, *flags) == 1
    assert "3 samples (75.0%) have masks without foreground, for example" in capsys.readouterr().err
    assert not (out / "manifest.json").exists()
    assert convert("masks", out, *flags, "--max_suspect=0.75") == 0
    assert "suspect, masks without foreground: 3" in capsys.readouterr().out
    assert corpora.report(out)["suspect"][guard.EMPTY]["samples"] == 3


def test_a_window_that_misses_the_values_is_refused(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).normal(0.5, 0.1, (8, 8, 8)).astype(np.float32)
    labels = (values > 0.5).astype(np.uint8)
    for name, volume in (("a_image", values), ("a_label", labels)):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii.gz")
    flags = (f"--raw={tmp_path}", "--layout=names", "--modality=mri", "--classes=a", "--held_out=0")
    assert convert("nifti_volumes", tmp_path / "out", *flags, "--window=100,200") == 1
    assert "nearly one value whose files are not" in capsys.readouterr().err
    assert convert("nifti_volumes", tmp_path / "b", *flags) == 0
    assert not corpora.report(tmp_path / "b")["suspect"]


def test_texts_that_say_nothing_are_no_captions(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(RAMP))
    texts = ["nan", "N/A", ".", "12 %", "a scan", "a scan", "nan", "a scan"]
    labels = ["x", "x", "nan", "N/A", "nan", "x", "", "x"]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "label", "split", "key"])
        for n, (text, label) in enumerate(zip(texts, labels, strict=True)):
            writer.writerow(["a.png", text, label, "nan", f"k{n}"])
    (tmp_path / "c.json").write_text(
        json.dumps({"version": 1, "modalities": {"ct": {"*": ["{label} on CT"]}}})
    )
    flags = (f"--input={tmp_path / 't.csv'}", f"--captions={tmp_path / 'c.json'}")
    flags += ("--modality=ct", "--source=s", "--id_column=key")
    out = tmp_path / "out"
    assert convert("csv", out, *flags) == 0
    found = {key: s.captions for key, s in corpora.samples_of(out).items()}
    both = ("a scan", "x on CT")
    only = ("x on CT",)
    assert found == {"k0": only, "k1": only, "k4": ("a scan",), "k5": both, "k7": both}
    assert [(r["id"], r["reason"]) for r in corpora.rejections(out)] == [
        ("k2", "no label, and the text says nothing: '.'"),
        ("k3", "no label, and the text says nothing: '12 %'"),
        ("k6", "no label, and the text says nothing: 'nan'"),
    ]
    report = corpora.report(out)
    assert report["suspect"][guard.NO_CAPTION]["samples"] == 2
    assert report["notes"][guard.LEFT_OUT] == 2


@given(st.text())
def test_words_are_captions(text):
    assert not says_nothing(f"a scan {text}")
    assert is_missing(text) <= (says_nothing(text) or not text.strip())


def test_generated_corpora_are_not_suspect(tmp_path):
    assert convert("mask_phantoms", tmp_path / "a", "--style=warm", "--num_images=10") == 0
    assert convert("volume_phantoms", tmp_path / "b", "--num_volumes=4", "--voxels=24") == 0
    for name in "ab":
        assert not corpora.report(tmp_path / name)["suspect"]
