"""Zero-shot evaluation of a model on a suite of sets, on one host or many.

Per set: one pass over the images, whose embeddings are cached; then class embeddings from the
prompts, logits and scores. Images are divided over the hosts; the rest takes little time and runs
on every host. Only the bootstrap is random, with a fixed seed.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from input_pipeline.io.errors import CorpusError, UserError
from input_pipeline.io.files import AnyPath
from unimed_jax.distributed import process
from unimed_jax.evals import classification, statistics
from unimed_jax.evals.benchmark import finding_tables, image_embeddings, set_prompts
from unimed_jax.evals.benchmark import images as set_files
from unimed_jax.evals.benchmark.finding_tables import FindingTable
from unimed_jax.evals.benchmark.image_embeddings import SetEmbeddings
from unimed_jax.evals.benchmark.images import LabelledImages
from unimed_jax.evals.benchmark.set_prompts import SetPrompts
from unimed_jax.evals.benchmark.spec import FindingsLayout, SetSpec, Suite
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.evals.failures import Failures
from unimed_jax.evals.prompt_sets import PromptTask
from unimed_jax.inference.dual_encoder import Model

PROTOCOLS = {
    "ours": "all prompts of every class; an image that is listed twice counts once; RGB, then "
    "resized and cropped",
    "paper": "prompts per class as in the published code (rsna_pneumonia: the first only); an "
    "image that is listed twice counts twice; without the first row of BACH if its table has no "
    "header; resized and cropped in the file's own mode, then RGB",
}
CLASS_VECTOR = "normalised mean of the normalised prompt embeddings"
SCORE = (
    "cosine of image and class vector, times the model's logit scale; binary AUC by the difference "
    "of class 1 and class 0"
)


@dataclass(frozen=True)
class Scored:
    """The scores of some images of a set: score -> value, and score -> 95 % interval."""

    num_images: int
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class BadImage:
    """An image that does not decode: its id, its file and row, and the reason."""

    id: str
    place: str
    reason: str


@dataclass(frozen=True)
class SetResult:
    """The result of one set.

    Attributes:
      images: the images of the set.
      bad_images: images that do not decode; they are in no score.
      digest: SHA-256 of the ids, labels and bytes of all images.
      same_bytes: number of images whose file equals that of an earlier one.
      result: the logits; its samples are the distinct images in our protocol, rows in the paper's.
      prompts: all prompts, before the protocol selects among them.
      num_prompts: number of prompts used per class.
      scored: the scores as published.
      leak_free: the scores without images known to be in the training data; None if that is unknown
        or no image remains, with the reason in `leak_free_reason`.
      single_prompts: the set's metric with one prompt per class, for each prompt.
    """

    spec: SetSpec
    images: LabelledImages
    bad_images: tuple[BadImage, ...]
    digest: str
    same_bytes: int
    result: ClassificationResult
    prompts: SetPrompts
    num_prompts: tuple[int, ...]
    scored: Scored
    leak_free: Scored | None
    leak_free_reason: str
    single_prompts: tuple[float, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows in the set's files, including duplicates."""
        return int(self.images.counts.sum())

    @property
    def count_problem(self) -> str:
        """The problem with the number of rows; '' if there is none, or the number is unknown."""
        found = self.num_rows + self.images.num_left_out
        if self.spec.num_images in (None, found):
            return ""
        return f"{found:,} rows, expected {self.spec.num_images:,}"

    @property
    def majority(self) -> float:
        """Accuracy of always predicting the most frequent class."""
        counts = np.bincount(self.result.labels)
        return float(counts.max() / counts.sum())


