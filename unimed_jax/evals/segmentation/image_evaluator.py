"""Evaluator ``kind='segmentation'``: 2-D segmentation on the training domain and on others."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline import device_prefetch
from input_pipeline.io.errors import ConfigError
from input_pipeline.segmentation_records import SegmentationSample
from unimed_jax.distributed import sharding, xla_options
from unimed_jax.evals.segmentation.evaluator import (
    DOMAIN_DEFAULTS,
    Domain,
    ScoredUnit,
    SegmentationContext,
    SegmentationEvaluator,
)
from unimed_jax.evals.segmentation.report import Overlay
from unimed_jax.evals.segmentation.scores import dice
from unimed_jax.models.functional import Params

_OVERLAYS_PER_DOMAIN = 4


class ResizePredictor:
    """Probabilities of images, resized to the size of the masks."""

    def __init__(self, task: Any, batch_size: int, mesh: Mesh) -> None:
        """
        Args:
          task: with ``predict`` and ``decode_for_evaluation``.
          batch_size: images on all devices together.
          mesh: over the devices of all processes.
        """
        self._task, self._batch_size = task, batch_size
        self._sharding = sharding.batch_sharding(mesh)
        # every process gets all rows
        self._predict = jax.jit(
            lambda params, batch: (task.predict(params, batch["image"]), batch["valid"]),
            out_shardings=sharding.replicated(mesh),
            compiler_options=xla_options.options(mesh),
        )

    def predictions(
        self, params: Params, domain: Domain
    ) -> Iterator[tuple[SegmentationSample, np.ndarray]]:
        """Every sample of a domain with its probabilities, float32 (H, W, outputs)."""
        from input_pipeline import dataset

        for split in domain.splits:
            batches = dataset.evaluation_batches(
                str(domain.directory),
                domain.manifest,
                split,
                self._task.decode_for_evaluation,
                batch_size=self._batch_size,
                host=jax.process_index(),
                num_hosts=jax.process_count(),
            )
            samples = domain.samples(split)
            for batch in device_prefetch.prefetch(batches):
                local = {key: batch[key] for key in ("image", "valid")}
                arrays = device_prefetch.to_global(local, self._sharding)
                rows = jax.device_get(self._predict(params, arrays))
                # the rows that pad the last batch come after the last sample
                for probabilities, valid, sample in zip(*rows, samples, strict=False):
                    if valid:
                        yield sample, resized(probabilities, sample.shape)
                    else:
                        logging.warning("sample %r cannot be decoded: left out", sample.id)


class ImageEvaluator(SegmentationEvaluator):
    """Scores images, or stacks of slices, on every target domain.

    Probabilities are resized linearly to the size of the mask before a class is chosen, so scores
    are in the pixels, or mm, of the original.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "targets": {},  # name of a domain -> {"path", "splits"}; at least one
        "source": "",  # the domain of the training data, for the tables
        "unit": "image",  # or "volume": slices of one group are stacked and scored in 3-D
        "batch_size": 8,  # images on all devices together
    }
    ENTRY_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"targets": DOMAIN_DEFAULTS}
    CHOICES: Mapping[str, Sequence[str]] = {"unit": ("image", "volume")}

    def __init__(self, name: str, settings: ConfigDict, context: SegmentationContext) -> None:
        """Reads the manifests.

        Raises:
          ConfigError, CorpusError: a setting or a corpus is not what it should be.
        """
        if not settings.targets:
            raise ConfigError(
                f"config.evals.{name}.targets is empty; valid: name of a domain -> path, splits"
            )
        key = f"evals.{name}.batch_size"
        sharding.check_batch_size(key, settings.batch_size, context.mesh)
        super().__init__(context, settings.targets, settings.source)
        self._stacks_slices = settings.unit == "volume"
        self._predictor = ResizePredictor(context.task, settings.batch_size, context.mesh)

    def _units(
        self, params: Params, domain: Domain, overlays: list[Overlay]
    ) -> Iterator[ScoredUnit]:
        head, first = self._task.head, len(overlays)
        stacks: dict[str, _Stack] = {}
        for sample, probabilities in self._predictor.predictions(params, domain):
            prediction = head.masks(probabilities)
            target = head.masks_of_labels(sample.label_map())
            if len(overlays) - first < _OVERLAYS_PER_DOMAIN:
                overlays.append(_overlay(domain.name, sample, prediction, target, self._classes))
            group = sample.group or sample.id
            stack = _Stack(group, sample.spacing)
            if self._stacks_slices:
                stack = stacks.setdefault(group, stack)
            stack.slices.append((sample.id, prediction, target))
            if not self._stacks_slices:
                yield stack.unit()
        for stack in stacks.values():
            yield stack.unit()


@dataclass
class _Stack:
    """The slices (id, prediction, target) of a volume, or a single image."""

    group: str
    spacing: tuple[float, ...]
    slices: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)

    def unit(self) -> ScoredUnit:
        """The slices stacked in the order of their ids; a single one stays 2-D."""
        ordered = sorted(self.slices, key=lambda s: s[0])
        prediction, target = (np.stack([s[i] for s in ordered]) for i in (1, 2))
        if len(ordered) == 1:
            prediction, target = prediction[0], target[0]
        return ScoredUnit(
            self.group,
            self.spacing,
            lambda k: (prediction[..., k], target[..., k]),
            len(ordered),
        )


def resized(probabilities: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(h, w, C) -> (*shape, C), linear between pixel centers."""
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


def _overlay(
    domain: str,
    sample: SegmentationSample,
    prediction: np.ndarray,
    target: np.ndarray,
    classes: Sequence[str],
) -> Overlay:
    scores = np.array([dice(prediction[..., k], target[..., k]) for k in range(len(classes))])
    return Overlay(
        domain, sample.id, _rgb(sample), prediction, target, scores, classes=tuple(classes)
    )


def _rgb(sample: SegmentationSample) -> np.ndarray:
    """The image for display, uint8 (H, W, 3)."""
    pixels = sample.pixels()
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (255 * (pixels - low) / max(high - low, 1e-6)).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
