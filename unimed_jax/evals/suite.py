"""Zero-shot evaluation of a model on a suite of sets.

Per set: one pass over the images, whose embeddings are kept in a file; then class vectors from the
prompts, logits, scores. Nothing here is random but the bootstrap, which is seeded.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import images as image_files
from input_pipeline.errors import CorpusError, UserError
from input_pipeline.files import write_bytes_atomically
from unimed_jax import runtime
from unimed_jax.evals import classification, scores, set_files
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.evals.prompt_sets import PromptTask
from unimed_jax.evals.set_files import LabelledImages
from unimed_jax.evals.suite_files import SetSpec, Suite
from unimed_jax.inference import Model

PROTOCOLS = {
    "ours": "all prompts of every class; an image that is listed twice counts once",
    "paper": "prompts per class as in the published code (rsna_pneumonia: the first only); an "
    "image that is listed twice counts twice",
}
CLASS_VECTOR = "normalised mean of the normalised prompt embeddings"
SCORE = (
    "cosine of image and class vector, times the model's logit scale; binary AUC by the difference "
    "of class 1 and class 0"
)
_PREPROCESSING = "8 bit, RGB, shortest side bicubic, centre crop; version 1"


@dataclass(frozen=True)
class Scored:
    """The scores of some images of a set: score -> value, and score -> 95 % interval."""

    num_images: int
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class SetResult:
    """What was found on one set.

    Attributes:
      images: what was read.
      result: the logits; its samples are the distinct images in our protocol, rows in the paper's.
      prompts: what was given, before the protocol took its share.
      num_prompts: per class, as used.
      prompts_sha256: of the prompt file, or of the set's own file.
      own_prompts: whether the sentences came from `--prompts`.
      scored: as published.
      leak_free: without images that are known to be in the training data; None where that is not
        known or nothing remains, and then `leak_free_reason` says so.
      single_prompts: the set's metric with one prompt per class, prompt after prompt.
    """

    spec: SetSpec
    images: LabelledImages
    result: ClassificationResult
    prompts: PromptTask
    num_prompts: tuple[int, ...]
    prompts_sha256: str
    own_prompts: bool
    scored: Scored
    leak_free: Scored | None
    leak_free_reason: str
    single_prompts: tuple[float, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the set's files, duplicates among them."""
        return int(self.images.counts.sum())

    @property
    def count_problem(self) -> str:
        """What is wrong with the number of rows; '' if nothing is, or none is known."""
        if self.spec.num_images in (None, self.num_rows):
            return ""
        return f"{self.num_rows:,} rows, expected {self.spec.num_images:,}"

    @property
    def majority(self) -> float:
        """Accuracy of always saying the most frequent class."""
        counts = np.bincount(self.result.labels)
        return float(counts.max() / counts.sum())


@dataclass(frozen=True)
class SuiteResult:
    """What was found on a suite; `absent` has key -> what was looked for."""

    suite: Suite
    protocol: str
    sets: tuple[SetResult, ...]
    absent: Mapping[str, str]

    def means(self, leak_free: bool) -> dict[str, dict[str, Any]]:
        """Of all sets and per modality: {'value', 'over': keys, 'without': {key: reason}}.

        Each set counts once with its own metric, as in the published averages.
        """
        specs = (*self.suite.sets, *self.suite.not_chosen)
        modalities = dict.fromkeys(spec.modality for spec in specs)
        return {
            name: self._mean(leak_free, None if name == "mean" else name)
            for name in ("mean", *modalities)
        }

    def _mean(self, leak_free: bool, modality: str | None) -> dict[str, Any]:
        found = {r.spec.key: r for r in self.sets}
        values: dict[str, float] = {}
        without: dict[str, str] = {}
        for spec in self.suite.sets:
            if modality not in (None, spec.modality):
                continue
            if spec.key in self.absent:
                without[spec.key] = f"absent: {self.absent[spec.key]}"
                continue
            result = found[spec.key]
            scored = result.leak_free if leak_free else result.scored
            value = scored.values[spec.metric] if scored else float("nan")
            if np.isfinite(value):
                values[spec.key] = value
            else:
                without[spec.key] = result.leak_free_reason or f"its {spec.metric} is undefined"
        for spec in self.suite.not_chosen:
            if modality in (None, spec.modality):
                without[spec.key] = "not among --suite.sets"
        value = float(np.mean(list(values.values()))) if values else float("nan")
        return {"value": value, "over": list(values), "without": without}


