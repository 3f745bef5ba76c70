"""Official layouts as they are found: half downloaded, saved by other programs, with odd rows."""

import csv
import io
import re
import struct
import zipfile

import pytest
from helpers import corpora, official_layouts, unimed_layouts
from helpers.corpora import convert

from input_pipeline.conversion.official import mimic
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.conversion.sources import SOURCES
from input_pipeline.conversion.unimed_parts import PARTS
from input_pipeline.io.errors import CorpusError

CSV_PARTS = (
    "radimagenet",
    "chexpert",
    "chestxray8",
    "mimic_cxr",
    "rocov2",
    "quilt1m",
    "retina_part1",
    "retina_part2",
    "retina_part3",
)


def build(key, raw):
    """The files of a part as its owner distributes them."""
    if key == "mimic_cxr":
        official_layouts.mimic_cxr(raw, packed=False)
    else:
        getattr(official_layouts, key, unimed_layouts.BUILDERS[key])(raw)


def read(key, raw, **options):
    source = SOURCES[key]
    return list(source.read(source.options(raw, **options)).rows)


def tables(raw):
    return sorted(raw.rglob("*.csv"))


def excel(text):
    """As Excel saves a table in a European locale: every cell quoted, decimal commas, a date."""
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    rows = [[re.sub(r"^(-?\d+)\.(\d+)$", r"\1,\2", cell) for cell in row] for row in rows]
    rows = [[*header, "Saved on"], *([*row[: len(header)], "28.11.2026"] for row in rows)]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=";", quoting=csv.QUOTE_ALL).writerows(rows)
    return buffer.getvalue().encode("utf-8-sig")


SAVED = {
    "by Excel": excel,
    "as UTF-16": lambda text: text.encode("utf-16"),
    "with CR and a byte order mark": lambda text: (
        text.replace("\r\n", "\n").replace("\n", "\r").encode("utf-8-sig")
    ),
    "with tabs and blank lines": lambda text: "\n\n".join(
        "\t".join(f'"{cell}"' for cell in row).replace('""', "")
        for row in csv.reader(io.StringIO(text, newline=""))
    ).encode(),
}


@pytest.mark.parametrize("how", SAVED)
@pytest.mark.parametrize("key", CSV_PARTS)
def test_tables_that_other_programs_saved_say_the_same(key, how, tmp_path):
    build(key, tmp_path)
    expected = read(key, tmp_path)
    assert len(expected) > 1
    for path in tables(tmp_path):
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        path.write_bytes(SAVED[how](text))
    for path in tmp_path.glob("*_list.txt"):
        path.write_text(path.read_text(), encoding="utf-16")
    assert read(key, tmp_path) == expected


@pytest.mark.parametrize("key", ["rocov2", "quilt1m", "retina_part1", "chexpert"])
def test_a_table_in_another_encoding_is_named_with_its_line_and_read_if_told(key, tmp_path):
    build(key, tmp_path)
    expected = [row.id for row in read(key, tmp_path) if not isinstance(row, Rejection)]
    for path in tables(tmp_path):
        path.write_bytes(f"{path.read_text()}\n\u00c5ngstr\u00f6m\n".encode("cp1252"))
    with pytest.raises(CorpusError, match=r"\.csv, line \d+: not UTF-8 .*--encoding"):
        read(key, tmp_path)
    found = read(key, tmp_path, encoding="cp1252")
    assert [row.id for row in found if not isinstance(row, Rejection)] == expected
    odd = [row for row in found if isinstance(row, Rejection) and "1 in line" in row.reason]
    assert odd and all("wrong number of fields" in row.reason for row in odd)


def test_reports_in_another_encoding_are_read_and_counted(tmp_path):
    official_layouts.mimic_cxr(tmp_path)
    path = next(tmp_path.rglob("s*.txt"))
    report = " FINDINGS:\r\n Vari\u00e7es, 5 \u00b5m.\r\n IMPRESSION:\r\n None seen.\r\n"
    for encoding, notes in (("cp1252", 1), ("utf-8-sig", 0)):
        path.write_bytes(report.encode(encoding))
        rows = [row for row in read("mimic_cxr", tmp_path) if path.stem in getattr(row, "id", "")]
        assert {row.texts for row in rows} == {("Vari\u00e7es, 5 \u00b5m.", "None seen.")}
        assert {row.notes.count(mimic.ENCODING_NOTE) for row in rows} == {notes}


def repeat_first_row(path):
    text = path.read_text().rstrip("\n")
    row = text.splitlines()[0 if path.suffix == ".jsonl" else 1]
    path.write_text(f"{text}\n{row}\n")


