"""Tensors that stay in their file until they are asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape is known and whose content is read by ``numpy``.

    A conversion reads one at a time, so that it needs little more memory than its result.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "LazyTensor":
        """One that is in memory already."""
        return cls(array.shape, lambda: array)


Tensors = Mapping[str, LazyTensor]
"""Tensors by state-dict name."""
