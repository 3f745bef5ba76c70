"""What the segmentation evaluators share: corpora, checks, and scores of 2-D and 3-D masks."""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import manifest, record_index, record_reader, segmentation_records
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, under
from input_pipeline.segmentation_records import SegmentationSample
from unimed_jax.evals.segmentation import report
from unimed_jax.evals.segmentation.report import DomainScores, Overlay
from unimed_jax.evals.segmentation.scores import dice, hausdorff95
from unimed_jax.losses.segmentation import Head
from unimed_jax.models.functional import Params
from unimed_jax.training.task import Evaluation

DOMAIN_DEFAULTS: Mapping[str, Any] = {
    "path": ".",  # corpus directory, relative to data.root
    "splits": ("val",),
}


class SegmentationTask(Protocol):
    """What the evaluators use of a task."""

    head: Head

    def predict(self, params: Params, images: jax.Array) -> jax.Array:
        """Images or crops (B, *space, C) -> probabilities (B, *space, outputs)."""


@dataclass(frozen=True)
class SegmentationContext:
    """What a segmentation evaluator is built from.

    Attributes:
      task: the task whose parameters will be given.
      config: the whole config of the run.
      root: directory that the paths of corpora are relative to.
      mesh: over the devices of all processes.
    """

    task: SegmentationTask
    config: ConfigDict
    root: AnyPath
    mesh: Mesh


@dataclass(frozen=True)
class Domain:
    """Splits of a corpus that are scored together, and the classes that its masks must have."""

    name: str
    directory: AnyPath
    manifest: manifest.Manifest
    splits: tuple[str, ...]
    classes: tuple[str, ...]

    @classmethod
    def open(
        cls, name: str, root: AnyPath, settings: Mapping[str, Any], classes: tuple[str, ...]
    ) -> Domain:
        """Reads and checks the manifest.

        Args:
          name: of the domain.
          root: directory that ``path`` is relative to.
          settings: see ``DOMAIN_DEFAULTS``.
          classes: those of the task.

        Raises:
          CorpusError: there is no such corpus of segmentations, or it is not complete.
        """
        directory, splits = under(root, settings["path"]), tuple(settings["splits"])
        content = manifest.load(directory)
        if content.schema != segmentation_records.SCHEMA.name:
            raise CorpusError(f"{directory} holds {content.schema} records, not segmentation")
        for split in splits:
            manifest.verify(directory, content, split)
        return cls(name, directory, content, splits, classes)

    def samples(self, split: str) -> Iterator[SegmentationSample]:
        """Every sample of a split, in file order. Raises CorpusError for one of other classes."""
        index = record_index.load(self.directory, self.manifest, split)
        for record in record_reader.sequential(index):
            sample = segmentation_records.decode(record)
            if sample.classes != self.classes:
                raise CorpusError(
                    f"{self.directory}: {sample.id} has the classes {sample.classes}, the task "
                    f"{self.classes}"
                )
            yield sample


@dataclass(frozen=True)
class ScoredUnit:
    """What is scored as one: an image, or a volume.

    Attributes:
      group: its patient.
      spacing: mm along the last axes; may be shorter than the number of axes if unknown.
      masks: index of a class -> (prediction, target), bool arrays of the same shape.
      num_samples: number of samples that it is made of.
    """

    group: str
    spacing: tuple[float, ...]
    masks: Callable[[int], tuple[np.ndarray, np.ndarray]]
    num_samples: int = 1


class SegmentationEvaluator(abc.ABC):
    """Dice and 95 % Hausdorff distance per class on every domain, with intervals over patients.

    A subclass predicts: 2-D by resizing (image_evaluator.py), 3-D by a sliding window
    (volume_evaluator.py).
    """

    distance_name = "hd95"
    """Name of the Hausdorff distance among the metrics."""

    def __init__(
        self,
        context: SegmentationContext,
        domains: Mapping[str, Mapping[str, Any]],
        source: str,
    ) -> None:
        """Reads the manifests.

        Args:
          context: the task and its run.
          domains: name -> settings of a ``Domain``.
          source: name of the domain of the training data, for the tables.

        Raises:
          CorpusError: a corpus is not what it should be.
        """
        self._task, self._source = context.task, source
        self._classes = tuple(context.config.classes)
        self._domains = [
            Domain.open(name, context.root, settings, self._classes)
            for name, settings in domains.items()
        ]

    @abc.abstractmethod
    def _units(
        self, params: Params, domain: Domain, overlays: list[Overlay]
    ) -> Iterator[ScoredUnit]:
        """Predicts the samples of a domain; appends some of them to ``overlays``."""

    def __call__(self, params: Params) -> Evaluation:
        scores: list[DomainScores] = []
        overlays: list[Overlay] = []
        for domain in self._domains:
            scores.append(self._score(domain, self._units(params, domain, overlays)))
        return Evaluation(
            metrics={k: v for domain in scores for k, v in domain.metrics().items()},
            headline=[domain.key(name, "dice") for domain in scores for name in domain.dice][:4],
            table=report.text_table(scores, self._source),
            sections=lambda: [
                report.scores_section(scores, self._source),
                report.overlays_section(overlays),
            ],
            files=self._files(),
        )

    def _files(self) -> Mapping[str, str]:
        """Files beside the results, see ``Evaluation``."""
        return {}

    def _score(self, domain: Domain, units: Iterator[ScoredUnit]) -> DomainScores:
        groups: list[str] = []
        values: dict[str, tuple[list[float], list[float]]] = {
            name: ([], []) for name in self._classes
        }
        in_mm = True
        num_left_out = sum(domain.manifest.splits[name].num_samples for name in domain.splits)
        for unit in units:
            num_left_out -= unit.num_samples
            groups.append(unit.group)
            for k, name in enumerate(self._classes):
                prediction, target = unit.masks(k)
                dims = target.ndim
                has_spacing = len(unit.spacing) >= dims
                in_mm = in_mm and has_spacing
                spacing = unit.spacing[-dims:] if has_spacing else (1.0,) * dims
                values[name][0].append(dice(prediction, target))
                values[name][1].append(hausdorff95(prediction, target, spacing))
        return DomainScores(
            domain=domain.name,
            groups=tuple(groups),
            dice={name: np.array(both[0]) for name, both in values.items()},
            hd95={name: np.array(both[1]) for name, both in values.items()},
            unit="mm" if in_mm else "px",
            distance=self.distance_name,
            num_left_out=num_left_out,
        )


def patients_of_splits(domain: Domain) -> dict[str, Any]:
    """The splits that were evaluated, and the patients of every split of the corpus."""
    patients = {
        split: sorted({s.group or s.id for s in domain.samples(split)})
        for split in sorted(domain.manifest.splits)
    }
    return {"evaluated": list(domain.splits), "patients": patients}


def to_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
