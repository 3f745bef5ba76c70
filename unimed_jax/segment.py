"""Segments NIfTI volumes with a trained run; labels are written in the space of each volume.

    unimed-jax segment --checkpoint=RUN --out=DIR VOLUME.nii.gz [VOLUME.nii ...]

RUN is a work directory of the task volumetric_segmentation, or a checkpoint in it. DIR receives a
file of the same name for each volume: uint8, where k is the k-th class of the run, with the header,
affine and voxel grid of the input. The section ``inference`` of the run's config holds the
settings; --set=KEY=VALUE changes a key, such as --set=inference.intensity_window=-175,250 or
--set=inference.overlap=0.25. One slab of windows is in memory, whatever the
depth of a volume.
"""

from collections.abc import Sequence
from pathlib import Path

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
from unimed_jax.inference.volume_segmenter import Segmenter
from unimed_jax.tasks.volumetric_segmentation import VolumetricSegmentation

_TASK = "volumetric_segmentation"
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "work directory or checkpoint folder")
_OUT = flags.DEFINE_string("out", None, "directory for the labels")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the config; may be given again")


class WindowedVolume:
    """The slices of a file with an intensity window applied, see `volume_segmenter.Volume`."""

    def __init__(self, volume: NiftiVolume, window: Window) -> None:
        self._volume = volume
        self.shape, self.spacing = volume.shape, volume.spacing
        # percentiles of a volume need all of its values once
        self._limits = window.limits(volume.values() if window.relative else np.empty(0))

    def read(self, start: int, stop: int) -> np.ndarray:
        return rescaled(self._volume.read(start, stop), self._limits)


def _main(argv: list[str]) -> None:
    if not argv[1:] or not _CHECKPOINT.value or not _OUT.value:
        raise UserError("give --checkpoint, --out, and one or more volumes")
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
    window = Window.parse(config.inference.intensity_window)
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for name in tqdm(argv[1:], unit="volume", disable=None):
        path = Path(name)
        try:
            volume = NiftiVolume(path)
        except ValueError as error:
            raise UserError(str(error)) from error
        target = out / path.name
        if target.exists() and target.samefile(path):
            raise UserError(f"--out={out} holds {name} itself; choose another directory")
        writer = LabelWriter(target, volume) if jax.process_index() == 0 else None
        start = 0
        try:
            for labels in segmenter.labels(params, WindowedVolume(volume, window)):
                if writer:
                    writer.write(start, labels)
                start += len(labels)
        except ValueError as error:  # values that are not finite
            if writer:
                writer.discard()
            raise UserError(str(error)) from error
        if writer:
            writer.close()
        process.log(f"{target}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits; ``argv``: the arguments, None for those of the process."""
    process.run(_main, argv)


if __name__ == "__main__":
    main()