@dataclass(frozen=True)
class SuiteResult:
    """The result of a suite.

    Attributes:
      absent: key -> the files that were not found.
      failed: key -> why it could not be evaluated.
    """

    suite: Suite
    protocol: str
    sets: tuple[SetResult, ...]
    absent: Mapping[str, str]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def unscored(self) -> dict[str, str]:
        """Key -> why it has no scores, of all sets that have none."""
        return {key: f"absent: {files}" for key, files in self.absent.items()} | {
            key: f"failed: {reason}" for key, reason in self.failed.items()
        }

    def means(self, leak_free: bool) -> dict[str, dict[str, Any]]:
        """Means over all sets and per modality.

        {'value', 'over': keys, 'incomplete': those of them with images that do not decode,
        'without': {key: reason}}. Each set counts once with its own metric, as in the published
        averages. Families of findings have a mean, too.
        """
        specs = (*self.suite.sets, *self.suite.not_chosen)
        modalities = dict.fromkeys(spec.modality for spec in specs)
        families = dict.fromkeys(spec.family for spec in specs if spec.family)
        return {
            name: self._mean(leak_free, None if name == "mean" else name)
            for name in ("mean", *modalities, *families)
        }

    def family_means(self) -> dict[str, dict[str, float]]:
        """Family -> score -> mean over its findings, as published; NaN if none is defined."""
        families: dict[str, list[Scored]] = {}
        for r in self.sets:
            if r.spec.family:
                families.setdefault(r.spec.family, []).append(r.scored)
        return {
            family: {
                name: _mean_of_finite([scored.values[name] for scored in scores])
                for name in ("auc", "auprc", "f1")
            }
            for family, scores in families.items()
        }

    def _mean(self, leak_free: bool, part: str | None) -> dict[str, Any]:
        results = {r.spec.key: r for r in self.sets}
        values: dict[str, float] = {}
        without: dict[str, str] = {}
        for spec in self.suite.sets:
            if part not in (None, spec.modality, spec.family):
                continue
            if spec.key in self.unscored:
                without[spec.key] = self.unscored[spec.key]
                continue
            result = results[spec.key]
            scored = result.leak_free if leak_free else result.scored
            value = scored.values[spec.metric] if scored else float("nan")
            if np.isfinite(value):
                values[spec.key] = value
            else:
                without[spec.key] = result.leak_free_reason or f"its {spec.metric} is undefined"
        for spec in self.suite.not_chosen:
            if part in (None, spec.modality, spec.family):
                without[spec.key] = "not among --suite.sets"
        value = float(np.mean(list(values.values()))) if values else float("nan")
        incomplete = [key for key in values if results[key].bad_images]
        return {
            "value": value,
            "over": list(values),
            "incomplete": incomplete,
            "without": without,
        }