@pytest.mark.parametrize("key", [*CSV_PARTS, "pmc_oa"])
def test_a_row_that_is_there_twice_counts_once(key, tmp_path):
    build(key, tmp_path / "raw")
    once, twice = tmp_path / "once", tmp_path / "twice"
    flags = (f"--raw={tmp_path / 'raw'}", "--captions=auto", "--max_rejected=0.9")
    assert convert(key, once, *flags) == 0
    names = {
        "mimic_cxr": "*metadata.csv",
        "rocov2": "test_captions.csv",
        "retina_part1": "15_APTOS.csv",
        "chexpert": "valid.csv",
        "pmc_oa": "*.jsonl",
        "radimagenet": "*_test.csv",
    }
    (path,) = (tmp_path / "raw").rglob(names.get(key, "*.csv"))
    repeat_first_row(path)
    assert convert(key, twice, *flags) == 0
    assert corpora.samples(once) == corpora.samples(twice)
    before, after = (corpora.report(out)["rejected_by_reason"] for out in (once, twice))
    assert after == {**before, "duplicate id": before.get("duplicate id", 0) + 1}


@pytest.mark.parametrize("key", PARTS)
def test_without_its_images_every_row_of_a_part_is_named_and_nothing_is_published(
    key, tmp_path, capsys
):
    raw = tmp_path / "raw"
    build(key, raw)
    rows = read(key, raw)
    images = {raw / row.image for row in rows if not isinstance(row, Rejection)}
    for path in images:
        path.unlink(missing_ok=True)
    with zipfile.ZipFile(raw / "images.zip", "w") as archive:
        archive.writestr("a", "b")
    (raw / "images_002.tar.gz").write_bytes(b"")
    content = (raw / "images.zip").read_bytes()
    (raw / "images.zip").write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    assert convert(key, out, f"--raw={raw}", "--captions=auto") == 1
    assert not (out / "manifest.json").exists()
    report = corpora.report(out)
    assert report["written"] == 0
    assert report["read"] == len(rows) == report["rejected"] + report["merged"]
    assert report["rejected_by_reason"]["cannot read the image"] >= 1
    assert len(corpora.rejections(out)) == report["rejected"]
    assert sorted(report["facts"]["archives"].values()) == [
        "cut off: download it again",
        "not checked",
    ]
    assert "images.zip (cut off: download it again)" in capsys.readouterr().out


def recovered(data):
    """(name, bytes) in an uncompressed zip that may be cut off, as rescue programs read it."""
    at = 0
    while data[at : at + 4] == b"PK\x03\x04":
        size, _, name, extra = struct.unpack("<IIHH", data[at + 18 : at + 30])
        start = at + 30 + name + extra
        yield data[at + 30 : at + 30 + name].decode(), data[start : start + size]
        at = start + size


def test_a_half_downloaded_zip_of_images_loses_no_row_and_no_whole_image(tmp_path, capsys):
    raw, lost = tmp_path / "raw", tmp_path / "all"
    names = [f"PMC{n}_Fig1_0.jpg" for n in range(1, 21)]
    lines = [f'{{"image": "{name}", "caption": "Invented figure {name}."}}' for name in names]
    raw.mkdir()
    (raw / "pmc_oa.jsonl").write_text("\n".join(lines))
    with zipfile.ZipFile(raw / "images.zip", "w") as archive:
        for n, name in enumerate(names):
            unimed_layouts.put_image(lost / name, n, size=(64, 48))
            archive.write(lost / name, name)
    whole = (raw / "images.zip").read_bytes()
    cut = whole.index(b"PK\x03\x04", len(whole) * 2 // 3) + 1000  # within an image
    (raw / "images.zip").write_bytes(whole[:cut])
    folder = raw / "caption_T060_filtered_top4_sep_v0_subfigures"
    folder.mkdir()
    for name, data in recovered(whole[:cut]):
        (folder / name).write_bytes(data)
    unpacked = len(list(folder.iterdir()))
    out = tmp_path / "out"
    assert convert("pmc_oa", out, f"--raw={raw}") == 0
    report = corpora.report(out)
    assert report["read"] == 20 == report["written"] + report["rejected"]
    assert report["rejected_by_reason"]["cannot read the image"] == 20 - unpacked
    assert {id_.rpartition("/")[2] for id_ in corpora.samples_of(out)} == set(names[: unpacked - 1])
    damaged = corpora.rejections(out)[0]
    assert damaged["id"] == f"pmc_oa/{names[unpacked - 1]}"
    assert "cannot read the image" not in damaged["reason"]
    assert "images.zip (cut off: download it again)" in capsys.readouterr().out
