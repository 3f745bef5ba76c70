"""tools/convert_corpus.py: tables of real files in, a corpus or a one-line error out."""

import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers.corpora import REPO, TOOL, convert, main, rejections, report, samples_of
from PIL import Image

from input_pipeline import manifest, records
from input_pipeline.captioning import templates as caption_templates
from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.conversion import plan
from input_pipeline.io import images
from input_pipeline.io.cell_text import clean_texts
from input_pipeline.io.errors import CorpusError

MINIMED_CAPTIONS = REPO / "configs" / "captions" / "minimed.json"
MINIMED_PROMPTS = REPO / "unimed_jax" / "evals" / "prompts" / "minimed.json"

COLUMNS = ("image", "label", "text", "modality", "source", "split", "group")


def encoded(format_, seed=0, size=(17, 12), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format_)
    return buffer.getvalue()


def row(image, label="normal", text="a text", split="train", group=""):
    return dict(zip(COLUMNS, (image, label, text, "ct", "src", split, group), strict=True))


def write_csv(path, rows, columns=COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def run(source, table, out, *flags):
    return convert(source, out, f"--input={table}", *flags)


def error_of(capsys, source, table, out, *flags):
    """The message of a run that must fail: one line, exit status 2."""
    capsys.readouterr()  # drop what earlier runs printed
    assert run(source, table, out, *flags) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and "\n" not in message
    assert not (out / "manifest.json").exists()
    return message


@pytest.fixture
def table(tmp_path):
    """A CSV of six good rows in two splits."""
    rows = []
    for number in range(6):
        name = f"images/{number}.img"  # the suffix plays no part
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(("JPEG", "PNG")[number % 2], number))
        rows.append(row(name, split="val" if number > 3 else "train", group=f"p{number}"))
    write_csv(tmp_path / "table.csv", rows)
    return tmp_path / "table.csv"


# --- what is written ----------------------------------------------------------------------------


def test_samples_carry_the_row_and_the_very_bytes(table, tmp_path, capsys):
    assert run("csv", table, tmp_path / "out") == 0
    assert "6 rows read = 6 samples written + 0 rejected" in capsys.readouterr().out
    samples = samples_of(tmp_path / "out") | samples_of(tmp_path / "out", "val")
    assert set(samples) == {f"src/images/{n}.img" for n in range(6)}
    assert samples["src/images/5.img"] == records.Sample(
        id="src/images/5.img",
        image=(tmp_path / "images/5.img").read_bytes(),
        captions=("a text",),
        num_original_captions=1,
        labels=("normal",),
        modality="ct",
        source="src",
        group="p5",
    )


def test_jsonl_gives_the_same_corpus_as_csv(table, tmp_path):
    with table.open(newline="") as file:
        write_jsonl(tmp_path / "table.jsonl", csv.DictReader(file))
    run("csv", table, tmp_path / "a")
    run("jsonl", tmp_path / "table.jsonl", tmp_path / "b")
    assert manifest.load(tmp_path / "a").fingerprint == manifest.load(tmp_path / "b").fingerprint


def test_jsonl_takes_lists_and_missing_keys(table, tmp_path):
    first = row("images/0.img", label=["a", "b"], text=["one", " ", "two\n lines "])
    second = {"image": "images/1.img", "modality": "mri", "source": "src", "label": 3, "text": "t"}
    write_jsonl(tmp_path / "t.jsonl", [first, second])
    assert run("jsonl", tmp_path / "t.jsonl", tmp_path / "out") == 0
    samples = samples_of(tmp_path / "out")
    assert samples["src/images/0.img"].captions == ("one", "two lines")
    assert samples["src/images/0.img"].labels == ("a", "b")
    assert samples["src/images/1.img"].labels == ("3",)


def test_columns_constants_and_root_are_options(tmp_path):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "x.png").write_bytes(encoded("PNG"))
    write_csv(
        tmp_path / "t.csv",
        [{"file": "x.png", "dx": "a|b", "key": "k"}],
        ("file", "dx", "key", "age"),
    )
    flags = (
        f"--image_root={tmp_path / 'pics'}",
        "--image_column=file",
        "--label_column=dx",
        "--label_separator=|",
        "--id_column=key",
        "--modality=mri",
        "--source=clinic",
        "--split=test",
        f"--captions={tmp_path / 'c.json'}",
    )
    templates = {"version": 1, "modalities": {"mri": {"*": ["{modality} with {label}"]}}}
    (tmp_path / "c.json").write_text(json.dumps(templates))
    assert run("csv", tmp_path / "t.csv", tmp_path / "out", *flags) == 0
    (sample,) = samples_of(tmp_path / "out", "test").values()
    assert (sample.id, sample.labels, sample.modality) == ("k", ("a", "b"), "mri")
    assert report(tmp_path / "out")["facts"]["input"]["columns_not_used"] == ["age"]
    assert sample.captions == ("mri with a", "mri with b")
    assert sample.num_original_captions == 0


