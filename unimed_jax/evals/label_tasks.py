"""Classification tasks: which samples they are about, and which class each of those is."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimed_jax.evals.embeddings import Described

FIELDS = ("modality", "label")


@dataclass(frozen=True)
class LabelTask:
    """One way to sort samples into classes.

    Attributes:
      name: of the task, in metrics and reports.
      field: the field of a sample that holds its class, one of FIELDS.
      source: the only source that the task is about; None: all.
      classes: in the order of the logits.
    """

    name: str
    field: str
    source: str | None
    classes: tuple[str, ...]

    def includes(self, source: str) -> bool:
        """Whether the task is about samples of `source` at all."""
        return self.source is None or self.source == source

    def class_of(self, modality: str, labels: Iterable[str]) -> int | None:
        """Index of a sample's true class.

        None where the task cannot judge the sample: its value is none of the classes, or several of
        its labels are.
        """
        values = (modality,) if self.field == "modality" else labels
        found = {self.classes.index(value) for value in values if value in self.classes}
        return found.pop() if len(found) == 1 else None


def judged(task: LabelTask, samples: Sequence[Described]) -> tuple[list[int], list[int], int]:
    """(places of the samples that a task judges, class of each, number that it leaves out)."""
    candidates = [i for i, sample in enumerate(samples) if task.includes(sample.source)]
    classes = [task.class_of(samples[i].modality, samples[i].labels) for i in candidates]
    kept = [(i, c) for i, c in zip(candidates, classes, strict=True) if c is not None]
    return [i for i, _ in kept], [c for _, c in kept], len(candidates) - len(kept)


def tasks_of_corpus(
    train: Sequence[Described], test: Sequence[Described], min_groups: int
) -> tuple[LabelTask, ...]:
    """Modality, and the labels of every source, as far as there are two classes of them.

    A class occurs in at least `min_groups` groups of `train` and once in `test`. Attributes
    (`name=value`) are no classes.
    """

    def task(name: str, field: str, source: str | None) -> LabelTask:
        def values(sample: Described) -> list[str]:
            if source is not None and sample.source != source:
                return []
            if field == "modality":
                return [sample.modality]
            return [label for label in sample.labels if "=" not in label]

        groups = collections.defaultdict(set)
        for sample in train:
            for value in values(sample):
                groups[value].add(sample.group_key)
        tested = {value for sample in test for value in values(sample)}
        enough = sorted(v for v in tested & groups.keys() if len(groups[v]) >= min_groups)
        return LabelTask(name, field, source, tuple(enough))

    sources = sorted({sample.source for sample in train})
    found = [task("modality", "modality", None), *(task(s, "label", s) for s in sources)]
    return tuple(t for t in found if len(t.classes) > 1)
