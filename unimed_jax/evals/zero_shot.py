"""Zero-shot classification of a converted corpus: one pass over its images, any number of tasks."""

import io
import json
from collections.abc import Mapping, Sequence
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
)
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.evals.classification_report import GalleryItem
from unimed_jax.evals.embeddings import CorpusEmbedder, CorpusSplit, Embeddings, SampleMetadata
from unimed_jax.training.task import Evaluation, Params

_GALLERY_PER_CLASS, _GALLERY_PER_TASK, _GALLERY_SIDE = 1, 6, 160


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
        metrics["mean/balanced_accuracy"] = float(
            np.mean([metrics[f"{result.task}/balanced_accuracy"] for result in results])
        )
        return Evaluation(
            metrics=metrics,
            table=classification_report.results_table(results),
            files={"prompts": json.dumps(corpus_prompts.as_json(self._tasks), indent=1)}
            if self._made
            else {},
            sections=lambda: [
                classification_report.classification_section(results),
                classification_report.confusion_section(results),
                classification_report.gallery_section(self._gallery(results)),
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
        )

    def _gallery(self, results: Sequence[ClassificationResult]) -> list[GalleryItem]:
        """The first image of each class, a few per task, with the classes ranked highest."""
        wanted: dict[str, list[tuple[ClassificationResult, int]]] = {}
        for result in results:
            taken: Mapping[int, list[int]] = {c: [] for c in range(len(result.classes))}
            for index, label in enumerate(result.labels):
                if len(taken[int(label)]) < _GALLERY_PER_CLASS:
                    taken[int(label)].append(index)
            for index in [i for group in taken.values() for i in group][:_GALLERY_PER_TASK]:
                wanted.setdefault(result.ids[index], []).append((result, index))
        items = []
        for sample in self._split.samples():
            for result, index in wanted.get(sample.id, ()):
                items.append(_gallery_item(sample.image, result, index))
        order = [result.task for result in results]
        return sorted(items, key=lambda item: order.index(item.task))


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
