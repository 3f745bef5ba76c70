"""Nested dicts of arrays."""

from collections.abc import Mapping
from typing import Any


def replaced(tree: Any, part: Any) -> Any:
    """``tree`` with the leaves that ``part``, a sub-tree of it, names taken from ``part``."""
    if not isinstance(tree, Mapping):
        return part
    return {k: replaced(v, part[k]) if k in part else v for k, v in tree.items()}