def evaluate_suite(
    model: Model,
    suite: Suite,
    root: Path,
    cache: Path,
    *,
    protocol: str = "ours",
    prompts: Mapping[str, PromptTask] | None = None,
    prompts_sha256: str = "",
    excluded: Mapping[str, str] | None = None,
) -> SuiteResult:
    """Evaluates every set whose files are there.

    Args:
      model: with both towers.
      root: the folder of the test sets.
      cache: where image embeddings are kept; what is there is not computed again.
      protocol: one of PROTOCOLS.
      prompts: key -> sentences in place of the packaged ones.
      prompts_sha256: of the file that `prompts` came from.
      excluded: ids of images that the model was trained on, with reasons.

    Raises:
      UserError: no set is there at all; a set's files are not what they should be.
    """
    assert protocol in PROTOCOLS
    absent = {s.key: m for s in suite.sets if (m := set_files.missing(s, root))}
    if len(absent) == len(suite.sets):
        raise UserError(
            f"{root} holds none of the sets of {suite.name}; --list says what is looked for"
        )
    cache = cache / model.image_tower_digest()[:16]
    found = []
    for spec in suite.sets:
        if spec.key in absent:
            continue
        runtime.say(f"{spec.key} ...")
        images = set_files.open_set(spec, root)
        task = (prompts or {}).get(spec.key)
        found.append(
            _evaluate_set(
                model,
                spec,
                images,
                _embeddings(model, images, cache / f"{spec.key}.npz"),
                task or spec.prompts,
                protocol,
                prompts_sha256=prompts_sha256 if task else spec.sha256,
                own_prompts=task is not None,
                excluded=excluded,
            )
        )
    return SuiteResult(suite, protocol, tuple(found), absent)


def _embeddings(model: Model, images: LabelledImages, path: Path) -> np.ndarray:
    """Unit vectors (N, E) of the images, from the file if it holds those of the same images."""
    stamp = f"{_PREPROCESSING}; {images.stamp}"
    if path.is_file():
        try:
            with np.load(path) as kept:
                if str(kept["stamp"]) == stamp:
                    return kept["embeddings"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a file of embeddings, delete it: {error}") from error
    embeddings = model.encode_image(_pictures(images))
    buffer = io.BytesIO()
    np.savez(buffer, stamp=stamp, ids=np.array(images.ids), embeddings=embeddings)
    write_bytes_atomically(path, buffer.getvalue())
    return embeddings


def _pictures(images: LabelledImages) -> Iterator[Image.Image]:
    for place, data in zip(images.places, images.read(), strict=True):
        try:
            yield image_files.decode(data)[0]
        except ValueError as error:
            raise CorpusError(f"{place}: {error}") from error


def _evaluate_set(
    model: Model,
    spec: SetSpec,
    images: LabelledImages,
    embeddings: np.ndarray,
    task: PromptTask,
    protocol: str,
    *,
    prompts_sha256: str,
    own_prompts: bool,
    excluded: Mapping[str, str] | None,
) -> SetResult:
    texts = model.encode_text(task.sentences)
    index = np.array(task.class_index)
    place = np.concatenate([np.arange(len(group)) for group in task.prompts])
    limit = spec.paper_prompts if protocol == "paper" else None
    used = place < (limit or len(place))

    def logits(of: np.ndarray) -> np.ndarray:
        vectors = classification.class_embeddings(texts[of], index[of])
        return classification.zero_shot_logits(embeddings, vectors, model.logit_scale)

    singles = [
        scores.point_scores(images.labels, logits(place == j))[spec.metric]
        for j in range(min(map(len, task.prompts)))
    ]
    rows = np.arange(len(images.ids))
    if protocol == "paper":
        rows = np.repeat(rows, images.counts)
    result = ClassificationResult(
        task=spec.key,
        classes=task.classes,
        ids=tuple(images.ids[i] for i in rows),
        labels=images.labels[rows],
        logits=logits(used)[rows],
        num_left_out=sum(images.ignored.values()),
    )
    groups = [images.groups[i] for i in rows]
    leaked = np.array([name in (excluded or {}) for name in result.ids])
    reason = _no_leak_free(spec, leaked, excluded is not None)
    return SetResult(
        spec=spec,
        images=images,
        result=result,
        prompts=task,
        num_prompts=tuple(np.bincount(index[used]).tolist()),
        prompts_sha256=prompts_sha256,
        own_prompts=own_prompts,
        scored=_scored(result, groups, np.ones(len(rows), bool)),
        leak_free=None if reason else _scored(result, groups, ~leaked),
        leak_free_reason=reason,
        single_prompts=tuple(singles),
    )


def _no_leak_free(spec: SetSpec, leaked: np.ndarray, has_list: bool) -> str:
    """Why a set has no leak-free score; '' if it has one."""
    if leaked.all():
        return "all of its images are in the training data"
    if spec.leak and not leaked.any():
        if has_list:
            return "overlaps UniMed's training data, and --exclude lists none of its images"
        return "overlaps UniMed's training data; --exclude can say by which images"
    return ""


def _scored(result: ClassificationResult, groups: Sequence[str], keep: np.ndarray) -> Scored:
    labels, logits = result.labels[keep], result.logits[keep]
    kept = [group for group, k in zip(groups, keep, strict=True) if k]
    return Scored(
        num_images=len(kept),
        values=scores.point_scores(labels, logits),
        intervals=scores.intervals(labels, logits, kept),
    )