def evaluate_suite(
    model: Model,
    suite: Suite,
    root: Path,
    cache: AnyPath,
    *,
    protocol: str = "ours",
    prompts: Mapping[str, SetPrompts] | None = None,
    excluded: Mapping[str, str] | None = None,
    when_done: Callable[[SetResult], None] = lambda result: None,
) -> SuiteResult:
    """Evaluates every set whose files exist. All hosts call it and get the same result.

    A set whose files are invalid, or that fails, is in ``SuiteResult.failed``, and the others are
    evaluated. All lists are read before the first image is embedded.

    Args:
      model: a model with both towers.
      root: the folder of the test sets.
      cache: the folder of cached image embeddings.
      protocol: one of PROTOCOLS.
      prompts: key -> prompts that replace the packaged ones.
      excluded: ids of images that the model was trained on, with reasons.
      when_done: called with the result of every set as soon as it is scored.

    Raises:
      UserError: no set exists; the hosts see different files; every set fails.
    """
    assert protocol in PROTOCOLS
    absent = {s.key: m for s in suite.sets if (m := set_files.missing(s, root))}
    if len(absent) == len(suite.sets):
        raise UserError(
            f"{root} holds none of the sets of {suite.name}; --list says what is looked for"
        )
    as_published = protocol == "paper"
    failures = Failures()
    opened: dict[str, LabelledImages] = {}
    tables: dict[str, FindingTable | UserError] = {}  # of a family
    whole: dict[str, LabelledImages] = {}  # its images
    rows: dict[str, np.ndarray] = {}  # those of them that count for a finding
    for spec in (spec for spec in suite.sets if spec.key not in absent):
        with failures.catching(spec.key):
            if isinstance(spec.layout, FindingsLayout):
                table = _table(spec.layout, root, spec.family, tables)
                rows[spec.key], labels = table.of_finding(spec.finding)
                opened[spec.key] = table.images.select(rows[spec.key], labels)
                whole[spec.family] = table.images
            else:
                opened[spec.key] = set_files.open_set(spec, root, as_published=as_published)
            for note in opened[spec.key].notes:
                process.log(f"{spec.key}: {note}")
    _check_same_on_all_hosts(opened, root)
    specs = [spec for spec in suite.sets if spec.key in opened]
    used = {s.key: (prompts or {}).get(s.key) or set_prompts.packaged(s) for s in specs}
    texts = _encode_texts(model, [given.task for given in used.values()]) if specs else {}
    cache = cache / model.image_tower_digest()[:16] / protocol
    results = []
    embeddings: dict[str, SetEmbeddings | UserError] = {}  # of the last set or family
    for spec in specs:
        with failures.catching(spec.key):
            images, name = opened[spec.key], spec.family or spec.key
            if name not in embeddings:
                embeddings = {name: _embed(model, name, whole.get(name, images), cache, protocol)}
            embedded = embeddings[name]
            if isinstance(embedded, UserError):
                raise embedded
            if spec.family:
                embedded = embedded.select(rows[spec.key])
            results.append(
                _score_set(
                    spec,
                    images,
                    embedded,
                    _bad_images(images, embedded, suite.on_bad_image),
                    used[spec.key],
                    texts,
                    model.logit_scale,
                    as_published=as_published,
                    excluded=excluded,
                )
            )
            when_done(results[-1])
    failed = failures.reasons
    if not results:
        raise CorpusError("; ".join(f"{key}: {reason}" for key, reason in failed.items()))
    return SuiteResult(suite, protocol, tuple(results), absent, dict(failed))


def _table(
    layout: FindingsLayout, root: Path, family: str, tables: dict[str, FindingTable | UserError]
) -> FindingTable:
    """The table of a family, which is read once, also if that fails."""
    if family not in tables:
        path = set_files.find(layout, root)
        assert path is not None, "the set is not absent"
        try:
            tables[family] = finding_tables.open_table(layout, root, path)
        except UserError as error:
            tables[family] = error
    table = tables[family]
    if isinstance(table, UserError):
        raise table
    return table


def _embed(
    model: Model, name: str, images: LabelledImages, cache: AnyPath, protocol: str
) -> SetEmbeddings | UserError:
    """The embeddings of a set or family, or what prevents them: for all its findings alike."""
    try:
        found = image_embeddings.embed(
            model, images, cache / name, as_published=protocol == "paper"
        )
    except UserError as error:
        return error
    before = f", {found.num_cached:,} of them embedded before" if found.num_cached else ""
    process.log(f"{name}: {len(found.vectors):,} images{before}")
    return found


def _check_same_on_all_hosts(opened: Mapping[str, LabelledImages], root: Path) -> None:
    listed = "\n".join(f"{key}\0{i}" for key, images in opened.items() for i in images.ids)
    digest = np.frombuffer(hashlib.sha256(listed.encode()).digest(), np.uint8)
    if len(np.unique(multihost_utils.process_allgather(digest[None], tiled=True), axis=0)) > 1:
        raise UserError(f"the hosts see different files below {root}")


def _encode_texts(model: Model, tasks: Iterable[PromptTask]) -> dict[str, np.ndarray]:
    """Unit vectors of all prompts, each encoded once; many occur in several sets."""
    sentences = list(dict.fromkeys(s for task in tasks for s in task.sentences))
    vectors = model.encode_text(sentences, whole_batches=True)
    return dict(zip(sentences, vectors, strict=True))


