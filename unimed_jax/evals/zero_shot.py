"""Zero-shot classification of a converted corpus: one pass over its images, any number of tasks."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.io.errors import ConfigError
from unimed_jax.distributed import process
from unimed_jax.evals import (
    classification,
    classification_report,
    corpus_prompts,
    label_tasks,
    prompt_sets,
    statistics,
)
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.evals.classification_report import GalleryItem
from unimed_jax.evals.embeddings import CorpusEmbedder, CorpusSplit, Embeddings, SampleMetadata
from unimed_jax.training.task import Evaluation, Params

_GALLERY_PER_TASK, _GALLERY_SIDE = 6, 160


class ZeroShot:
    """Evaluator ``kind='zero_shot'``: balanced accuracy and AUC by prompt ensembling.

    The class embedding is the renormalized mean of the normalized prompt embeddings; the prediction
    is the class of highest cosine (CLIP, arXiv 2103.00020, section 3.1).
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "path": ".",  # corpus directory, relative to data.root
        "split": "val",
        # packaged name or JSON file, see evals/prompt_sets.py; empty: made from the corpus' labels
        "prompts": "",
        "batch_size": 64,  # images per device and step
    }

    def __init__(self, name: str, settings: ConfigDict, embedder: CorpusEmbedder) -> None:
        """Reads the prompts, and the labels of the split.

        Raises:
          ConfigError, CorpusError: the prompts or the corpus are not what they should be, or no
            task of the prompts has a sample in the split.
        """
        self._embedder, self._batch_size = embedder, settings.batch_size
        self._split = embedder.split(settings.path, settings.split)
        samples = embedder.metadata(self._split)
        self._tasks = _tasks(settings.prompts, samples, f"config.evals.{name}", self._split)
        self._made = not settings.prompts

    def __call__(self, params: Params) -> Evaluation:
        embeddings = self._embedder.images(params, self._split, self._batch_size)
        results = [self._classify(task, embeddings, params) for task in self._tasks]
        metrics = {
            f"{result.task}/{name}": value
            for result in results
            for name, value in classification.metrics(result).items()
        }
        intervals = {result.task: _interval(result) for result in results}
        for task, (low, high) in intervals.items():
            metrics[f"{task}/balanced_accuracy_low"] = low
            metrics[f"{task}/balanced_accuracy_high"] = high
        metrics["mean/balanced_accuracy"] = float(
            np.mean([metrics[f"{result.task}/balanced_accuracy"] for result in results])
        )
        return Evaluation(
            metrics=metrics,
            headline=_headline([result.task for result in results]),
            table=classification_report.results_table(results),
            files={"prompts": json.dumps(corpus_prompts.as_json(self._tasks), indent=1)}
            if self._made
            else {},
            sections=lambda: [
                classification_report.classification_section(results, intervals=intervals),
                classification_report.confusion_section(results),
                classification_report.curves_section(results),
                classification_report.gallery_section(
                    self._gallery(results, _surest_mistakes), "Surest mistakes"
                ),
                classification_report.gallery_section(self._gallery(results, _first_of_classes)),
            ],
        )

    def _classify(
        self, task: prompt_sets.PromptTask, embeddings: Embeddings, params: Params
    ) -> ClassificationResult:
        indices, labels, num_left_out = label_tasks.scorable(
            task, embeddings.samples, embeddings.left_out
        )
        prompts = self._embedder.texts(params, task.sentences, self._batch_size)
        classes = classification.class_embeddings(prompts, task.class_index)
        return ClassificationResult(
            task=task.name,
            classes=task.classes,
            ids=tuple(embeddings.samples[i].id for i in indices),
            labels=np.array(labels, np.int32),
            logits=classification.zero_shot_logits(
                embeddings.vectors[indices], classes, self._embedder.logit_scale(params)
            ),
            num_left_out=num_left_out,
            groups=tuple(embeddings.samples[i].group_key for i in indices),
        )

    def _gallery(
        self,
        results: Sequence[ClassificationResult],
        choose: Callable[[ClassificationResult], Sequence[int]],
    ) -> list[GalleryItem]:
        """The chosen samples of every task, with the classes ranked highest."""
        wanted: dict[str, list[tuple[ClassificationResult, int, int]]] = {}
        for result in results:
            for place, index in enumerate(choose(result)):
                wanted.setdefault(result.ids[index], []).append((result, index, place))
        order = [result.task for result in results]
        items = []
        for sample in self._split.samples():
            for result, index, place in wanted.get(sample.id, ()):
                key = (order.index(result.task), place)
                items.append((key, _gallery_item(sample.image, result, index)))
        return [item for _, item in sorted(items, key=lambda pair: pair[0])]


