"""Evaluator ``kind='segmentation'``: Dice and 95 % Hausdorff distance on other domains."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import jax
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline import dataset, device_prefetch, manifest, segmentation_records
from input_pipeline.io.errors import ConfigError, CorpusError
from input_pipeline.io.files import AnyPath, under
from input_pipeline.segmentation_records import SegmentationSample
from unimed_jax.distributed import sharding, xla_options
from unimed_jax.evals.segmentation import report
from unimed_jax.evals.segmentation.report import Overlay, TargetScores
from unimed_jax.evals.segmentation.scores import dice, hausdorff95
from unimed_jax.losses.segmentation import Head
from unimed_jax.training.task import Evaluation, Params

_OVERLAYS_PER_TARGET = 4


class SegmentationTask(Protocol):
    """What the evaluator asks of a task."""

    head: Head

    def predict(self, params: Params, images: jax.Array) -> jax.Array: ...

    def decode_for_evaluation(
        self, record: tf.Tensor, seed: tf.Tensor, source: tf.Tensor
    ) -> Mapping[str, tf.Tensor]: ...


@dataclass
class _Unit:
    """What is scored as one: an image, or the slices of a volume in the order of their ids."""

    group: str
    spacing: tuple[float, ...]
    slices: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)

    def regions(self) -> tuple[np.ndarray, np.ndarray]:
        """What was found and what is true, bool (*space, K)."""
        ordered = sorted(self.slices, key=lambda s: s[0])
        found, truth = (np.stack([s[i] for s in ordered]) for i in (1, 2))
        return (found[0], truth[0]) if len(ordered) == 1 else (found, truth)


class SegmentationEvaluator:
    """Scores per class on every target, with intervals over patients.

    Settings: ``targets``, name -> {``path``, ``splits``} (relative to data.root), ``source``
    (the domain trained on, for the tables), ``unit`` (``image``, or ``volume``: slices of one group
    are stacked and scored in 3-D), ``batch_size``. Probabilities are resized linearly to the mask's
    own size before a class is chosen, so scores are in the pixels, or mm, of the original.
    """

    def __init__(
        self,
        task: SegmentationTask,
        classes: tuple[str, ...],
        settings: ConfigDict,
        root: AnyPath,
        mesh: Mesh,
    ) -> None:
        """Reads the manifests.

        Raises:
          ConfigError, CorpusError: a setting or a corpus is not what it should be.
        """
        self._task, self._classes, self._settings = task, classes, settings
        self._targets = {
            name: (under(root, target.path), tuple(target.splits))
            for name, target in settings.targets.items()
        }
        self._manifests = {}
        for name, (directory, splits) in self._targets.items():
            found = manifest.load(directory)
            if found.schema != segmentation_records.SCHEMA.name:
                raise CorpusError(f"{directory} holds {found.schema} records, not segmentation")
            for split in splits:
                manifest.verify(directory, found, split)
            self._manifests[name] = found
        if settings.unit not in ("image", "volume"):
            raise ConfigError(f"config.evals unit={settings.unit!r}; valid: 'image', 'volume'")
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if settings.batch_size % shards or settings.batch_size % jax.process_count():
            raise ConfigError(
                f"config.evals batch_size={settings.batch_size} is not possible; valid: a multiple "
                f"of mesh.data x mesh.fsdp = {shards} and of the {jax.process_count()} hosts"
            )
        self._sharding = sharding.batch_sharding(mesh)
        # every host gets all rows
        self._predict = jax.jit(
            lambda params, batch: (task.predict(params, batch["image"]), batch["valid"]),
            out_shardings=sharding.replicated(mesh),
            compiler_options=xla_options.options(mesh),
        )

    def __call__(self, params: Params) -> Evaluation:
        scores, overlays = [], []
        for target in self._targets:
            found, pictures = self._score(params, target)
            scores.append(found)
            overlays += pictures
        source = self._settings.source
        return Evaluation(
            metrics={k: v for target in scores for k, v in target.metrics().items()},
            table=report.text_table(scores, source),
            sections=lambda: [
                report.scores_section(scores, source),
                report.overlays_section(overlays),
            ],
        )

    def _score(self, params: Params, target: str) -> tuple[TargetScores, list[Overlay]]:
        units: dict[str, _Unit] = {}
        overlays: list[Overlay] = []
        for sample, probabilities in self._predictions(params, target):
            if sample.classes != self._classes:
                raise CorpusError(
                    f"{self._targets[target][0]}: {sample.id} has the classes {sample.classes}, "
                    f"the task {self._classes}"
                )
            found = self._task.head.regions(resized(probabilities, sample.shape))
            truth = self._task.head.regions_of_labels(sample.label_map())
            key = sample.id if self._settings.unit == "image" else sample.group or sample.id
            unit = units.setdefault(key, _Unit(sample.group or sample.id, sample.spacing))
            unit.slices.append((sample.id, found, truth))
            if len(overlays) < _OVERLAYS_PER_TARGET:
                score = np.array(
                    [dice(found[..., k], truth[..., k]) for k in range(truth.shape[-1])]
                )
                overlays.append(Overlay(target, sample.id, _picture(sample), found, truth, score))
        values = {name: ([], []) for name in self._classes}
        in_mm = True
        for unit in units.values():
            found, truth = unit.regions()
            dims = found.ndim - 1
            in_mm = in_mm and len(unit.spacing) >= dims
            spacing = unit.spacing[-dims:] if len(unit.spacing) >= dims else (1.0,) * dims
            for k, name in enumerate(self._classes):
                values[name][0].append(dice(found[..., k], truth[..., k]))
                values[name][1].append(hausdorff95(found[..., k], truth[..., k], spacing))
        return (
            TargetScores(
                target=target,
                groups=tuple(unit.group for unit in units.values()),
                dice={name: np.array(both[0]) for name, both in values.items()},
                hd95={name: np.array(both[1]) for name, both in values.items()},
                unit="mm" if in_mm else "px",
            ),
            overlays,
        )

    def _predictions(
        self, params: Params, target: str
    ) -> Iterator[tuple[SegmentationSample, np.ndarray]]:
        """Every sample of the splits of a target with its probabilities (h, w, outputs)."""
        directory, splits = self._targets[target]
        for split in splits:
            batches = dataset.evaluation_dataset(
                str(directory),
                self._manifests[target],
                split,
                self._task.decode_for_evaluation,
                batch_size=self._settings.batch_size,
                host=jax.process_index(),
                num_hosts=jax.process_count(),
            )
            files = [str(directory / s.file) for s in self._manifests[target].splits[split].shards]
            samples = map(
                segmentation_records.decode, tf.data.TFRecordDataset(files).as_numpy_iterator()
            )
            corpora = {str(directory): self._manifests[target]}
            for batch in device_prefetch.prefetch(dataset.numpy_batches(batches, corpora)):
                local = {key: batch[key] for key in ("image", "valid")}
                arrays = device_prefetch.to_global(local, self._sharding)
                rows = jax.device_get(self._predict(params, arrays))
                # the rows that fill the last batch come after the last sample
                for probabilities, valid, sample in zip(*rows, samples, strict=False):
                    if valid:
                        yield sample, probabilities
                    else:
                        logging.warning("sample %r cannot be decoded: left out", sample.id)


def resized(probabilities: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(h, w, C) -> (*shape, C), linear between pixel centres."""
    if probabilities.shape[:-1] == tuple(shape):
        return probabilities
    height, width = shape
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(probabilities[..., c])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for c in range(probabilities.shape[-1])
    ]
    return np.stack(planes, axis=-1)


def _picture(sample: SegmentationSample) -> np.ndarray:
    """uint8 (H, W, 3) to look at."""
    pixels = sample.pixels()
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (255 * (pixels - low) / max(high - low, 1e-6)).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
