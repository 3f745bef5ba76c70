"""Segments NIfTI volumes with a trained run; labels are written in the space of each volume.

    unimed-jax segment --checkpoint=RUN --out=DIR [--overlay] VOLUME.nii.gz [VOLUME.nii ...]

RUN is a work directory of the task volumetric_segmentation, or a checkpoint in it. DIR receives a
file of the same name for each volume: uint8, where k is the k-th class of the run, with the header,
affine and voxel grid of the input. Volumes of one name keep the folders in which they differ.
DIR/volumes.csv has the millilitres of every class. --overlay writes slices with the labels in
colour to DIR/overlays/NAME.png. A volume that cannot be read or has values that are not finite is
named at the end, with exit status 2; the others are written.

The section ``inference`` of the run's config holds the settings; --set=KEY=VALUE changes a key,
such as --set=inference.intensity_window=-175,250 or --set=inference.overlap=0.25. One slab of
windows is in memory, whatever the depth of a volume.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import to_path
from input_pipeline.io.intensity_windows import Window, rescaled
from input_pipeline.io.nifti import LabelWriter, NiftiVolume
from unimed_jax import config as config_lib
from unimed_jax.distributed import process, sharding
from unimed_jax.evals.model_under_test import open_model
from unimed_jax.inference.label_volumes import SegmentedVolume, output_names, without_suffix
from unimed_jax.inference.volume_segmenter import Segmenter
from unimed_jax.reporting import overlays
from unimed_jax.tasks.volumetric_segmentation import VolumetricSegmentation

_TASK = "volumetric_segmentation"
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work directory or checkpoint folder")
_OUT = flags.DEFINE_string("out", None, "directory for the labels")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the config; may be given again")
_OVERLAY = flags.DEFINE_bool("overlay", False, "also write PNGs of slices with the labels")

_SLICES_SHOWN = 8


class WindowedVolume:
    """The slices of a file with an intensity window applied, see `volume_segmenter.Volume`."""

    def __init__(self, volume: NiftiVolume, window: Window) -> None:
        self._volume = volume
        self.shape, self.spacing = volume.shape, volume.spacing
        # percentiles of a volume need all of its values once
        self._limits = window.limits(volume.values() if window.relative else np.empty(0))

    def read(self, start: int, stop: int) -> np.ndarray:
        return rescaled(self._volume.read(start, stop), self._limits)


def _write_overlay(
    path: Path, volume: "WindowedVolume", labels: Path, areas: np.ndarray, classes: Sequence[str]
) -> None:
    """A PNG of some slices: anterior at the top, the patient's right on the left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = NiftiVolume(labels)
    shown = overlays.chosen_slices(areas, _SLICES_SHOWN)

    def planes(source: NiftiVolume | WindowedVolume) -> np.ndarray:
        return np.concatenate([source.read(k, k + 1) for k in shown])[:, ::-1, ::-1]

    spacing = volume.spacing[1:]
    overlays.save_montage(path, planes(volume), planes(written), classes, spacing)


def _main(argv: list[str]) -> None:
    if not argv[1:] or not _CHECKPOINT.value or not _OUT.value:
        raise UserError("give --checkpoint, --out, and one or more volumes")
    volumes = [Path(name) for name in argv[1:]]
    if missing := [str(path) for path in volumes if not path.is_file()]:
        raise UserError(f"no such file: {', '.join(missing)}")
    targets = output_names(volumes)
    process.initialize()
    model = open_model(_CHECKPOINT.value, to_path(_OUT.value), {})
    config = model.config
    if config.task != _TASK:
        raise UserError(f"{_CHECKPOINT.value} is a run of {config.task}, not of {_TASK}")
    for key, value in map(config_lib.parse_assignment, _SET.value):
        config_lib.assign(config, key, value)
    task = VolumetricSegmentation(config, model.workdir)
    mesh = sharding.make_mesh({"data": jax.device_count(), "fsdp": 1, "tensor": 1})
    segmenter = Segmenter(
        task.predict,
        tuple(config.data.crop_size),
        tuple(config.data.spacing),
        mesh,
        overlap=config.inference.overlap,
        batch_size=config.inference.batch_size,
    )
    params = model.params(task, mesh)
    try:
        window = Window.parse(config.inference.intensity_window)
    except ValueError as error:
        raise UserError(f"config.inference.intensity_window: {error}") from error
    out, classes = Path(_OUT.value), tuple(config.classes)
    rows, failures = [], []
    for path, name in tqdm(list(zip(volumes, targets, strict=True)), unit="volume", disable=None):
        target = out / name
        if target.exists() and target.samefile(path):
            raise UserError(f"--out={out} holds {path} itself; choose another directory")
        try:
            volume = NiftiVolume(path)
            windowed = WindowedVolume(volume, window)
            segmented = _segment(volume, segmenter.labels(params, windowed), target, len(classes))
        except ValueError as error:  # unreadable, or values that are not finite
            failures.append(f"{path}: {error}")
            process.log(f"error: {failures[-1]}")
            continue
        amounts = dict(zip(classes, segmented.millilitres.tolist(), strict=True))
        rows.append({"volume": str(path), "labels": str(name)} | amounts)
        if _OVERLAY.value and jax.process_index() == 0:
            picture = out / "overlays" / f"{without_suffix(name)}.png"
            _write_overlay(picture, windowed, target, segmented.areas, classes)
        listed = ", ".join(f"{k} {ml:,.1f} ml" for k, ml in amounts.items())
        process.log(f"{target}: {listed}")
    if rows and jax.process_index() == 0:
        _write_table(out / "volumes.csv", rows)
    if failures:
        raise UserError(f"{len(failures)} of {len(volumes)} volumes failed: {'; '.join(failures)}")


def _segment(
    volume: NiftiVolume, slabs: Iterable[np.ndarray], target: Path, num_classes: int
) -> SegmentedVolume:
    """Writes the slabs of labels of a volume, from top to bottom; nothing if one fails."""
    segmented = SegmentedVolume(volume, num_classes)
    writer = None
    if jax.process_index() == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
        writer = LabelWriter(target, volume)
    start = 0
    try:
        for labels in slabs:
            if writer:
                writer.write(start, labels)
            segmented.add(start, labels)
            start += len(labels)
    except BaseException:
        if writer:
            writer.discard()
        raise
    if writer:
        writer.close()
    return segmented


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        header = [*list(rows[0])[:2], *(f"{name}_ml" for name in list(rows[0])[2:])]
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(row.values() for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits; ``argv``: the arguments, None for those of the process."""
    process.run(_main, argv)


if __name__ == "__main__":
    main()
