"""Tables as Excel and European locales write them: read with every cell, or refused."""

import codecs
import csv
import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.io.cell_text import path_text
from input_pipeline.io.errors import UserError
from input_pipeline.io.tabular_files import csv_header, csv_records, jsonl_records

ROWS = [["image", "text"], ["a.png", "größer; 3,5 mm,\tklar"], ["b.png", 'a "b"\nc']]

cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


def written(rows, delimiter=",", line_end="\r\n", encoding="utf-8", quoting=csv.QUOTE_MINIMAL):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows(rows)
    return text.getvalue().encode(encoding)


def read(path, encoding=""):
    return [csv_header(path, encoding), *(c for _, c in csv_records(path, encoding))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_dialects_that_a_file_shows_are_read_without_a_flag(
    tmp_path, delimiter, line_end, encoding
):
    path = tmp_path / "t.csv"
    path.write_bytes(written(ROWS, delimiter, line_end, encoding))
    assert read(path) == ROWS


@settings(deadline=None)
@given(st.lists(st.lists(cells, min_size=3, max_size=3), max_size=5), st.data())
def test_any_cells_survive_any_dialect(tmp_path_factory, rows, data):
    delimiter = data.draw(st.sampled_from(",;\t"))
    line_end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    encoding = data.draw(st.sampled_from(["utf-8-sig", "utf-16"]))
    path = tmp_path_factory.getbasetemp() / "any.csv"
    rows = [["x", "y y", "z,"], *rows]
    path.write_bytes(written(rows, delimiter, line_end, encoding, csv.QUOTE_ALL))
    assert read(path) == rows


def test_the_line_that_names_the_separator_is_no_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"sep=;\r\n" + written(ROWS, ";"))
    assert read(path) == ROWS
    path.write_bytes(b"sep=|\r\na|b\r\n1,2|3\r\n")
    assert read(path) == [["a", "b"], ["1,2", "3"]]


def test_other_encodings_need_their_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(written(ROWS, encoding="cp1252"))
    with pytest.raises(UserError, match=r"t\.csv, line 2: not UTF-8 .*give --encoding"):
        read(path)
    assert read(path, "latin-1") == read(path, "cp1252") == ROWS
    with pytest.raises(UserError, match="there is none of this name"):
        read(path, "latin9000")
    path.write_bytes(written(ROWS, encoding="utf-16-le"))
    with pytest.raises(UserError, match="give --encoding=utf-16-le"):
        read(path)
    assert read(path, "utf-16-le") == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_wrong_name_of_an_encoding_does_not_garble_a_text(tmp_path, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes(written(ROWS, encoding=encoding))
    with pytest.raises(UserError, match="leave --encoding out"):
        read(path, "latin-1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"image,label,image\n", "more than one column 'image'"),
        (b"image,label, label\n", "more than one column 'label'"),
        (b"PK\x03\x04...", "Excel workbook or zip archive: save the table as CSV"),
        (b"\xd0\xcf\x11\xe0...", "old Excel workbook"),
        (b"\x1f\x8b...", "compressed: unpack it"),
        (codecs.BOM_UTF16_LE + b"a\0,\0b\0\n\0x", "not utf-16"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_remedy(tmp_path, data, message):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.2])
def test_a_packed_table_that_is_cut_off_is_refused(tmp_path, kept):
    data = gzip.compress(written(ROWS))
    path = tmp_path / "t.csv.gz"
    path.write_bytes(data)
    assert read(path) == ROWS
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match="damaged or cut off"):
        read(path)


def test_a_key_twice_in_an_object_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n{"text": "x", "a": 2, "text": "y"}\n')
    with pytest.raises(UserError, match="line 2: key 'text' occurs twice"):
        list(jsonl_records(path))


def test_windows_paths_are_relative_or_refused():
    assert path_text(" images\\a b.png ") == path_text("images/a b.png") == "images/a b.png"
    for absolute in ("C:\\a.png", "d:/a.png", "\\\\server\\a.png"):
        with pytest.raises(ValueError, match="of another machine"):
            path_text(absolute)
