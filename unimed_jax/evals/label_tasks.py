"""Classification tasks: the samples they cover and the class of each."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimed_jax.evals.embeddings import SampleMetadata

FIELDS = ("modality", "label")


@dataclass(frozen=True)
class LabelTask:
    """A classification of samples by one of their fields.

    Attributes:
      name: name in metrics and reports.
      field: field of a sample that holds its class, one of ``FIELDS``.
      source: the source that the task covers; None: all.
      classes: the classes in the order of the logits.
    """

    name: str
    field: str
    source: str | None
    classes: tuple[str, ...]

    def includes(self, source: str) -> bool:
        """Whether the task covers samples of ``source``."""
        return self.source is None or self.source == source

    def class_of(self, modality: str, labels: Iterable[str]) -> int | None:
        """Index of the true class of a sample.

        None if the sample cannot be scored: none of its values is a class, or several are.
        """
        values = (modality,) if self.field == "modality" else labels
        indices = {self.classes.index(value) for value in values if value in self.classes}
        return indices.pop() if len(indices) == 1 else None


def scorable(
    task: LabelTask, samples: Sequence[SampleMetadata], left_out: Sequence[SampleMetadata] = ()
) -> tuple[list[int], list[int], int]:
    """(indices of the samples that a task can score, their classes, number of other samples).

    The other samples are those without exactly one class, and, of `left_out`, those of the task.
    """
    candidates = [i for i, sample in enumerate(samples) if task.includes(sample.source)]
    classes = [task.class_of(samples[i].modality, samples[i].labels) for i in candidates]
    lost = sum(task.includes(sample.source) for sample in left_out)
    kept = [(i, c) for i, c in zip(candidates, classes, strict=True) if c is not None]
    return [i for i, _ in kept], [c for _, c in kept], len(candidates) - len(kept) + lost


def tasks_of_corpus(
    train: Sequence[SampleMetadata], test: Sequence[SampleMetadata], min_groups: int
) -> tuple[LabelTask, ...]:
    """Tasks of a corpus: the modality, and the labels of each source, with two classes or more.

    Args:
      train: training samples.
      test: test samples.
      min_groups: a class must occur in at least this number of groups of ``train``, and in
        ``test``. Attributes (``name=value``) are not classes.
    """

    def task(name: str, field: str, source: str | None) -> LabelTask:
        def values(sample: SampleMetadata) -> list[str]:
            if source is not None and sample.source != source:
                return []
            if field == "modality":
                return [sample.modality]
            return [label for label in sample.labels if "=" not in label]

        groups: dict[str, set[str]] = collections.defaultdict(set)
        for sample in train:
            for value in values(sample):
                groups[value].add(sample.group_key)
        tested = {value for sample in test for value in values(sample)}
        enough = sorted(v for v in tested & groups.keys() if len(groups[v]) >= min_groups)
        return LabelTask(name, field, source, tuple(enough))

    sources = sorted({sample.source for sample in train})
    tasks = [task("modality", "modality", None), *(task(s, "label", s) for s in sources)]
    return tuple(t for t in tasks if len(t.classes) > 1)