def _headline(tasks: Sequence[str]) -> list[str]:
    """The mean over several tasks, and up to three of them."""
    mean = ["mean/balanced_accuracy"] if len(tasks) > 1 else []
    return [*mean, *(f"{task}/balanced_accuracy" for task in tasks[:3])]


def _first_of_classes(result: ClassificationResult) -> list[int]:
    """The first sample of each class, a few per task."""
    first = [int(np.flatnonzero(result.labels == c)[0]) for c in np.unique(result.labels)]
    return first[:_GALLERY_PER_TASK]


def _surest_mistakes(result: ClassificationResult) -> list[int]:
    """The wrong predictions of highest probability."""
    wrong = np.flatnonzero(result.predictions != result.labels)
    confidence = classification.probabilities(result).max(axis=1)[wrong]
    return wrong[np.argsort(-confidence, kind="stable")][:_GALLERY_PER_TASK].tolist()


def _interval(result: ClassificationResult) -> tuple[float, float]:
    """95 % interval of the balanced accuracy; NaN without samples."""
    if not result.ids:
        return float("nan"), float("nan")
    groups = result.groups or result.ids
    name = "balanced_accuracy"
    return statistics.intervals(result.labels, result.logits, groups, [name])[name]


def _tasks(
    prompts: str, samples: Sequence[SampleMetadata], key: str, split: CorpusSplit
) -> tuple[prompt_sets.PromptTask, ...]:
    """The tasks of a prompt file, or of the samples' labels, with at least one sample to score.

    Raises:
      ConfigError: there is none.
    """
    where = f"split {split.name!r} of {split.directory}"
    if not prompts:
        made = corpus_prompts.from_labels(samples)
        if made is None:
            raise ConfigError(
                f"{key}: {where} has neither two modalities nor two labels of one source, so there "
                "is nothing to classify; set prompts to a file with the classes"
            )
        return made.tasks
    tasks = prompt_sets.load_prompts(prompts).tasks
    empty = [task.name for task in tasks if not label_tasks.scorable(task, samples)[0]]
    if len(empty) == len(tasks):
        wanted = ", ".join(f"{c!r}" for c in tasks[0].classes[:4])
        raise ConfigError(
            f"{key}: none of the tasks of prompts={prompts!r} has a sample in {where}; its first "
            f"task looks for the classes {wanted}. Leave prompts empty to classify by the corpus' "
            "own labels"
        )
    if empty:
        process.log(f"{key}: no sample of {where} for {', '.join(empty)}; left out")
    return tuple(task for task in tasks if task.name not in empty)


def _gallery_item(encoded: bytes, result: ClassificationResult, index: int) -> GalleryItem:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    image.thumbnail((_GALLERY_SIDE, _GALLERY_SIDE))
    probabilities = classification.probabilities(result)[index]
    return GalleryItem(
        task=result.task,
        id=result.ids[index],
        image=np.asarray(image),
        true_class=result.classes[result.labels[index]],
        top_classes=tuple(
            (result.classes[c], float(probabilities[c])) for c in np.argsort(-probabilities)[:3]
        ),
    )