def test_texts_come_before_templates_and_nothing_twice(table, tmp_path):
    templates = {"version": 1, "sources": {"src": {"normal": ["generated", "a text"]}}}
    (tmp_path / "c.json").write_text(json.dumps(templates))
    run("csv", table, tmp_path / "out", f"--captions={tmp_path / 'c.json'}")
    sample = samples_of(tmp_path / "out")["src/images/0.img"]
    assert sample.captions == ("a text", "generated")
    assert sample.num_original_captions == 1


def test_label_sets_bring_captions_with_their_provenance(table, tmp_path):
    rows = [row("images/0.img", "edema|effusion|view=frontal", text="")]
    rows.append(row("images/1.img", "effusion|edema"))
    write_csv(table, rows)
    made = caption_templates.Provenance("template", "grammar-1", seed=0, checks=("length",))
    frontal = LabelSet("ct", ("edema", "effusion"), "src", (("view", "frontal"),))
    sets = [(frontal, "frontal both"), (LabelSet("ct", ("effusion", "edema")), "both")]
    caption_templates.save_label_sets(
        tmp_path / "c.json", [(s, [caption_templates.Caption(t, made)]) for s, t in sets]
    )
    flags = (f"--captions={tmp_path / 'c.json'}", "--label_separator=|")
    assert run("csv", table, tmp_path / "out", *flags) == 0
    samples = samples_of(tmp_path / "out")
    assert samples["src/images/0.img"].captions == ("frontal both",)
    assert samples["src/images/1.img"].captions == ("a text", "both")
    provenance = samples["src/images/1.img"].caption_provenance
    assert provenance == ("", made.as_json)
    assert json.loads(provenance[1])["provider"] == "template"


def test_shards_may_be_chosen(table, tmp_path, capsys):
    assert run("csv", table, tmp_path / "out", "--num_shards=train=3,val=1") == 0
    splits = manifest.load(tmp_path / "out").splits
    assert {name: len(s.shards) for name, s in splits.items()} == {"train": 3, "val": 1}
    assert "no split ['tset']" in error_of(
        capsys, "csv", table, tmp_path / "b", "--num_shards=tset=3"
    )
    assert "expected 8 or" in error_of(capsys, "csv", table, tmp_path / "b", "--num_shards=many")


def test_corpus_is_the_same_wherever_its_images_lie(table, tmp_path):
    run("csv", table, tmp_path / "a", "--name=n")
    moved = tmp_path / "moved"
    (moved / "images").parent.mkdir()
    (tmp_path / "images").rename(moved / "images")
    table.rename(moved / "table.csv")
    run("csv", moved / "table.csv", tmp_path / "b", "--name=n")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
    }


def test_group_on_both_sides_of_the_split_is_reported(table, tmp_path, capsys):
    rows = [row("images/0.img", group="p"), row("images/1.img", group="p", split="val")]
    rows += [row("images/2.img", group="1"), row("images/3.img", "other", split="val", group="1")]
    write_csv(table, rows)
    assert run("csv", table, tmp_path / "out") == 0
    assert "1 groups (patients) are in more than one split, for example 'p'" in (
        capsys.readouterr().err
    )


# --- what is rejected, and why ------------------------------------------------------------------


