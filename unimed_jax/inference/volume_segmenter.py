"""Segmentation of whole volumes in their original grid by a network for crops of another grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline import device_prefetch, volume_grid
from unimed_jax.config import require
from unimed_jax.distributed import sharding, xla_options
from unimed_jax.inference import sliding_window

Shape = tuple[int, int, int]


class Volume(Protocol):
    """A volume to segment."""

    @property
    def shape(self) -> Shape:
        """(D, H, W)."""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel spacing along these axes in mm."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Slices of the volume, float32 (d, H, W) in 0..1."""


class Resampled:
    """A volume resampled to another grid; slices are computed when they are read."""

    def __init__(self, volume: Volume, spacing: tuple[float, ...]) -> None:
        self._volume = volume
        shape = np.asarray(volume.shape, np.int64)
        original = np.asarray(volume.spacing, np.float32)
        resampled = volume_grid.grid_shape(shape, original, spacing)
        self.shape: Shape = tuple(resampled.numpy().tolist())
        self._plane = [_weights(self.shape[axis], volume.shape[axis]) for axis in (1, 2)]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Slices of the resampled volume, float32 (d, h, w)."""
        weights = _rows(start, stop, self.shape[0], self._volume.shape[0])
        first, last = _used(weights)
        slices = self._volume.read(first, last)
        slices = np.tensordot(weights[:, first:last], slices, axes=1)
        return _resampled(slices, self._plane)


def _rows(start: int, stop: int, num_out: int, num_in: int) -> np.ndarray:
    return volume_grid.axis_weights(start, stop - start, num_out, num_in).numpy()


def _weights(num_out: int, num_in: int) -> np.ndarray | None:
    """Weights of a complete axis; None if its length stays the same."""
    return None if num_out == num_in else _rows(0, num_out, num_out, num_in)


def _used(weights: np.ndarray) -> tuple[int, int]:
    """Range of the input voxels with a weight in any row."""
    columns = np.flatnonzero(weights.any(axis=0))
    return int(columns[0]), int(columns[-1]) + 1


def _resampled(slices: np.ndarray, plane: list[np.ndarray | None]) -> np.ndarray:
    """Resamples height and width of (d, H, W, ...)."""
    for axis, weights in enumerate(plane, 1):
        if weights is not None:
            slices = np.moveaxis(np.tensordot(weights, slices, axes=(1, axis)), 0, axis)
    return slices


def in_original_grid(
    slabs: Iterator[np.ndarray], depth: int, shape: Shape, plane_shape: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Interpolates slabs of a resampled volume linearly to the grid of ``shape``.

    Slices are yielded as soon as they are complete.

    Args:
      slabs: slabs (d, h, w, C), from top to bottom of the resampled volume.
      depth: total depth of the slabs.
      shape: (D, H, W) of the result.
      plane_shape: (h, w) of the slabs.

    Yields:
      The next slab, float32 (d', H, W, C); the depths add up to D.
    """
    plane = [_weights(shape[axis], plane_shape[axis - 1]) for axis in (1, 2)]
    weights = _rows(0, shape[0], shape[0], depth)
    needs = [_used(row[None]) for row in weights]
    buffer: np.ndarray | None = None
    first, done = 0, 0  # first slice in the buffer, number of slices yielded
    for slab in slabs:
        slab = _resampled(slab, plane)
        buffer = slab if buffer is None or not len(buffer) else np.concatenate([buffer, slab])
        ready = done
        while ready < shape[0] and needs[ready][1] <= first + len(buffer):
            ready += 1
        if ready > done:
            part = weights[done:ready, first : first + len(buffer)]
            yield np.tensordot(part, buffer, axes=1)
            done = ready
        if done < shape[0]:
            drop = max(needs[done][0] - first, 0)
            buffer, first = buffer[drop:], first + drop


class Segmenter:
    """Predicts probabilities and labels of volumes; a mesh shares the windows of a batch."""

    def __init__(
        self,
        predict: Callable[[Any, jax.Array], jax.Array],
        window: Shape,
        spacing: tuple[float, ...],
        mesh: Mesh,
        *,
        overlap: float,
        batch_size: int,
        section: str = "inference",
    ) -> None:
        """Creates a segmenter. All processes must segment the same volumes.

        Args:
          predict: (parameters, float32 (B, *window, 1)) -> probabilities (B, *window, outputs).
          window: size (D, H, W) of the network's input in voxels.
          spacing: spacing of the network's grid in mm; 0 for the spacing of the volume.
          mesh: mesh over the devices of all processes.
          overlap: overlap of adjacent windows, as a share of a window, in [0, 1).
          batch_size: number of windows on all devices together.
          section: config section of the settings, for messages.

        Raises:
          ConfigError: a setting is invalid.
        """
        sharding.check_batch_size(f"{section}.batch_size", batch_size, mesh)
        require(0 <= overlap < 1, f"{section}.overlap", overlap, "in [0, 1)")
        self._window, self._spacing = window, spacing
        self._overlap, self._batch_size = overlap, batch_size
        self._sharding = sharding.batch_sharding(mesh)
        # every process gets all windows
        self._predict = jax.jit(
            predict,
            out_shardings=sharding.replicated(mesh),
            compiler_options=xla_options.options(mesh),
        )

    def probabilities(self, params: Any, volume: Volume) -> Iterator[np.ndarray]:
        """Yields slabs float32 (d, H, W, outputs) in the original grid, from top to bottom."""
        resampled = Resampled(volume, self._spacing)
        rows = self._batch_size // jax.process_count()
        local = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

        def predict(batch: np.ndarray) -> np.ndarray:
            arrays = device_prefetch.to_global({"image": batch[local]}, self._sharding)
            return jax.device_get(self._predict(params, arrays["image"]))

        slabs = sliding_window.probabilities(
            resampled.read,
            resampled.shape,
            self._window,
            predict,
            overlap=self._overlap,
            batch_size=self._batch_size,
        )
        if resampled.shape == tuple(volume.shape):
            return slabs
        return in_original_grid(slabs, resampled.shape[0], volume.shape, resampled.shape[1:])

    def labels(self, params: Any, volume: Volume) -> Iterator[np.ndarray]:
        """Yields slabs uint8 (d, H, W) of the most probable output; 0 is the background."""
        for slab in self.probabilities(params, volume):
            yield np.argmax(slab, axis=-1).astype(np.uint8)
