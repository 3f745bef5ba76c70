"""Texts in the cell of a table or the value of a JSON key."""

import ast
import re
from typing import Any

_MISSING = {"nan", "n/a", "#n/a", "#na", "<na>", "nat", "null"}  # as pandas and Excel write it
_NO_TEXT = _MISSING | {"na", "n.a", "none", "nil", "not available"}
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:|\\\\")  # a drive, or a share of a network


def literal_texts(cell: str) -> tuple[str, ...]:
    """The texts of a Python list literal, as some published tables have it; else the cell itself.

    The literal is parsed, never run.
    """
    if cell.startswith("[") and cell.endswith("]"):
        try:
            parsed = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parsed = None  # a caption in brackets
        if isinstance(parsed, list) and all(isinstance(text, str) for text in parsed):
            return tuple(parsed)
    return (cell,)


def clean_texts(cell: str) -> tuple[str, ...]:
    """`literal_texts`, white space collapsed and empty ones dropped."""
    return tuple(clean for text in literal_texts(cell) if (clean := " ".join(text.split())))


def value_texts(value: Any) -> tuple[str, ...]:
    """The clean texts of a JSON value or CSV cell: a text, a list of texts, a number, null or NaN.

    Raises ValueError for objects and nested lists.
    """
    texts: list[str] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict | list):
            raise ValueError(f"expected a text or a list of texts, found {str(value)[:60]}")
        if item is not None and item == item:  # NaN is not equal to itself
            texts.extend(clean_texts(str(item).strip()))
    return tuple(texts)


def path_text(cell: str) -> str:
    """A relative path in a table, also as Windows writes it: backslashes separate folders.

    Raises ValueError for a path of a Windows drive or network share.
    """
    cell = cell.strip()
    if _WINDOWS_ROOT.match(cell):
        raise ValueError(
            f"a path of another machine: {cell[:60]}; write paths relative to the folder of images"
        )
    return cell.replace("\\", "/")


def is_missing(cell: str) -> bool:
    """Whether a cell stands for no value: `nan`, `N/A`, `null`, ..., or white space."""
    return not cell.strip() or cell.strip().lower() in _MISSING


def says_nothing(text: str) -> bool:
    """Whether a text is no caption: no letter is in it, or it stands for none."""
    return not any(map(str.isalpha, text)) or text.strip(" .").lower() in _NO_TEXT
