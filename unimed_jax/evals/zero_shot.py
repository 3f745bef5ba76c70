"""Zero-shot classification of a converted corpus: one pass over its images, any number of tasks."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from unimed_jax.evals import classification, classification_report, label_tasks, prompt_sets
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.evals.classification_report import GalleryItem
from unimed_jax.evals.embeddings import CorpusEmbedder, Embeddings
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
        "prompts": "",  # a packaged name or a JSON file, see evals/prompt_sets.py
        "batch_size": 64,  # images per device and step
    }

    def __init__(self, name: str, settings: ConfigDict, embedder: CorpusEmbedder) -> None:
        """Reads the prompts and the manifest.

        Raises:
          ConfigError, CorpusError: the prompts or the corpus are not what they should be.
        """
        del name
        self._embedder, self._batch_size = embedder, settings.batch_size
        self._prompts = prompt_sets.load_prompts(settings.prompts)
        self._split = embedder.split(settings.path, settings.split)

    def __call__(self, params: Params) -> Evaluation:
        embeddings = self._embedder.images(params, self._split, self._batch_size)
        results = [self._classify(task, embeddings, params) for task in self._prompts.tasks]
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
            sections=lambda: [
                classification_report.classification_section(results),
                classification_report.confusion_section(results),
                classification_report.gallery_section(self._gallery(results)),
            ],
        )

    def _classify(
        self, task: prompt_sets.PromptTask, embeddings: Embeddings, params: Params
    ) -> ClassificationResult:
        indices, labels, num_left_out = label_tasks.scorable(task, embeddings.samples)
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