def test_every_rejected_row_is_listed_with_its_reason(tmp_path, capsys):
    bad = {
        "missing.jpg": (None, "cannot read the image: No such file"),
        "empty.jpg": (b"", "the image file is empty"),
        "text.jpg": (b"no picture", "not an image"),
        "cut.jpg": (encoded("JPEG", size=(90, 90))[:-900], "truncated"),
        "cut.png": (encoded("PNG", size=(90, 90))[:-9000], "cannot be decoded"),
        "old.ico": (encoded("ICO", size=(40, 40)), "format ICO is not supported"),
        "cut.tif": (encoded("TIFF", size=(90, 90))[:-900], "cannot be decoded"),
    }
    (tmp_path / "good.jpg").write_bytes(encoded("JPEG"))
    rows = [row("good.jpg")]
    for name, (data, _) in bad.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        rows.append(row(name))
    rows += [
        row("good.jpg"),
        row("good2.jpg", text=" \t", label="rare"),
        row("good3.jpg", text="", label=""),
        row(""),
    ]
    write_csv(tmp_path / "t.csv", rows)
    assert run("csv", tmp_path / "t.csv", tmp_path / "out") == 1, "most rows were rejected"
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert "more than --max_rejected=0.5, and there is no corpus" in capsys.readouterr().err
    assert run("csv", tmp_path / "t.csv", tmp_path / "out", "--max_rejected=0.92") == 0
    found = rejections(tmp_path / "out")
    assert [r["row"] for r in found] == list(range(2, 13))
    for rejection, (name, (_, reason)) in zip(found[:7], bad.items(), strict=True):
        assert rejection["path"] == name and rejection["id"] == f"src/{name}"
        assert reason in rejection["reason"]
    assert found[7]["reason"] == "duplicate id, first in row 1"
    assert "no caption for label 'rare': give a caption file" in found[8]["reason"]
    assert found[9]["reason"] == "neither text nor label"
    assert found[10]["reason"] == "no image"
    written = manifest.load(tmp_path / "out")
    assert (written.read, written.written, written.rejected) == (12, 1, 11)


def test_missing_template_names_the_key_to_add(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(encoded("JPEG"))
    write_csv(tmp_path / "t.csv", [row("a.jpg"), row("b.jpg", label="rare", text="")])
    (tmp_path / "c.json").write_text('{"version": 1}')
    run("csv", tmp_path / "t.csv", tmp_path / "out", f"--captions={tmp_path / 'c.json'}")
    (rejection,) = rejections(tmp_path / "out")
    assert '"sources" / "src" / "rare" or "modalities" / "ct" / "rare"' in rejection["reason"]
    assert str(tmp_path / "c.json") in rejection["reason"]


@pytest.mark.parametrize(
    ("format_", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P")],
)
def test_jpeg_and_png_are_kept_as_they_are(format_, mode):
    data = encoded(format_, mode=mode)
    assert images.normalise(data) == (data, ())
    assert tf.io.decode_image(data, channels=3).shape == (12, 17, 3)


@pytest.mark.parametrize(("format_", "mode"), [("BMP", "RGB"), ("GIF", "P")])
def test_gif_and_bmp_become_png_without_loss(format_, mode):
    data = encoded(format_, mode=mode)
    stored, _ = images.normalise(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert Image.open(io.BytesIO(stored)).format == "PNG"
    np.testing.assert_array_equal(tf.io.decode_png(stored, channels=3), expected)


@pytest.mark.parametrize("kept", range(0, 100, 7))
def test_any_truncation_is_detected(kept):
    for format_ in ("JPEG", "PNG"):
        data = encoded(format_, size=(40, 40))
        with pytest.raises(ValueError, match="image"):
            images.normalise(data[: len(data) * kept // 100])


# --- errors -------------------------------------------------------------------------------------


def test_missing_columns_are_named_with_those_found(table, tmp_path, capsys):
    out = tmp_path / "out"
    message = error_of(capsys, "csv", table, out, "--image_column=path")
    assert "has no column 'path'; found ['image', 'label'" in message
    assert "--image_column" in message
    write_csv(table, [row("images/0.img")], ("image", "label"))
    message = error_of(capsys, "csv", table, out)
    assert "no column 'modality'" in message and "--modality=VALUE" in message
    message = error_of(capsys, "csv", table, out, "--modality=ct", "--source=s", "--id_column=key")
    assert "no column 'key'" in message
    message = error_of(capsys, "csv", table, out, "--modality=ct", "--modality_column=label")
    assert "not both" in message
    write_csv(table, [row("images/0.img")], ("image", "modality", "source"))
    assert "--text_column=NAME" in error_of(capsys, "csv", table, out)


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("csv", b"image,label\na.jpg\n", "line 2: 1 fields, but the header has 2"),
        ("csv", b'image,label\n"a.jpg,x\n', "line 2: unexpected end of data"),
        ("csv", b"image,label\na.jpg,x\n\xff.jpg,y\n", "line 3: not UTF-8"),
        ("csv", b"", "has no column 'image'; found []"),
        ("jsonl", b'{"image": "a.jpg", "label": "x"}\n{"image"\n', "line 2: "),
        ("jsonl", b'["a.jpg"]\n', "line 1: not a JSON object"),
        ("jsonl", b'{"image": {"a": 1}, "label": "x"}\n', "line 1: expected a text"),
    ],
)
def test_malformed_tables_name_the_file_and_line(tmp_path, capsys, source, content, message):
    table = tmp_path / "table"
    table.write_bytes(content)
    flags = ("--modality=ct", "--source=s")
    error = error_of(capsys, source, table, tmp_path / "out", *flags)
    assert message in error
    assert str(table) in error


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("image,label\n", "no input rows"),
        ("image,label\n,x\n", "all 1 were rejected, the first: no image"),
    ],
)
def test_tables_without_a_usable_row_are_refused_with_the_reason(tmp_path, capsys, content, reason):
    table = tmp_path / "table"
    table.write_text(content)
    error = error_of(capsys, "csv", table, tmp_path / "out", "--modality=ct", "--source=s")
    assert f"there are no rows to convert: {reason}" in error


def test_unusable_paths_are_errors(table, tmp_path, capsys):
    assert "cannot read" in error_of(capsys, "csv", tmp_path / "none.csv", tmp_path / "out")
    assert "cannot write to" in error_of(capsys, "csv", table, table / "out")
    flag = f"--captions={tmp_path / 'none.json'}"
    assert "none.json" in error_of(capsys, "csv", table, tmp_path / "out", flag)


def test_other_corpus_in_out_needs_overwrite(table, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("csv", table, out) == 0
    assert run("csv", table, out) == 0, "the same command again finds it done"
    assert run("csv", table, out, "--seed=1") == 2
    assert "another complete corpus" in capsys.readouterr().err
    assert run("csv", table, out, "--seed=1", "--overwrite") == 0


def test_size_of_images_may_be_bounded(table, tmp_path, capsys):
    assert run("csv", table, tmp_path / "out", "--short_side=6") == 0
    sample = samples_of(tmp_path / "out")["src/images/1.img"]
    assert Image.open(io.BytesIO(sample.image)).size == (8, 6)  # of 17 x 12
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert report["notes"] == {"short side bounded to 6": 6}
    assert "expected a number of pixels" in error_of(
        capsys, "csv", table, tmp_path / "b", "--short_side=0"
    )


def test_help_explains_the_templates(capsys):
    with pytest.raises(SystemExit):
        main(["csv", "--help"])
    assert "modality_names" in capsys.readouterr().out


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("  two\n\twords ", ("two words",)),
        ("['One.', \"it's two\"]", ("One.", "it's two")),
        ("[sic] a caption [arrow]", ("[sic] a caption [arrow]",)),
        ("[arrow]", ("[arrow]",)),
        ("['  ']", ()),
        ("[]", ()),
        ("[1, 2]", ("[1, 2]",)),
    ],
)
def test_texts_are_cleaned(cell, expected):
    assert clean_texts(cell) == expected


