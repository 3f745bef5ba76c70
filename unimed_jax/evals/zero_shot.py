"""Zero-shot classification of a converted corpus: one pass over its images, any number of tasks."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline import dataset, feed, manifest, records
from input_pipeline.errors import ConfigError
from input_pipeline.files import AnyPath, under
from unimed_jax import losses, report, sharding
from unimed_jax.evals import classification, prompt_sets
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.tasks.base import Evaluation, Params

if TYPE_CHECKING:
    from unimed_jax.tasks.contrastive import Contrastive

_GALLERY_PER_CLASS, _GALLERY_PER_TASK, _GALLERY_SIDE = 1, 6, 160


@dataclass(frozen=True)
class _Described:
    """What is known of an image besides its pixels."""

    id: str
    modality: str
    source: str
    labels: tuple[str, ...]


class ZeroShot:
    """Evaluator ``kind='zero_shot'``: balanced accuracy and AUC by prompt ensembling.

    Settings: ``path`` and ``split`` (corpus, relative to data.root), ``prompts`` (a packaged name
    or a JSON file, see evals/prompt_sets.py), ``batch_size``. The class embedding is the
    renormalised mean of the normalised prompt embeddings; the prediction is the class of highest
    cosine (CLIP, arXiv 2103.00020, section 3.1).
    """

    def __init__(self, task: Contrastive, settings: ConfigDict, root: AnyPath, mesh: Mesh) -> None:
        """Reads prompts and manifest.

        Raises:
          ConfigError, CorpusError: the prompts or the corpus are not what they should be.
        """
        self._task = task
        self._directory = under(root, settings.path)
        self._split = settings.split
        self._prompts = prompt_sets.load_prompts(settings.prompts)
        self._manifest = manifest.load(self._directory)
        manifest.verify(self._directory, self._manifest, settings.split)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if settings.batch_size % shards or settings.batch_size % jax.process_count():
            raise ConfigError(
                f"config.evals batch_size={settings.batch_size} is not possible; valid: a multiple "
                f"of mesh.data x mesh.fsdp = {shards} and of the {jax.process_count()} hosts"
            )
        self._batch_size = settings.batch_size
        self._sharding = sharding.batch_sharding(mesh)
        whole = sharding.replicated(mesh)  # every host gets the embeddings of all rows
        model = task.model
        self._encode_image = jax.jit(
            lambda params, x: losses.normalize(model.encode_image(params, x)), out_shardings=whole
        )
        self._encode_text = jax.jit(
            lambda params, x: losses.normalize(model.encode_text(params, x)), out_shardings=whole
        )

    def __call__(self, params: Params) -> Evaluation:
        described, embeddings = self._embed_images(params)
        scale = float(np.exp(jax.device_get(params["logit_scale"])))
        results = [
            self._classify(task, described, embeddings, params, scale)
            for task in self._prompts.tasks
        ]
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
            table=report.results_table(results),
            sections=lambda: [
                report.classification_section(results),
                report.confusion_section(results),
                report.gallery_section(self._gallery(results)),
            ],
        )

    def _embed_images(self, params: Params) -> tuple[list[_Described], np.ndarray]:
        """Every sample of the split, in file order, with its normalised embedding (N, e)."""
        described = []
        for path in self._shard_paths():
            for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
                sample = records.decode(record)
                described.append(
                    _Described(sample.id, sample.modality, sample.source, sample.labels)
                )
        batches = dataset.evaluation_dataset(
            str(self._directory),
            self._manifest,
            self._split,
            self._task.decode_for_evaluation,
            batch_size=self._batch_size,
            host=jax.process_index(),
            num_hosts=jax.process_count(),
        )
        rows, valid = [], []
        directories = {str(self._directory): self._manifest}
        for batch in feed.prefetch(dataset.numpy_batches(batches, directories)):
            arrays = feed.to_global(
                {"image": batch["image"], "valid": batch["valid"]}, self._sharding
            )
            rows.append(np.asarray(self._encode_image(params, arrays["image"])))
            valid.append(_gather(arrays["valid"]))
        count = len(described)
        embeddings = np.concatenate(rows)[:count]
        keep = np.concatenate(valid)[:count]
        for index in np.flatnonzero(~keep):
            logging.warning("sample %r cannot be decoded: left out", described[index].id)
        return [d for d, k in zip(described, keep, strict=True) if k], embeddings[keep]

    def _shard_paths(self) -> list[str]:
        return [str(self._directory / s.file) for s in self._manifest.splits[self._split].shards]

    def _embed_texts(self, params: Params, texts: Sequence[str]) -> np.ndarray:
        """Normalised embeddings (len(texts), e), computed in batches of one shape."""
        ids = self._task.tokenizer(texts)
        padding = -len(ids) % self._batch_size
        ids = np.concatenate([ids, np.repeat(ids[-1:], padding, axis=0)])
        rows = self._batch_size // jax.process_count()
        begin = jax.process_index() * rows
        encoded = []
        for batch in ids.reshape(-1, self._batch_size, ids.shape[1]):
            local = {"text": batch[begin : begin + rows]}
            arrays = feed.to_global(local, self._sharding)
            encoded.append(np.asarray(self._encode_text(params, arrays["text"])))
        return np.concatenate(encoded)[: len(texts)]

    def _classify(
        self,
        task: prompt_sets.PromptTask,
        described: Sequence[_Described],
        embeddings: np.ndarray,
        params: Params,
        scale: float,
    ) -> ClassificationResult:
        candidates = [i for i, d in enumerate(described) if task.includes(d.source)]
        truth = {i: task.class_of(described[i].modality, described[i].labels) for i in candidates}
        judged = [i for i in candidates if truth[i] is not None]
        prompts = self._embed_texts(params, task.sentences)
        classes = classification.class_embeddings(prompts, task.class_index)
        return ClassificationResult(
            task=task.name,
            classes=task.classes,
            ids=tuple(described[i].id for i in judged),
            labels=np.array([truth[i] for i in judged], np.int32),
            logits=classification.zero_shot_logits(embeddings[judged], classes, scale),
            num_left_out=len(candidates) - len(judged),
        )

    def _gallery(self, results: Sequence[ClassificationResult]) -> list[report.GalleryItem]:
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
        for path in self._shard_paths():
            for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
                sample = records.decode(record)
                for result, index in wanted.get(sample.id, ()):
                    items.append(_gallery_item(sample.image, result, index))
        order = [result.task for result in results]
        return sorted(items, key=lambda item: order.index(item.task))


def _gather(array: jax.Array) -> np.ndarray:
    """All rows of a global array that is divided over hosts, on every host."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _gallery_item(encoded: bytes, result: ClassificationResult, index: int) -> report.GalleryItem:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    image.thumbnail((_GALLERY_SIDE, _GALLERY_SIDE))
    probabilities = classification.probabilities(result)[index]
    return report.GalleryItem(
        task=result.task,
        id=result.ids[index],
        image=np.asarray(image),
        true_class=result.classes[result.labels[index]],
        top_classes=tuple(
            (result.classes[c], float(probabilities[c])) for c in np.argsort(-probabilities)[:3]
        ),
    )
