"""tools/inspect_corpus.py and what it is made of: duplicates, leaks, burned-in text, the report."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.html_page import Page
from helpers.pictures import jpeg, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageDraw, ImageFont

from input_pipeline import manifest
from input_pipeline.conversion import exclude
from input_pipeline.io.errors import CorpusError

pytest.importorskip("imagehash", reason="the extra [inspect] is not installed")

from input_pipeline.inspection import duplicates, scan
from unimed_jax.reporting import corpus_report

TOOLS = Path(__file__).parents[3] / "tools"


def _tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


inspect_corpus, convert_corpus = _tool("inspect_corpus"), _tool("convert_corpus")


def write(directory, images):
    """images: name -> (bytes, split, label, source); a table beside them."""
    directory.mkdir(exist_ok=True)
    with (directory / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "label", "source", "modality", "text"])
        for name, (data, split, label, source) in images.items():
            (directory / name).write_bytes(data)
            words = "a word " * (len(name) + 3)
            writer.writerow([name, split, label, source, "ct", words])
    return directory / "table.csv"


def convert(table, out, *flags):
    command = ["csv", f"--input={table}", f"--out={out}", "--workers=1", *flags]
    assert convert_corpus.main(command) == 0


@pytest.fixture
def table(tmp_path):
    images = {f"{n}.jpg": (jpeg(picture(n)), "train", "a", "one") for n in range(12)}
    images |= {f"v{n}.jpg": (jpeg(picture(100 + n)), "val", "b", "two") for n in range(4)}
    images["copy.jpg"] = (jpeg(picture(0)), "train", "other", "two")  # byte for byte
    images["small.jpg"] = (jpeg(picture(1).resize((120, 100)), 60), "train", "a", "one")
    images["leak.jpg"] = (jpeg(picture(100), 50), "train", "b", "one")  # v0.jpg again
    images["bad.jpg"] = (b"no image", "train", "a", "one")
    return write(tmp_path / "raw", images)


def names(image_ids):
    return {image_id.rpartition("/")[2] for image_id in image_ids}


def test_the_whole_way_from_inspection_to_exclusion(table, tmp_path, capsys):
    convert(table, tmp_path / "corpus")
    evaluation = tmp_path / "evaluation" / "class"
    evaluation.mkdir(parents=True)
    picture(5).resize((130, 108)).save(evaluation / "x.png")
    picture(77).save(evaluation / "y.png")
    (evaluation / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    flags = (f"--against={tmp_path / 'evaluation'}", "--text_images=0", "--samples=3")
    assert inspect_corpus.main([str(tmp_path / "corpus"), f"--out={out}", *flags]) == 0

    groups = [json.loads(line) for line in (out / "duplicates.jsonl").read_text().splitlines()]
    found = {frozenset(names(m["id"] for m in g["members"])): g["exact"] for g in groups}
    assert found == {
        frozenset({"0.jpg", "copy.jpg"}): True,
        frozenset({"1.jpg", "small.jpg"}): False,
        frozenset({"v0.jpg", "leak.jpg"}): False,
    }
    excluded = exclude.load(out / "exclude.jsonl")
    assert names(excluded) == {"leak.jpg", "5.jpg"}
    assert "nearly equal to two/v0.jpg of split val" in excluded["one/leak.jpg"]
    assert "nearly equal to class/x.png of evaluation" in excluded["one/5.jpg"]
    statistics = json.loads((out / "statistics.json").read_text())
    assert statistics["images"] == 19 and statistics["images_in_evaluation_sets"] == 1
    assert statistics["train_images_in_other_splits"] == 1
    assert statistics["rejections"] == {"not an image, or of an unknown format": 1}

    page = Page((out / "report.html").read_text())
    assert ["one", "ct", "14", "train 14", "2", "1.0"] in [row[:6] for row in page.rows]
    assert ["evaluation", "2", "1", "1"] in page.rows
    assert ["not an image, or of an unknown format", "1"] in page.rows
    assert all(tag not in ("script", "link") for tag, _ in page.tags)
    assert len(page.images) == 2 * 3 + 2 * 3 + 2, "three groups, two sheets, one leak"

    convert(table, tmp_path / "clean", f"--exclude={out / 'exclude.jsonl'}")
    clean = manifest.load(tmp_path / "clean")
    assert (clean.read, clean.written, clean.rejected) == (20, 17, 3)
    lines = (tmp_path / "clean" / "rejected.jsonl").read_text()
    assert "excluded: nearly equal to class/x.png of evaluation" in lines
    capsys.readouterr()
    assert inspect_corpus.main([str(tmp_path / "clean"), f"--out={out}", *flags]) == 0
    assert "images in evaluation sets: 0" in capsys.readouterr().out


@pytest.mark.slow  # starts worker processes
def test_tokens_are_counted_by_the_tokenizer(table, tmp_path, phantom_corpus):
    convert(table, tmp_path / "corpus")
    images = scan.scan_corpus(tmp_path / "corpus", phantom_corpus / "vocab.txt")
    by_name = {Path(image.id).name: image for image in images}
    words = scan.scan_corpus(tmp_path / "corpus", workers=2)
    assert [image.id for image in words] == [image.id for image in images]
    assert {image.id: image.phash.tolist() for image in words} == {
        image.id: image.phash.tolist() for image in images
    }
    assert {Path(i.id).name: i for i in words}["3.jpg"].caption_lengths == (16,)
    assert by_name["3.jpg"].caption_lengths[0] > 16  # [CLS], [SEP] and pieces
    share = corpus_report.truncated_share(images, by_name["3.jpg"].caption_lengths[0])
    assert 0 < share < 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 20), st.integers(2, 60))
def test_near_pairs_are_all_and_only_those_within_reach(seed, distance, count):
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (count, 256), np.uint8)
    for index in range(1, count, 2):  # neighbours of the one before, around the limit
        bits[index] = bits[index - 1]
        flipped = random.choice(256, random.integers(0, distance + 4), replace=False)
        bits[index, flipped] ^= 1
    hashes = np.packbits(bits, axis=1)
    apart = (bits[:, None] != bits[None]).sum(-1)
    expected = np.argwhere(np.triu(apart <= distance, 1))
    np.testing.assert_array_equal(duplicates.near_pairs(hashes, distance), expected)


def test_many_images_are_not_compared_pair_by_pair(monkeypatch):
    compared = []
    pairs_within = duplicates._pairs_within

    def counting(bucket):
        for left, right in pairs_within(bucket):
            compared.append(len(left))
            yield left, right

    monkeypatch.setattr(duplicates, "_pairs_within", counting)
    hashes = np.random.default_rng(0).integers(0, 256, (20_000, 32), np.uint8)
    hashes[1] = hashes[0]
    assert duplicates.near_pairs(hashes, 16).tolist() == [[0, 1]]
    assert sum(compared) < 20_000**2 / 2 / 1000


def test_the_excluded_are_named_by_line(tmp_path):
    path = tmp_path / "x.jsonl"
    exclude.save(path, {"a": "why", "b": "because"})
    assert exclude.load(path) == {"a": "why", "b": "because"}
    for line in ('{"id": 3}', "[]", '{"reason": "x"}', "{"):
        path.write_text('{"id": "a"}\n\n' + line + "\n")
        with pytest.raises(CorpusError, match="line 3: expected"):
            exclude.load(path)


def test_what_cannot_be_inspected_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert inspect_corpus.main([str(tmp_path / "empty"), f"--out={tmp_path}"]) == 2
    assert "has no manifest.json" in capsys.readouterr().err
    with pytest.raises(CorpusError, match="neither a corpus"):
        scan.scan(tmp_path / "empty")
    with pytest.raises(CorpusError, match="not a directory"):
        scan.scan(tmp_path / "none")


def test_reasons_are_counted_without_what_is_of_one_row():
    texts = [f'no text, and no caption for label \'x{n}\': add "sources" / "{n}"' for n in (1, 2)]
    assert len({corpus_report.reason_of(text) for text in texts}) == 1


@pytest.mark.slow  # loads OCR models
def test_burned_in_text_is_found():
    pytest.importorskip("rapidocr")
    from input_pipeline.inspection.burned_in import TextDetector

    detect = TextDetector()
    plain = picture(1, (300, 260)).point(lambda value: value // 3)
    assert detect(np.asarray(plain)).texts == ()
    marked = plain.copy()
    draw = ImageDraw.Draw(marked)
    draw.text((20, 20), "DOE JOHN", fill="white", font=ImageFont.load_default(20))
    assert not detect(np.asarray(marked)).like_identifier
    draw.text((20, 60), "12.03.1961", fill="white", font=ImageFont.load_default(20))
    found = detect(np.asarray(marked))
    assert "1961" in " ".join(found.texts) and found.like_identifier
