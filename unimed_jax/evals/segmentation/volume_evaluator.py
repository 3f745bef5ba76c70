"""Evaluator ``kind='volumes'``: Dice and 95 % Hausdorff distance in mm of whole volumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import manifest, segmentation_records
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, under
from input_pipeline.segmentation_records import SegmentationSample
from unimed_jax.evals.segmentation import report
from unimed_jax.evals.segmentation.report import Overlay, TargetScores
from unimed_jax.evals.segmentation.scores import dice, hausdorff95
from unimed_jax.inference.volume_segmenter import Segmenter
from unimed_jax.losses.segmentation import Head
from unimed_jax.training.task import Evaluation, Params

_SLICES_SHOWN = (0.3, 0.5, 0.7)  # of the range of slices that have any label


class SegmentationTask(Protocol):
    """What the evaluator asks of a task."""

    head: Head
    config: ConfigDict  # classes, crop, spacing

    def predict(self, params: Params, images: jax.Array) -> jax.Array: ...


@dataclass(frozen=True)
class ArrayVolume:
    """A volume in memory, see `segmenter.Volume`."""

    values: np.ndarray
    spacing: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


class VolumeEvaluator:
    """Scores per class, with intervals over patients, in the volumes' own grid.

    Settings: ``path`` (a corpus, relative to data.root), ``splits``, ``overlap`` and ``batch_size``
    (of windows, see Segmenter).
    """

    def __init__(
        self, task: SegmentationTask, settings: ConfigDict, root: AnyPath, mesh: Mesh
    ) -> None:
        """Reads the manifest.

        Raises:
          ConfigError, CorpusError: a setting or the corpus is not what it should be.
        """
        self._task, self._settings = task, settings
        self._classes = tuple(task.config.classes)
        self._directory = under(root, settings.path)
        self._manifest = manifest.load(self._directory)
        if self._manifest.schema != segmentation_records.SCHEMA.name:
            raise CorpusError(
                f"{self._directory} holds {self._manifest.schema} records, not segmentation"
            )
        for split in settings.splits:
            manifest.verify(self._directory, self._manifest, split)
        self._segmenter = Segmenter(
            task.predict, tuple(task.config.crop), tuple(task.config.spacing), settings, mesh
        )

    def __call__(self, params: Params) -> Evaluation:
        groups: list[str] = []
        values = {name: ([], []) for name in self._classes}
        overlays: list[Overlay] = []
        for sample in self._samples(self._settings.splits):
            self._check(sample)
            volume = ArrayVolume(sample.pixels().astype(np.float32), sample.spacing)
            found = np.concatenate(list(self._segmenter.labels(params, volume)))
            truth = sample.label_map()
            groups.append(sample.group or sample.id)
            for k, name in enumerate(self._classes, 1):
                pair = (found == k, truth == k)
                values[name][0].append(dice(*pair))
                values[name][1].append(hausdorff95(*pair, sample.spacing))
            overlays += self._overlays(sample, volume.values, found, truth)
        scores = TargetScores(
            target="",
            groups=tuple(groups),
            dice={name: np.array(both[0]) for name, both in values.items()},
            hd95={name: np.array(both[1]) for name, both in values.items()},
            unit="mm",
            distance="hd95_mm",
        )
        name = self._settings.path
        return Evaluation(
            metrics=scores.metrics(),
            table=report.text_table([scores], name),
            sections=lambda: [
                report.scores_section([scores], name),
                report.overlays_section(overlays),
            ],
            files={"splits": self._splits()},
        )

    def _samples(self, splits: tuple[str, ...]) -> Iterator[SegmentationSample]:
        for split in splits:
            files = [str(self._directory / s.file) for s in self._manifest.splits[split].shards]
            yield from map(
                segmentation_records.decode, tf.data.TFRecordDataset(files).as_numpy_iterator()
            )

    def _check(self, sample: SegmentationSample) -> None:
        if sample.classes != self._classes:
            raise CorpusError(
                f"{self._directory}: {sample.id} has the classes {sample.classes}, the task "
                f"{self._classes}"
            )
        if len(sample.shape) != 3 or len(sample.spacing) != 3:
            raise CorpusError(
                f"{self._directory}: {sample.id} is no volume with a spacing (shape "
                f"{sample.shape}, spacing {sample.spacing})"
            )

    def _splits(self) -> str:
        """Which patients were trained on, and which were not: JSON, split -> groups."""
        patients = {
            split: sorted({s.group or s.id for s in self._samples((split,))})
            for split in sorted(self._manifest.splits)
        }
        evaluated = list(self._settings.splits)
        return json.dumps({"evaluated": evaluated, "patients": patients}, indent=2) + "\n"

    def _overlays(
        self, sample: SegmentationSample, image: np.ndarray, found: np.ndarray, truth: np.ndarray
    ) -> Iterator[Overlay]:
        used = np.flatnonzero(truth.any(axis=(1, 2)))
        if not len(used):
            return
        for share in _SLICES_SHOWN:
            index = int(used[0] + share * (used[-1] - used[0]))
            # as radiologists look at it: rows from front to back, the patient's right on the left
            grey, *regions = (v[index, ::-1, ::-1] for v in (image, found, truth))
            picture = np.repeat((255 * np.clip(grey, 0, 1)).astype(np.uint8)[..., None], 3, -1)
            regions = [self._task.head.regions_of_labels(r) for r in regions]
            score = [
                dice(regions[0][..., k], regions[1][..., k]) for k in range(len(self._classes))
            ]
            yield Overlay(sample.group or sample.id, f"{sample.id}, slice {index}", picture,
                          regions[0], regions[1], np.array(score))  # fmt: skip