@pytest.mark.parametrize(
    ("split", "rows", "size", "expected"),
    [
        ("train", 5000, 80 << 20, 8),
        ("val", 1000, 16 << 20, 2),
        ("train", 10**6, 8 * (128 << 20), 8),
        ("train", 10**6, 8 * (128 << 20) + 1, 16),
        ("train", 5, 100, 4),
        ("val", 1, 100, 1),
    ],
)
def test_default_number_of_shards(split, rows, size, expected):
    assert plan.default_num_shards(split, rows, size) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, '"version" must be 2'),
        ({"version": 1, "labels": {}}, r"\['labels'\] is unknown"),
        ({"version": 1, "sources": {"a": {"x": "text"}}}, '"sources" / "a" / "x" must be a list'),
        ({"version": 1, "sources": {"a": {"x": ["{labl}"]}}}, "'{labl}'"),
        ({"version": 1, "modalities": {"a": {"x": ["{"]}}}, "wrong slot"),
        ({"version": 1, "modality_names": {"ct": 1}}, "must map modalities to names"),
    ],
)
def test_bad_templates_name_the_key(tmp_path, content, message):
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=message):
        caption_templates.load(tmp_path / "c.json")


def test_template_lookup_goes_from_special_to_general():
    templates = caption_templates.CaptionTemplates(
        sources={"s": {"a": ("source a",)}},
        modalities={"ct": {"a": ("ct a",), "b": ("ct b",), "*": ("{label} on {modality}",)}},
        modality_names={"ct": "CT"},
    )
    assert templates.captions("s", "ct", "a") == ("source a",)
    assert templates.captions("s", "ct", "b") == ("ct b",)
    assert templates.captions("other", "ct", "a") == ("ct a",)
    assert templates.captions("s", "ct", "c") == ("c on CT",)
    assert templates.captions("s", "mri", "c") == ()


