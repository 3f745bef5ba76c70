"""Evaluator ``kind='volumes'``: 3-D segmentation of whole volumes, distances in mm."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.io.errors import CorpusError
from input_pipeline.segmentation_records import SegmentationSample
from unimed_jax.evals.segmentation.evaluator import (
    DOMAIN_DEFAULTS,
    Domain,
    ScoredUnit,
    SegmentationContext,
    SegmentationEvaluator,
    patients_of_splits,
    to_json,
)
from unimed_jax.evals.segmentation.report import Overlay
from unimed_jax.evals.segmentation.scores import dice
from unimed_jax.inference.volume_segmenter import Segmenter, Shape
from unimed_jax.models.functional import Params

_SLICES_SHOWN = (0.3, 0.5, 0.7)  # share of the range of slices that have any label


@dataclass(frozen=True)
class ArrayVolume:
    """A volume in memory; see ``volume_segmenter.Volume``."""

    values: np.ndarray
    spacing: tuple[float, ...]

    @property
    def shape(self) -> Shape:
        """(D, H, W)."""
        depth, height, width = self.values.shape
        return depth, height, width

    def read(self, start: int, stop: int) -> np.ndarray:
        """Slices of the volume."""
        return self.values[start:stop]


class SlidingWindowPredictor:
    """Label maps of whole volumes in their original grid."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    def predictions(
        self, params: Params, domain: Domain
    ) -> Iterator[tuple[SegmentationSample, np.ndarray]]:
        """Every sample of a domain with its predicted labels, uint8 (D, H, W)."""
        for split in domain.splits:
            for sample in domain.samples(split):
                if len(sample.shape) != 3 or len(sample.spacing) != 3:
                    raise CorpusError(
                        f"{domain.directory}: {sample.id} is not a volume with a spacing (shape "
                        f"{sample.shape}, spacing {sample.spacing})"
                    )
                volume = ArrayVolume(sample.pixels().astype(np.float32), sample.spacing)
                yield sample, np.concatenate(list(self._segmenter.labels(params, volume)))


class VolumeEvaluator(SegmentationEvaluator):
    """Scores whole volumes in their original grid, on one corpus or on several domains."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **DOMAIN_DEFAULTS,  # the only domain, unless there are targets
        "targets": {},  # name of a domain -> {"path", "splits"}, in place of the above
        "overlap": -1.0,  # of windows; negative: config.inference.overlap
        "batch_size": 0,  # windows on all devices together; 0: config.inference.batch_size
    }
    ENTRY_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"targets": DOMAIN_DEFAULTS}

    distance_name = "hd95_mm"

    def __init__(self, name: str, settings: ConfigDict, context: SegmentationContext) -> None:
        """Reads the manifests.

        Raises:
          ConfigError, CorpusError: a setting or a corpus is not what it should be.
        """
        domain = {key: settings[key] for key in DOMAIN_DEFAULTS}
        super().__init__(context, settings.targets or {"": domain}, settings.path)
        config = context.config
        has_overlap, has_batch_size = settings.overlap >= 0, settings.batch_size > 0
        segmenter = Segmenter(
            context.task.predict,
            tuple(config.data.crop_size),
            tuple(config.data.spacing),
            context.mesh,
            overlap=settings.overlap if has_overlap else config.inference.overlap,
            batch_size=settings.batch_size if has_batch_size else config.inference.batch_size,
            section=f"evals.{name}" if has_overlap or has_batch_size else "inference",
        )
        self._predictor = SlidingWindowPredictor(segmenter)

    def _units(
        self, params: Params, domain: Domain, overlays: list[Overlay]
    ) -> Iterator[ScoredUnit]:
        for sample, labels in self._predictor.predictions(params, domain):
            target = sample.label_map()
            overlays += self._overlays(sample, labels, target)
            # one class at a time: masks of all classes would not fit into memory
            yield ScoredUnit(
                sample.group or sample.id,
                sample.spacing,
                functools.partial(_masks, labels, target),
            )

    def _files(self) -> Mapping[str, str]:
        """Which patients are in which split."""
        content = {domain.name: patients_of_splits(domain) for domain in self._domains}
        return {"splits": to_json(content.get("", content))}

    def _overlays(
        self, sample: SegmentationSample, labels: np.ndarray, target: np.ndarray
    ) -> Iterator[Overlay]:
        image = sample.pixels()
        labeled = np.flatnonzero(target.any(axis=(1, 2)))
        if not len(labeled):
            return
        for share in _SLICES_SHOWN:
            index = int(labeled[0] + share * (labeled[-1] - labeled[0]))
            # radiological convention: anterior at the top, the patient's right on the left
            gray, *maps = (v[index, ::-1, ::-1] for v in (image, labels, target))
            gray = (255 * np.clip(gray.astype(np.float32), 0, 1)).astype(np.uint8)
            prediction_masks, target_masks = (self._task.head.masks_of_labels(m) for m in maps)
            scores = [
                dice(prediction_masks[..., k], target_masks[..., k])
                for k in range(len(self._classes))
            ]
            yield Overlay(
                title=sample.group or sample.id,
                id=f"{sample.id}, slice {index}",
                image=np.repeat(gray[..., None], 3, -1),
                prediction=prediction_masks,
                target=target_masks,
                dice=np.array(scores),
                classes=tuple(self._classes),
            )


def _masks(
    labels: np.ndarray, target: np.ndarray, class_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and target mask of a class; label 0 is the background."""
    return labels == class_index + 1, target == class_index + 1
