"""Nested dicts of arrays."""

from collections.abc import Callable, Mapping
from typing import Any


def replaced(tree: Any, part: Any) -> Any:
    """``tree`` with the leaves that ``part``, a sub-tree of it, names taken from ``part``."""
    if not isinstance(tree, Mapping):
        return part
    return {k: replaced(v, part[k]) if k in part else v for k, v in tree.items()}


def part(tree: Any, keep: Callable[[str], bool], prefix: str = "") -> Any:
    """The sub-tree of the leaves whose path, keys joined by "/", is kept; no empty dicts in it."""
    found = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if inner := part(value, keep, f"{path}/"):
                found[key] = inner
        elif keep(path):
            found[key] = value
    return found
