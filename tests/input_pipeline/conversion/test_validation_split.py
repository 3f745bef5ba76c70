"""--val_fraction: patients stay together, and the share of a source does not move when it grows."""

import collections
import csv
import io
import json

import numpy as np
import pytest
from helpers.corpora import convert, samples_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.conversion import validation_split

COLUMNS = ("image", "label", "text", "modality", "source", "group", "split")


def write_table(folder, rows):
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, fields in enumerate(rows):
            buffer = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            (folder / f"{number}.png").write_bytes(buffer.getvalue())
            defaults = {
                "text": "a text",
                "modality": "ct",
                "source": "s",
                "split": "train",
                "group": "",
            }
            writer.writerow({"image": f"{number}.png", "label": "x"} | defaults | fields)
    return folder / "table.csv"


def test_patients_stay_together_over_labels(tmp_path, capsys):
    # each patient has one image of either label
    rows = [{"group": f"p{n // 2}", "label": "xy"[n % 2]} for n in range(60)]
    table = write_table(tmp_path, rows)
    out = tmp_path / "corpus"
    assert convert("csv", out, f"--input={table}", "--val_fraction=0.3") == 0
    splits = collections.defaultdict(set)
    for split in ("train", "val"):
        for sample in samples_of(out, split).values():
            splits[sample.group].add(split)
    assert len(splits) == 30
    assert all(len(found) == 1 for found in splits.values())
    assert 3 <= sum(found == {"val"} for found in splits.values()) <= 15
    facts = json.loads((out / "conversion.json").read_text())["facts"]["validation_split"]
    assert facts["fraction"] == 0.3 and facts["seed"] == 0
    assert "groups (patients) are in more than one split" not in capsys.readouterr().err
    # the same share again is the same corpus; another one is not
    assert convert("csv", out, f"--input={table}", "--val_fraction=0.3") == 0
    assert convert("csv", out, f"--input={table}", "--val_fraction=0.5") == 2


@pytest.mark.parametrize(
    "flag, rows, message",
    [
        ("1.5", [{}], "--val_fraction=1.5: expected a share above 0 and below 1"),
        ("nan", [{}], "--val_fraction=nan: expected a share above 0 and below 1"),
        ("0.5", [{}, {"split": "val"}], "row 2 (s/1.png) is in split 'val' already"),
        ("0.5", [{"group": "p"}, {"group": "p"}], "no row was assigned to"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, capsys, flag, rows, message):
    table, out = write_table(tmp_path, rows), tmp_path / "corpus"
    assert convert("csv", out, f"--input={table}", f"--val_fraction={flag}") == 2
    assert message in capsys.readouterr().err
    assert not (out / "manifest.json").exists()


@given(st.text(), st.floats(0.01, 0.98), st.integers(0, 9))
def test_a_larger_share_keeps_those_of_a_smaller_one(name, fraction, seed):
    if validation_split.is_validation(name, fraction, seed):
        assert validation_split.is_validation(name, fraction + 0.01, seed)


def test_the_share_is_the_one_asked_for():
    chosen = sum(validation_split.is_validation(str(n), 0.1, 0) for n in range(20_000))
    assert chosen == pytest.approx(2_000, abs=200)  # 4.7 standard deviations