def test_minimed_templates_are_ten_each_distinct_and_of_caption_length():
    templates = caption_templates.load(MINIMED_CAPTIONS)
    owners = {}
    for source, classes in templates.sources.items():
        for label, texts in classes.items():
            assert len(texts) == 10, (source, label)
            for text in texts:
                assert owners.setdefault(text, (source, label)) == (source, label)
                assert 5 <= len(text.split()) <= 20, text
    assert len(owners) == 260, "a caption occurs twice"


def test_minimed_prompts_ask_for_classes_that_have_captions():
    templates = caption_templates.load(MINIMED_CAPTIONS)
    tasks = json.loads(MINIMED_PROMPTS.read_text("utf-8"))["tasks"]
    assert len(tasks["modality"]["classes"]) == 6
    for name, task in tasks.items():
        for label, prompts in task["classes"].items():
            assert len(set(prompts)) == len(prompts) == 4
            if name != "modality":
                assert label in templates.sources[task["source"]]


# --- kill -9 ------------------------------------------------------------------------------------


def _children(pid):
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.slow  # each waits for TensorFlow to start in another process
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_conversion_leaves_no_partial_shard_and_continues(tmp_path, workers):
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(encoded("JPEG", number, size=(600, 500)))
    rows = [row(f"{n % 20}.jpg") | {"key": f"k{n}"} for n in range(400)]
    write_csv(tmp_path / "t.csv", rows, (*COLUMNS, "key"))
    flags = ("--id_column=key", "--num_shards=32")
    assert run("csv", tmp_path / "t.csv", tmp_path / "whole", *flags) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}

    out = tmp_path / "out"
    command = [sys.executable, TOOL, "csv", f"--input={tmp_path / 't.csv'}", f"--out={out}"]
    process = subprocess.Popen(
        [*command, *flags, f"--workers={workers}"],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.tfrecord"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline, "no shard was written"
        time.sleep(0.005)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the conversion ended before it could be killed"
    while any(map(_is_running, children)):
        assert time.monotonic() < deadline, "workers outlive the conversion"
        time.sleep(0.05)

    assert not (out / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tfrecord")}
    assert len(children) >= (workers if workers > 1 else 0)
    assert 3 <= len(kept) < 32
    assert all((out / name).read_bytes() == whole[name] for name in kept)
    proven = {
        path.name.removesuffix(".json") for path in (out / ".partial").glob("*.tfrecord.json")
    }

    assert run("csv", tmp_path / "t.csv", out, *flags) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert len(proven) >= 2
    for name in proven:
        assert (out / name).stat().st_mtime_ns == kept[name], "a complete shard was written again"


def test_rows_of_one_image_become_captions_of_one_sample(table, tmp_path, capsys):
    rows = [row("images/0.img", text=t) for t in ("one", "two", "one")]
    rows += [row("images/1.img"), row("images/1.img", label="other", text="third")]
    write_csv(table, rows)
    assert run("csv", table, tmp_path / "out", "--name=n") == 0
    samples = samples_of(tmp_path / "out")
    assert samples["src/images/0.img"].captions == ("one", "two")
    assert samples["src/images/0.img"].num_original_captions == 2
    assert [r["reason"] for r in rejections(tmp_path / "out")] == [
        "duplicate id, first in row 1",
        "duplicate id, first in row 4, which has another label: all labels of an image go into "
        "one row",
    ]
    written = manifest.load(tmp_path / "out")
    assert (written.read, written.written, written.rejected, written.merged) == (5, 2, 2, 1)
    assert "5 rows read = 2 samples written + 2 rejected + 1 merged" in capsys.readouterr().out
    # the same as a list of texts in one row
    first = rows[0] | {"text": "['one', 'two']"}
    write_csv(table, [first, rows[3]])
    assert run("csv", table, tmp_path / "b", "--name=n") == 0
    assert manifest.load(tmp_path / "b").fingerprint == written.fingerprint


def test_tables_of_european_windows_give_the_same_corpus(table, tmp_path, capsys):
    assert run("csv", table, tmp_path / "a", "--name=n") == 0
    text = table.read_text().replace("a text", "größer als 3 cm")
    table.write_text(text)
    assert run("csv", table, tmp_path / "b", "--name=n") == 0
    text = text.replace(",", ";").replace("images/", "images\\").replace("\n", "\r\n")
    (tmp_path / "w.csv").write_bytes(text.encode("cp1252"))
    assert "give --encoding" in error_of(capsys, "csv", tmp_path / "w.csv", tmp_path / "c")
    assert run("csv", tmp_path / "w.csv", tmp_path / "c", "--name=n", "--encoding=latin-1") == 0
    prints = [manifest.load(tmp_path / name).fingerprint for name in "abc"]
    assert prints[0] != prints[1] == prints[2]
