"""Which training samples a probe sees: a validation part, and subsets by share or per class.

Everything is a function of (labels, groups, seed): the samples are given in an order of their own
(sorted ids), not in that of the files. Groups are patients or studies. Shapes: N samples.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import reason, to_path

Array = np.ndarray

NUM_FOLDS = 5  # one of them is the validation part


class TooFewError(ValueError):
    """A class, by its index `label`, has too few samples for a budget; the message says how."""

    def __init__(self, label: int, message: str) -> None:
        super().__init__(message)
        self.label = label


@dataclass(frozen=True)
class Budget:
    """How much of a training part a probe sees: a share of every class, or samples per class."""

    name: str
    share: float | None = None
    per_class: int | None = None

    def counts(self, labels: Array) -> Array:
        """(C,) samples per class."""
        there = np.bincount(labels)
        if self.per_class is not None:
            return np.full(len(there), self.per_class)
        return np.floor(self.share * there + 0.5).astype(int)

    @property
    def is_everything(self) -> bool:
        return self.share == 1.0


def percentages(values: Sequence[float]) -> list[Budget]:
    """'1pct', '10pct', '0.1pct', ..."""
    return [Budget(f"{value:g}pct", share=value / 100) for value in values]


def shots(values: Sequence[int]) -> list[Budget]:
    """'1shot', '2shot', ..."""
    return [Budget(f"{value}shot", per_class=value) for value in values]


def validation_part(labels: Array, groups: Array, seed: int) -> Array:
    """(N,) bool: about a fifth of every class, whole groups. At least five groups in all."""
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    _, chosen = next(folds.split(np.zeros(len(labels)), labels, groups))
    mask = np.zeros(len(labels), bool)
    mask[chosen] = True
    return mask


def subset(
    budget: Budget, labels: Array, groups: Array, validation: Array, seed: Sequence[int]
) -> Array:
    """Sorted places of the samples of one draw; of one seed, larger budgets hold smaller ones.

    Groups are shuffled. A share takes samples group by group, as if few patients had been seen;
    samples per class are of as many groups as there are. Those of the validation part come last:
    they are drawn only where all others are.

    Args:
      budget: how many.
      labels: (N,) class indices; every one of 0..C-1 occurs.
      groups: (N,) indices from 0.
      validation: (N,) bool.
      seed: of this draw.

    Raises:
      TooFewError: a class has fewer samples than the budget asks for, or would have none.
    """
    counts, there = budget.counts(labels), np.bincount(labels)
    if not counts.all():
        raise TooFewError(int(np.argmin(counts)), "would have no sample")
    if (counts > there).any():
        label = int(np.argmax(counts - there))
        raise TooFewError(label, f"has only {there[label]} samples")
    rng = np.random.default_rng(seed)
    num_groups = int(groups.max()) + 1
    place = rng.permutation(num_groups)[groups]
    shuffle = rng.permutation(len(labels))
    if budget.per_class is not None:
        order = np.lexsort((place, _rank_in_group(labels, groups, shuffle), validation))
    else:
        order = np.lexsort((shuffle, place, validation))
    taken = [order[labels[order] == c][:n] for c, n in enumerate(counts)]
    return np.sort(np.concatenate(taken))


def _rank_in_group(labels: Array, groups: Array, shuffle: Array) -> Array:
    """(N,) 0 for the first sample of a class in its group by `shuffle`, 1 for the second, ..."""
    order = np.lexsort((shuffle, labels, groups))
    pair = np.stack([groups[order], labels[order]])
    starts = np.flatnonzero(np.r_[True, (pair[:, 1:] != pair[:, :-1]).any(0)])
    run = np.cumsum(np.isin(np.arange(len(order)), starts)) - 1
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order)) - starts[run]
    return rank


@dataclass(frozen=True)
class TaskSplits:
    """The ids that one task trains and validates on.

    Attributes:
      classes: of the task.
      validation: ids by which the regularisation is chosen.
      subsets: budget -> the ids of every draw.
    """

    classes: tuple[str, ...]
    validation: tuple[str, ...]
    subsets: Mapping[str, tuple[tuple[str, ...], ...]]


def to_json(splits: Mapping[str, TaskSplits], settings: Mapping[str, object]) -> str:
    """A file of splits: `settings` says how they were made."""
    tasks = {
        name: {
            "classes": list(task.classes),
            "validation": list(task.validation),
            "subsets": {
                budget: [list(draw) for draw in draws] for budget, draws in task.subsets.items()
            },
        }
        for name, task in splits.items()
    }
    return json.dumps({**settings, "tasks": tasks}, indent=1, ensure_ascii=False) + "\n"


def load(path: str) -> dict[str, TaskSplits]:
    """Reads what `to_json` wrote.

    Raises:
      UserError: it cannot be read, or is something else.
    """
    try:
        content = json.loads(to_path(path).read_text("utf-8"))
        return {
            name: TaskSplits(
                tuple(task["classes"]),
                tuple(task["validation"]),
                {
                    budget: tuple(tuple(draw) for draw in draws)
                    for budget, draws in task["subsets"].items()
                },
            )
            for name, task in content["tasks"].items()
        }
    except OSError as error:
        raise UserError(f"cannot read the splits {path}: {reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a file of splits: {error!r}") from error