def _bad_images(images: LabelledImages, embedded: SetEmbeddings, rule: str) -> tuple[BadImage, ...]:
    bad = tuple(
        BadImage(images.ids[i], images.places[i], reason) for i, reason in embedded.problems.items()
    )
    if bad and (rule == "stop" or len(bad) == len(images.ids)):
        first = f"{bad[0].place}: image {bad[0].id}: {bad[0].reason}"
        raise CorpusError(f"{len(bad)} of {len(images.ids)} images do not decode; first {first}")
    return bad


def _score_set(
    spec: SetSpec,
    images: LabelledImages,
    embedded: SetEmbeddings,
    bad_images: tuple[BadImage, ...],
    given: SetPrompts,
    texts: Mapping[str, np.ndarray],
    logit_scale: float,
    *,
    as_published: bool,
    excluded: Mapping[str, str] | None,
) -> SetResult:
    task = given.task
    prompts = np.stack([texts[sentence] for sentence in task.sentences])
    index = np.array(task.class_index)
    place = np.concatenate([np.arange(len(group)) for group in task.prompts])
    limit = spec.paper_prompts if as_published else None
    used = place < (limit or len(place))
    good = np.setdiff1d(np.arange(len(images.ids)), list(embedded.problems))

    def logits(rows: np.ndarray, of: np.ndarray) -> np.ndarray:
        vectors = classification.class_embeddings(prompts[of], index[of])
        return classification.zero_shot_logits(embedded.vectors[rows], vectors, logit_scale)

    singles = [
        statistics.point_scores(images.labels[good], logits(good, place == j), [spec.metric])[
            spec.metric
        ]
        for j in range(min(map(len, task.prompts)))
    ]
    rows = np.repeat(good, images.counts[good]) if as_published else good
    result = ClassificationResult(
        task=spec.key,
        classes=task.classes,
        ids=tuple(images.ids[i] for i in rows),
        labels=images.labels[rows],
        logits=logits(rows, used),
        num_left_out=sum(images.ignored.values()) + images.num_left_out + len(bad_images),
    )
    groups = [images.groups[i] for i in rows]
    leaked = np.array([name in (excluded or {}) for name in result.ids])
    reason = _no_leak_free(spec, leaked, excluded is not None)
    names = statistics.FINDING_SCORES if spec.family else statistics.SCORES
    scored = _scored(result, groups, np.ones(len(rows), bool), names)
    leak_free = scored
    if leaked.any() and not reason:
        leak_free = _scored(result, groups, ~leaked, names)
    return SetResult(
        spec=spec,
        images=images,
        bad_images=bad_images,
        digest=_digest(images, embedded.digests),
        same_bytes=len(images.ids) - len(np.unique(embedded.digests, axis=0)),
        result=result,
        prompts=given,
        num_prompts=tuple(np.bincount(index[used]).tolist()),
        scored=scored,
        leak_free=None if reason else leak_free,
        leak_free_reason=reason,
        single_prompts=tuple(singles),
    )


def _digest(images: LabelledImages, digests: np.ndarray) -> str:
    combined = hashlib.sha256()
    for name, label, digest in zip(images.ids, images.labels, digests, strict=True):
        combined.update(f"{name}\0{label}\0{digest.tobytes().hex()}\n".encode())
    return combined.hexdigest()


def _no_leak_free(spec: SetSpec, leaked: np.ndarray, has_list: bool) -> str:
    """Why a set has no leak-free score; '' if it has one."""
    if leaked.all():
        return "all of its images are in the training data"
    if spec.leak and not leaked.any():
        if has_list:
            return "overlaps UniMed's training data, and --exclude lists none of its images"
        return "overlaps UniMed's training data; --exclude can say by which images"
    return ""


def _mean_of_finite(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _scored(
    result: ClassificationResult, groups: Sequence[str], keep: np.ndarray, names: Sequence[str]
) -> Scored:
    labels, logits = result.labels[keep], result.logits[keep]
    kept = [group for group, k in zip(groups, keep, strict=True) if k]
    return Scored(
        num_images=len(kept),
        values=statistics.point_scores(labels, logits, names),
        intervals=statistics.intervals(labels, logits, kept, names),
    )
