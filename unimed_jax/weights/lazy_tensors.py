"""Tensors that are read from their file on demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LazyTensor:
    """A tensor with known shape, whose content is read by ``numpy``.

    A conversion reads one tensor at a time, so it needs little more memory than its result.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "LazyTensor":
        """A tensor that is already in memory."""
        return cls(array.shape, lambda: array)


Tensors = Mapping[str, LazyTensor]
"""Tensors by state-dict name."""
