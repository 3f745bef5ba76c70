"""Labels of whole volumes in their own grid, from a network that sees windows of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import device_prefetch, volume_grid
from input_pipeline.io.errors import ConfigError
from unimed_jax.distributed import sharding, xla_options
from unimed_jax.inference import sliding_window

Shape = tuple[int, int, int]


class Volume(Protocol):
    """What is segmented.

    `shape` (D, H, W), `spacing` in mm along these axes, and `read(start, stop)`: slices, float32
    (d, H, W) in 0..1.
    """

    shape: Shape
    spacing: tuple[float, ...]

    def read(self, start: int, stop: int) -> np.ndarray: ...


class Resampled:
    """A volume in another grid, of which only the slices that are asked for are computed."""

    def __init__(self, volume: Volume, spacing: tuple[float, ...]) -> None:
        self._volume = volume
        shape = np.asarray(volume.shape, np.int64)
        own = np.asarray(volume.spacing, np.float32)
        self.shape: Shape = tuple(volume_grid.grid_shape(shape, own, spacing).numpy().tolist())
        self._plane = [_weights(self.shape[axis], volume.shape[axis]) for axis in (1, 2)]

    def read(self, start: int, stop: int) -> np.ndarray:
        weights = _rows(start, stop, self.shape[0], self._volume.shape[0])
        first, last = _used(weights)
        slices = self._volume.read(first, last)
        slices = np.tensordot(weights[:, first:last], slices, axes=1)
        return _resampled(slices, self._plane)


def _rows(start: int, stop: int, num_out: int, num_in: int) -> np.ndarray:
    return volume_grid.axis_weights(start, stop - start, num_out, num_in).numpy()


def _weights(num_out: int, num_in: int) -> np.ndarray | None:
    """For a whole axis; None where nothing changes."""
    return None if num_out == num_in else _rows(0, num_out, num_out, num_in)


def _used(weights: np.ndarray) -> tuple[int, int]:
    """The range of input voxels that any row takes from."""
    columns = np.flatnonzero(weights.any(axis=0))
    return int(columns[0]), int(columns[-1]) + 1


def _resampled(slices: np.ndarray, plane: list[np.ndarray | None]) -> np.ndarray:
    """(d, H, W, ...) with height and width resampled."""
    for axis, weights in enumerate(plane, 1):
        if weights is not None:
            slices = np.moveaxis(np.tensordot(weights, slices, axes=(1, axis)), 0, axis)
    return slices


def in_own_grid(
    bands: Iterator[np.ndarray], depth: int, shape: Shape, plane_shape: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Bands of a resampled volume, (d, h, w, C), linear in the grid of ``shape``, as they come.

    Args:
      depth: of all bands together.
      shape: (D, H, W), wanted.
      plane_shape: (h, w).
    """
    plane = [_weights(shape[axis], plane_shape[axis - 1]) for axis in (1, 2)]
    weights = _rows(0, shape[0], shape[0], depth)
    needs = [_used(row[None]) for row in weights]
    kept: np.ndarray | None = None
    first, done = 0, 0  # first slice that is kept, slices that were handed on
    for band in bands:
        band = _resampled(band, plane)
        kept = band if kept is None or not len(kept) else np.concatenate([kept, band])
        ready = done
        while ready < shape[0] and needs[ready][1] <= first + len(kept):
            ready += 1
        if ready > done:
            part = weights[done:ready, first : first + len(kept)]
            yield np.tensordot(part, kept, axes=1)
            done = ready
        if done < shape[0]:
            drop = max(needs[done][0] - first, 0)
            kept, first = kept[drop:], first + drop


class Segmenter:
    """Probabilities and labels of volumes, windows being divided over the devices of a mesh."""

    def __init__(
        self,
        predict: Callable[[Any, jax.Array], jax.Array],
        window: Shape,
        spacing: tuple[float, ...],
        settings: ConfigDict,
        mesh: Mesh,
    ) -> None:
        """Every host calls it with the same volumes.

        Args:
          predict: (parameters, float32 (B, *window, 1)) -> probabilities (B, *window, outputs).
          spacing: mm of the network's grid; 0 for a volume's own.
          settings: ``overlap`` of windows as a share of one, ``batch_size`` windows at a time.

        Raises:
          ConfigError: a setting is not possible.
        """
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if settings.batch_size % shards or settings.batch_size % jax.process_count():
            raise ConfigError(
                f"batch_size={settings.batch_size} windows is not possible; valid: a multiple of "
                f"mesh.data x mesh.fsdp = {shards} and of the {jax.process_count()} hosts"
            )
        if not 0 <= settings.overlap < 1:
            raise ConfigError(f"overlap={settings.overlap} is not possible; valid: in [0, 1)")
        self._window, self._spacing, self._settings = window, spacing, settings
        self._placement = sharding.batch_sharding(mesh)
        # every host gets all windows
        self._predict = jax.jit(
            predict,
            out_shardings=sharding.replicated(mesh),
            compiler_options=xla_options.options(mesh),
        )

    def probabilities(self, params: Any, volume: Volume) -> Iterator[np.ndarray]:
        """float32 (d, H, W, outputs) in the volume's own grid, band after band from the top."""
        resampled = Resampled(volume, self._spacing)
        rows = self._settings.batch_size // jax.process_count()
        own = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

        def predict(batch: np.ndarray) -> np.ndarray:
            arrays = device_prefetch.to_global({"image": batch[own]}, self._placement)
            return jax.device_get(self._predict(params, arrays["image"]))

        bands = sliding_window.probabilities(
            resampled.read,
            resampled.shape,
            self._window,
            predict,
            overlap=self._settings.overlap,
            batch_size=self._settings.batch_size,
        )
        if resampled.shape == tuple(volume.shape):
            return bands
        return in_own_grid(bands, resampled.shape[0], volume.shape, resampled.shape[1:])

    def labels(self, params: Any, volume: Volume) -> Iterator[np.ndarray]:
        """uint8 (d, H, W): the most probable output, 0 being the background."""
        for band in self.probabilities(params, volume):
            yield np.argmax(band, axis=-1).astype(np.uint8)
