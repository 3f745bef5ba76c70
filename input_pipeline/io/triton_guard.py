"""Keeps torch's compiler triton out of a process that has loaded TensorFlow, which it would end.

The two carry different LLVMs: ``import tensorflow, open_clip`` ends in a segmentation fault, when
triton's library is loaded (TensorFlow 2.21, triton 3.8). torch works without triton, except for
``torch.compile``; and everything works if torch or open_clip is imported first.
"""

import importlib.abc
import sys
import warnings
from typing import Any

_LIBRARY = "triton._C.libtriton"


class _Guard(importlib.abc.MetaPathFinder):
    """Refuses to import triton's library after TensorFlow; torch then does without it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        del path, target
        if name == _LIBRARY and "tensorflow" in sys.modules:
            reason = (
                "triton is left out, because it would crash a process that has imported "
                "TensorFlow; for torch.compile, import torch and triton before TensorFlow"
            )
            warnings.warn(reason, stacklevel=2)
            raise ImportError(reason)


def install() -> None:
    """Guards all later imports of this process."""
    if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())
