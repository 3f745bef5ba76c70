"""Training data of probes: a validation part, and subsets by share or by samples per class.

Everything is a function of (labels, groups, seed). Samples are sorted by id, so the order of the
files does not matter. Groups are patients or studies. Shape letters: N samples, C classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import reason, to_path

Array = np.ndarray

NUM_FOLDS = 5  # one fold is the validation part


class TooFewError(ValueError):
    """The class with index ``label`` has too few samples for a budget."""

    def __init__(self, label: int, message: str) -> None:
        super().__init__(message)
        self.label = label


@dataclass(frozen=True)
class Budget:
    """Training samples of a probe: a share of each class, or a number of samples per class."""

    name: str
    share: float | None = None
    per_class: int | None = None

    def counts(self, labels: Array) -> Array:
        """(C,) samples per class."""
        available = np.bincount(labels)
        if self.per_class is not None:
            return np.full(len(available), self.per_class)
        assert self.share is not None, "a budget has a share or a number per class"
        return np.floor(self.share * available + 0.5).astype(int)

    @property
    def is_everything(self) -> bool:
        """Whether the budget covers all samples."""
        return self.share == 1.0


def percentages(values: Sequence[float]) -> list[Budget]:
    """Budgets '1pct', '10pct', '0.1pct', ... from percentages."""
    return [Budget(f"{value:g}pct", share=value / 100) for value in values]


def shots(values: Sequence[int]) -> list[Budget]:
    """Budgets '1shot', '2shot', ... from samples per class."""
    return [Budget(f"{value}shot", per_class=value) for value in values]


def validation_part(labels: Array, groups: Array, seed: int) -> Array:
    """(N,) bool: about a fifth of each class, in complete groups; needs at least five groups."""
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    _, chosen = next(folds.split(np.zeros(len(labels)), labels, groups))
    mask = np.zeros(len(labels), bool)
    mask[chosen] = True
    return mask


def subset(
    budget: Budget, labels: Array, groups: Array, validation: Array, seed: Sequence[int]
) -> Array:
    """Draws a subset; with the same seed, larger budgets contain smaller ones.

    Groups are shuffled. A share takes samples group by group, as in a study of few patients;
    samples per class come from as many groups as possible. Samples of the validation part are drawn
    only after all others.

    Args:
      budget: size of the subset.
      labels: (N,) class indices; each of 0..C-1 must occur.
      groups: (N,) group indices from 0.
      validation: (N,) bool, the validation part.
      seed: seed of this draw.

    Returns:
      Sorted indices of the samples.

    Raises:
      TooFewError: a class has fewer samples than the budget needs, or would get none.
    """
    counts, available = budget.counts(labels), np.bincount(labels)
    if not counts.all():
        raise TooFewError(int(np.argmin(counts)), "would have no sample")
    if (counts > available).any():
        label = int(np.argmax(counts - available))
        raise TooFewError(label, f"has only {available[label]} samples")
    rng = np.random.default_rng(seed)
    num_groups = int(groups.max()) + 1
    position = rng.permutation(num_groups)[groups]
    shuffle = rng.permutation(len(labels))
    if budget.per_class is not None:
        order = np.lexsort((position, _rank_in_group(labels, groups, shuffle), validation))
    else:
        order = np.lexsort((shuffle, position, validation))
    taken = [order[labels[order] == c][:n] for c, n in enumerate(counts)]
    return np.sort(np.concatenate(taken))


def _rank_in_group(labels: Array, groups: Array, shuffle: Array) -> Array:
    """(N,) rank of each sample, by ``shuffle``, among those of its class and group."""
    order = np.lexsort((shuffle, labels, groups))
    pair = np.stack([groups[order], labels[order]])
    starts = np.flatnonzero(np.r_[True, (pair[:, 1:] != pair[:, :-1]).any(0)])
    run = np.cumsum(np.isin(np.arange(len(order)), starts)) - 1
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order)) - starts[run]
    return rank


@dataclass(frozen=True)
class TaskSplits:
    """The sample ids that one task trains and validates on.

    Attributes:
      classes: class names of the task.
      validation: ids of the validation part, which selects the regularization.
      subsets: budget -> ids of each draw.
    """

    classes: tuple[str, ...]
    validation: tuple[str, ...]
    subsets: Mapping[str, tuple[tuple[str, ...], ...]]


def to_json(splits: Mapping[str, TaskSplits], settings: Mapping[str, object]) -> str:
    """Splits as JSON text, together with the settings that produced them."""
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
    """Reads a file of splits, written with ``to_json``.

    Raises:
      UserError: the file cannot be read or is not a file of splits.
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
