"""Linear and few-shot probes of a corpus, on seeded splits that are saved with the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.io.errors import UserError
from unimed_jax.evals import (
    label_tasks,
    linear_probe,
    probe_report,
    prompt_sets,
    splits,
    statistics,
)
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.evals.embeddings import CorpusEmbedder, CorpusSplit, Embeddings
from unimed_jax.evals.label_tasks import LabelTask
from unimed_jax.evals.probe_report import ProbeDraw, TaskResult
from unimed_jax.evals.splits import Budget, TaskSplits
from unimed_jax.training.task import Evaluation, Params

_SETTINGS: Mapping[str, Any] = {
    "path": ".",  # corpus directory, relative to data.root
    "train_split": "train",
    "validation_split": "",  # empty: a fifth of train_split, by patient where groups are known
    "split": "val",  # the split to score
    # prompt set (packaged name or JSON file) that defines the tasks; empty: the modality and the
    # labels of each source
    "tasks": "",
    "draws": 5,  # draws of each subset
    "seed": 0,
    "splits": "",  # file of splits of an earlier run to use; empty: draw splits
    # values of C; with unit vectors as features, 1e4 is almost no regularization
    "c_grid": (0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4),
    "batch_size": 64,  # images per device and step
}


@dataclass(frozen=True)
class _Data:
    """The samples that a task can score: N for training, sorted by id, and M for testing.

    The N training samples include the validation part.

    Attributes:
      task: the task.
      ids: the N sample ids.
      features: (N, E).
      labels: (N,) class indices.
      groups: (N,) group indices.
      drawable: (N,) bool, the samples that subsets are drawn from: those of the training split.
      validation: (N,) bool, the validation part.
      test: the M test samples, with zeros as logits.
      test_features: (M, E).
      test_groups: groups of the M test samples.
      num_seen: number of test samples whose group also has training samples.
    """

    task: LabelTask
    ids: tuple[str, ...]
    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    drawable: np.ndarray
    validation: np.ndarray
    test: ClassificationResult
    test_features: np.ndarray
    test_groups: tuple[str, ...]
    num_seen: int


class _Probes:
    """Probes of every task with every budget; see ``LinearProbe`` and ``FewShot``."""

    def __init__(
        self,
        name: str,
        settings: ConfigDict,
        embedder: CorpusEmbedder,
        title: str,
        budgets: Sequence[Budget],
    ) -> None:
        self._name, self._settings, self._embedder = name, settings, embedder
        self._title, self._budgets = title, budgets
        self._train = embedder.split(settings.path, settings.train_split)
        self._test = embedder.split(settings.path, settings.split)
        self._validation = (
            embedder.split(settings.path, settings.validation_split)
            if settings.validation_split
            else None
        )
        self._tasks: Sequence[LabelTask] | None = None
        if settings.tasks:
            self._tasks = prompt_sets.load_prompts(settings.tasks).tasks
        self._given = splits.load(settings.splits) if settings.splits else None

    def __call__(self, params: Params) -> Evaluation:
        def embed(split: CorpusSplit) -> Embeddings:
            return self._embedder.images(params, split, self._settings.batch_size)

        train, test = embed(self._train), embed(self._test)
        validation = embed(self._validation) if self._validation else None
        tasks = self._tasks or label_tasks.tasks_of_corpus(
            train.samples, test.samples, splits.NUM_FOLDS
        )
        if not tasks:
            raise UserError(
                f"{self._train.directory}: no two modalities, and no two labels of one source, "
                f"have {splits.NUM_FOLDS} groups in {self._train.name!r} and a sample in "
                f"{self._test.name!r}; set config.evals.{self._name}.tasks to other classes"
            )
        results, used = [], {}
        for task in tasks:
            data = self._data(task, train, validation, test)
            used[task.name], not_run = self._splits(data)
            results.append(self._fit(data, used[task.name], not_run))
        return probe_report.evaluation(
            self._title, [b.name for b in self._budgets], results, {"splits": self._file(used)}
        )

    def _data(
        self, task: LabelTask, train: Embeddings, validation: Embeddings | None, test: Embeddings
    ) -> _Data:
        parts = [train] if validation is None else [train, validation]
        samples = [sample for part in parts for sample in part.samples]
        scorable, classes, _ = label_tasks.scorable(task, samples)
        order = np.array(sorted(range(len(scorable)), key=lambda i: samples[scorable[i]].id), int)
        indices, labels = np.array(scorable, int)[order], np.array(classes, int)[order]
        of_training_split = indices < len(train.samples)
        self._check_classes(task, labels[of_training_split])
        names = [samples[i].group_key for i in indices]
        groups = np.unique(names, return_inverse=True)[1]
        held_out = ~of_training_split
        if validation is None:
            if groups.max() + 1 < splits.NUM_FOLDS:
                raise UserError(
                    f"task {task.name!r}: {self._train.name!r} has {groups.max() + 1} groups; "
                    f"holding out a validation part needs at least {splits.NUM_FOLDS}"
                )
            # by sorted names, so that the order of the classes in the task does not matter
            by_name = np.argsort(np.argsort(task.classes))[labels]
            held_out = splits.validation_part(by_name, groups, self._settings.seed)
        scored, test_labels, num_left_out = label_tasks.scorable(task, test.samples, test.left_out)
        if not scored:
            raise UserError(f"task {task.name!r} can score no sample of split {self._test.name!r}")
        test_groups = tuple(test.samples[i].group_key for i in scored)
        known = set(names)
        return _Data(
            task=task,
            ids=tuple(samples[i].id for i in indices),
            features=np.concatenate([part.vectors for part in parts])[indices],
            labels=labels,
            groups=groups,
            drawable=of_training_split,
            validation=held_out,
            test=ClassificationResult(
                task=task.name,
                classes=task.classes,
                ids=tuple(test.samples[i].id for i in scored),
                labels=np.array(test_labels, np.int32),
                logits=np.zeros((len(scored), len(task.classes))),
                num_left_out=num_left_out,
            ),
            test_features=test.vectors[scored],
            test_groups=test_groups,
            num_seen=sum(name in known for name in test_groups),
        )

    def _check_classes(self, task: LabelTask, labels: np.ndarray) -> None:
        counts = np.bincount(labels, minlength=len(task.classes))
        if not counts.all():
            raise UserError(
                f"task {task.name!r}: class {task.classes[int(np.argmin(counts))]!r} does not "
                f"occur in split {self._train.name!r} of {self._train.directory}"
            )

    def _splits(self, data: _Data) -> tuple[TaskSplits, dict[str, str]]:
        """The ids of each draw, and the reasons why budgets have none."""
        if self._given is not None:
            return self._given_splits(self._given, data), {}
        subsets, not_run = {}, {}
        drawable = np.flatnonzero(data.drawable)
        for budget in self._budgets:
            try:
                draws = []
                for draw in range(1 if budget.is_everything else self._settings.draws):
                    chosen = splits.subset(
                        budget,
                        data.labels[drawable],
                        data.groups[drawable],
                        data.validation[drawable],
                        (self._settings.seed, draw, *data.task.name.encode()),
                    )
                    draws.append(tuple(data.ids[i] for i in drawable[chosen]))
            except splits.TooFewError as error:
                not_run[budget.name] = f"class {data.task.classes[error.label]!r} {error}"
                continue
            subsets[budget.name] = tuple(draws)
        validation = tuple(data.ids[i] for i in np.flatnonzero(data.validation))
        return TaskSplits(data.task.classes, validation, subsets), not_run

    def _given_splits(self, splits_of: Mapping[str, TaskSplits], data: _Data) -> TaskSplits:
        file, name = self._settings.splits, data.task.name
        given = splits_of.get(name)
        if given is None:
            raise UserError(f"{file} has no task {name!r}, only {', '.join(splits_of)}")
        if given.classes != data.task.classes:
            raise UserError(
                f"{file}: task {name!r} has the classes {', '.join(given.classes)}; expected "
                f"{', '.join(data.task.classes)}"
            )
        known = set(data.ids)
        for ids in (
            given.validation,
            *(draw for draws in given.subsets.values() for draw in draws),
        ):
            if unknown := [i for i in ids if i not in known]:
                raise UserError(
                    f"{file}: task {name!r}: sample {unknown[0]!r} is not in the training data, "
                    "or the task cannot score it"
                )
        names = [budget.name for budget in self._budgets]
        if missing := [b for b in names if b not in given.subsets]:
            raise UserError(f"{file}: task {name!r} has no {missing[0]}; remove that budget")
        return TaskSplits(given.classes, given.validation, {b: given.subsets[b] for b in names})

    def _fit(self, data: _Data, used: TaskSplits, not_run: Mapping[str, str]) -> TaskResult:
        index_of = {sample_id: i for i, sample_id in enumerate(data.ids)}
        validation = np.zeros(len(data.ids), bool)
        validation[[index_of[i] for i in used.validation]] = True
        draws_of, not_run = {}, dict(not_run)
        for budget, draws in used.subsets.items():
            probe_draws = []
            for ids in draws:
                subset = np.sort([index_of[i] for i in ids])
                apart = data.labels[subset[~validation[subset]]]
                if len(np.unique(apart)) < len(data.task.classes):
                    absent = np.setdiff1d(np.arange(len(data.task.classes)), apart)[0]
                    not_run[budget] = (
                        f"class {data.task.classes[absent]!r} has no sample outside the validation "
                        "part"
                    )
                    break
                fitted = linear_probe.choose_and_fit(
                    data.features, data.labels, subset, validation, self._settings.c_grid
                )
                probe_draws.append(
                    _probe_draw(data, fitted, len(subset), intervals=len(draws) == 1)
                )
            else:
                draws_of[budget] = probe_draws
        return TaskResult(
            test=data.test,
            num_validation=int(validation.sum()),
            num_seen=data.num_seen,
            draws=draws_of,
            not_run=not_run,
        )

    def _file(self, used: Mapping[str, TaskSplits]) -> str:
        settings = {
            "corpus": self._train.manifest.name,
            "fingerprint": self._train.manifest.fingerprint,
            "train_split": self._settings.train_split,
            "validation_split": self._settings.validation_split,
            "seed": self._settings.seed,
        }
        return splits.to_json(used, settings)


class LinearProbe(_Probes):
    """Evaluator ``kind='linear_probe'``: logistic regression on shares of the training split."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {**_SETTINGS, "percentages": (1.0, 10.0, 100.0)}

    def __init__(self, name: str, settings: ConfigDict, embedder: CorpusEmbedder) -> None:
        """Reads manifests, tasks and splits. Raises UserError if one is invalid."""
        budgets = splits.percentages(settings.percentages)
        super().__init__(name, settings, embedder, "Linear probe", budgets)


class FewShot(_Probes):
    """Evaluator ``kind='few_shot'``: logistic regression on k samples of every class."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {**_SETTINGS, "shots": (1, 2, 4, 8, 16)}

    def __init__(self, name: str, settings: ConfigDict, embedder: CorpusEmbedder) -> None:
        """Reads manifests, tasks and splits. Raises UserError if one is invalid."""
        budgets = splits.shots(settings.shots)
        super().__init__(name, settings, embedder, "Few-shot probe", budgets)


def _probe_draw(
    data: _Data, fitted: linear_probe.Probe, num_train: int, intervals: bool
) -> ProbeDraw:
    logits = fitted.logits(data.test_features)
    labels = data.test.labels
    return ProbeDraw(
        num_train=num_train,
        c=fitted.c,
        converged=fitted.converged,
        scores=statistics.point_scores(labels, logits),
        intervals=statistics.intervals(labels, logits, data.test_groups) if intervals else {},
        logits=logits,
    )
