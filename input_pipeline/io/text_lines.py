"""Lines of text files in the encodings and with the line ends that programs write.

A byte order mark decides between UTF-8, UTF-16 and UTF-32. Without one, a file is UTF-8 unless the
caller names another encoding. Lines end with LF, CR LF or CR. Files named `.gz` are unpacked.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from input_pipeline.io.errors import CorpusError, UserError
from input_pipeline.io.files import AnyPath, open_to_read, reason

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16: its mark begins with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_TEXT = {
    b"PK\x03\x04": "an Excel workbook or zip archive: save the table as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save the table as CSV UTF-8",
    b"\x1f\x8b": "compressed: unpack it",
}
_PROBED = 1 << 20  # bytes
_REMEDY = "save it as UTF-8, or give --encoding (cp1252: Excel in Western Europe)"


def text_lines(path: AnyPath, encoding: str = "") -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends, without a byte order mark.

    Args:
      path: a text file.
      encoding: for a file that is not UTF-8 and has no byte order mark; "" if it has none.

    Raises:
      CorpusError: the file cannot be read or is not text of the encoding; the line is named.
      UserError: there is no such encoding, or the file has another one.
    """
    number = 0
    try:
        with open_to_read(path) as raw, _unpacked(path, raw) as file:
            chosen = _encoding(path, file.read(_PROBED), encoding)
            file.seek(0)
            with io.TextIOWrapper(file, chosen, newline="") as text:
                for number, line in enumerate(text, 1):
                    yield number, line
    except UnicodeDecodeError as error:
        where = _first_undecodable(path, number + 1, error.encoding)
        what = "UTF-8" if error.encoding == "utf-8" else error.encoding
        raise CorpusError(
            f"{path}, line {where}: not {what} ({error.reason}): {_REMEDY}"
        ) from error
    except (EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is damaged or cut off: {error}") from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {reason(error)}") from error


def _unpacked(path: AnyPath, file: io.BufferedReader) -> BinaryIO:
    """The content of a file named .gz; any other file as it is."""
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file


def _encoding(path: AnyPath, begin: bytes, named: str) -> str:
    """The encoding of a file that begins with these bytes."""
    for signature, what in _NO_TEXT.items():
        if begin.startswith(signature):
            raise CorpusError(f"{path} is {what}")
    if named:
        try:
            named = codecs.lookup(named).name
        except LookupError as error:
            raise UserError(
                f"--encoding={named}: there is none of this name; try cp1252"
            ) from error
    for mark, encoding in _MARKS.items():
        if begin.startswith(mark):
            family = encoding.removesuffix("-sig")
            if named and not named.startswith(family):
                raise UserError(
                    f"--encoding={named}: {path} begins with the mark of {family.upper()}: leave "
                    "--encoding out"
                )
            return encoding
    if named in ("", "utf-8"):
        if b"\0" in begin:
            raise CorpusError(
                f"{path} has NUL bytes, as UTF-16 without a byte order mark: save it as UTF-8, or "
                "give --encoding=utf-16-le"
            )
        return "utf-8"
    if not begin.isascii() and not named.startswith("utf") and _is_utf8(begin):
        raise UserError(f"--encoding={named}: {path} is UTF-8: leave --encoding out")
    return named


def _is_utf8(begin: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begin)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def _first_undecodable(path: AnyPath, default: int, encoding: str) -> int:
    """The number of the line that is not of an encoding; text is decoded in blocks of many."""
    if encoding.startswith(("utf-16", "utf-32")):
        return default
    with open_to_read(path) as raw, _unpacked(path, raw) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return default
