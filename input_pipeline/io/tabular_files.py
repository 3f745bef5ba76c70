"""Streams records from CSV, JSON Lines and JSON files; errors name the file and the line."""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, open_to_read, reason
from input_pipeline.io.json_objects import unique_keys
from input_pipeline.io.text_lines import text_lines

_CHUNK = 1 << 16  # characters of JSON read at a time
_MAY_GO_ON = ("", *"+-.eE0123456789")
_DELIMITERS = (",", ";", "\t")
_PROBED_LINES = 20  # a header may span several lines
MAX_FIELD = 1 << 24  # characters of one CSV field; the default of the csv module is 131,072


def csv_header(path: AnyPath, encoding: str = "") -> list[str]:
    """The column names of a CSV file, without surrounding white space; empty for an empty file.

    Raises CorpusError if two columns have the same name.
    """
    names = [name.strip() for name in next(csv_rows(path, encoding), (0, []))[1]]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise CorpusError(f"{path} has more than one column {twice[0]!r}: rename all but one")
    return names


def csv_records(path: AnyPath, encoding: str = "") -> Iterator[tuple[int, Sequence[str]]]:
    """(number, cells) of a CSV file with a header line; number 1 is the first after the header.

    Raises CorpusError for a row whose cells are not as many as the header's.
    """
    rows = csv_rows(path, encoding)
    _, header = next(rows, (0, []))
    for number, (line, cells) in enumerate(rows, 1):
        if len(cells) != len(header):
            raise CorpusError(
                f"{path}, line {line}: {len(cells)} fields, but the header has {len(header)}"
            )
        yield number, cells


def csv_rows(path: AnyPath, encoding: str = "") -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of all rows that are not blank, the header among them.

    Cells are separated by commas, semicolons or tabs: what gives the first row most cells, or what
    a line `sep=;` before it says, as Excel writes it. ``encoding``: see ``text_lines``.
    """
    csv.field_size_limit(MAX_FIELD)
    lines = (text for _, text in text_lines(path, encoding))
    first = list(itertools.islice(lines, _PROBED_LINES))
    said = re.fullmatch(r"sep=(.)\s*", first[0], re.IGNORECASE) if first else None
    first = first[1:] if said else first
    delimiter = said[1] if said else max(_DELIMITERS, key=lambda d: _num_cells(first, d))
    reader = csv.reader(itertools.chain(first, lines), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num + bool(said), cells
    except csv.Error as error:
        raise CorpusError(f"{path}, line {reader.line_num + bool(said)}: {error}") from error


def _num_cells(lines: Sequence[str], delimiter: str) -> int:
    """Cells of the first row; 0 where it cannot be read."""
    try:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        return len(next(filter(None, rows), []))
    except csv.Error:
        return 0


def jsonl_records(path: AnyPath, encoding: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """As ``jsonl_values``. Raises CorpusError for a line that holds no object."""
    for number, record in jsonl_values(path, encoding):
        if isinstance(record, str):
            raise CorpusError(f"{path}, line {number}: {record}")
        yield number, record


def jsonl_values(path: AnyPath, encoding: str = "") -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, object) of a JSON Lines file, or why a line holds none.

    Blank lines are left out. ``encoding``: see ``text_lines``.
    """
    for number, line in text_lines(path, encoding):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=unique_keys)
        except ValueError as error:
            yield number, str(error)
            continue
        yield number, record if isinstance(record, dict) else "not a JSON object"


def json_items(path: AnyPath, array_key: str) -> Iterator[tuple[str, Any]]:
    """(key, element) of the arrays of a JSON file, one element in memory at a time.

    Parsed with the standard library's decoder, because the files that need it hold NaN, which
    is no JSON and which streaming parsers refuse.

    Args:
      path: a UTF-8 JSON file.
      array_key: "" for a file that is one array; NAME for the array under that key; "*" for the
        array under every key. The key is given with the element.

    Raises:
      CorpusError: not JSON, or no such array is in it.
    """
    number, found = 0, False
    try:
        with io.TextIOWrapper(open_to_read(path), "utf-8-sig") as file:
            text = _JsonText(file)
            for key in [""] if array_key == "" else text.members():
                if array_key in ("", "*", key):
                    found = True
                    for element in text.elements():
                        number += 1
                        yield key, element
                else:
                    text.value()
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:  # of the decoder, or not UTF-8
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{path}, after element {number}: {error}") from error
    if not found:
        raise CorpusError(f"{path}: there is no array under {array_key!r}")


class _JsonText:
    """Reads JSON incrementally. Raises ValueError for invalid JSON."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._position = 0
        self._decoder = json.JSONDecoder()

    def members(self) -> Iterator[str]:
        """The keys of an object; the caller takes the value of each before the next."""
        self._expect("{")
        if self._next_is("}"):
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"expected a key, found {key!r}")
            self._expect(":")
            yield key
            if self._next_is("}"):
                return
            self._expect(",")

    def elements(self) -> Iterator[Any]:
        """The elements of an array."""
        self._expect("[")
        if self._next_is("]"):
            return
        while True:
            yield self.value()
            if self._next_is("]"):
                return
            self._expect(",")

    def value(self) -> Any:
        """The value that comes next, whole."""
        self._skip_space()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
                # A number may go on in the file: "1" may be the start of "1.5e3".
                ended = self._text[end : end + 1] not in _MAY_GO_ON
                if ended or not self._read_more():
                    self._position = end
                    return value
            except json.JSONDecodeError:
                if not self._read_more():
                    raise

    def _next_is(self, character: str) -> bool:
        self._skip_space()
        matches = self._text[self._position : self._position + 1] == character
        self._position += matches
        return matches

    def _expect(self, character: str) -> None:
        if not self._next_is(character):
            found = self._text[self._position : self._position + 20] or "the end of the file"
            raise ValueError(f"expected {character!r}, found {found!r}")

    def _skip_space(self) -> None:
        while True:
            while self._text[self._position : self._position + 1].isspace():
                self._position += 1
            if self._position < len(self._text) or not self._read_more():
                return

    def _read_more(self) -> bool:
        more = self._file.read(_CHUNK)
        self._text = self._text[self._position :] + more
        self._position = 0
        return bool(more)
