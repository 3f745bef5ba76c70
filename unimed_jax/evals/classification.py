"""Zero-shot classification: class embeddings from prompt ensembles, logits and scores.

Everything runs on the host in NumPy: the arrays are small, and a float64 product gives the same
logits on every platform (a TPU multiplies in bfloat16 by default).

Shape letters: N images, C classes, P prompts in total, E joint embedding dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from input_pipeline.io.errors import UserError

Array = np.ndarray


@dataclass(frozen=True)
class ClassificationResult:
    """Logits and labels of one classification task.

    Attributes:
      task: name of the task, e.g. 'modality'.
      classes: the C candidate classes, in the order of the columns of ``logits``.
      ids: the N sample ids.
      labels: (N,) integer index of the true class.
      logits: (N, C) float, logit_scale * cosine similarity.
      num_left_out: number of samples that are not scored: without exactly one label among
        ``classes``, or with an image that cannot be decoded.
      groups: patient of each sample, for intervals; empty: every sample is one of its own.

    Raises:
      UserError: a logit is not finite; the message names the first such sample.
      ValueError: the shapes do not match, or a label is not a class index.
    """

    task: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Array
    logits: Array
    num_left_out: int = 0
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        num_samples, num_classes = len(self.ids), len(self.classes)
        if self.labels.shape != (num_samples,) or self.logits.shape != (num_samples, num_classes):
            raise ValueError(
                f"task {self.task!r}: {num_samples} ids and {num_classes} classes need labels of "
                f"shape ({num_samples},) and logits of shape ({num_samples}, {num_classes}), got "
                f"{self.labels.shape} and {self.logits.shape}"
            )
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(f"task {self.task!r}: labels are {self.labels.dtype}, not integers")
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if outside.size:
            first = outside[0]
            raise ValueError(
                f"task {self.task!r}: sample {self.ids[first]!r} has label {self.labels[first]}, "
                f"but the {num_classes} classes are numbered from 0"
            )
        broken = np.flatnonzero(~np.isfinite(self.logits).all(axis=1))
        if broken.size:
            raise UserError(
                f"task {self.task!r}: the logits of {broken.size} of {num_samples} samples are not "
                f"finite, first {self.ids[broken[0]]!r}; the parameters have diverged or an image "
                "embedding is zero"
            )

    @property
    def predictions(self) -> Array:
        """(N,) index of the class with the largest logit; ties go to the first class."""
        return np.argmax(self.logits, axis=1)

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing: 1 / C, counting classes without samples."""
        return 1.0 / len(self.classes)


def class_embeddings(prompt_embeddings: Array, class_index: Sequence[int] | Array) -> Array:
    """Prompt ensembling (Radford et al. 2021, section 3.1.4): one unit vector per class.

        w_c = normalize( mean_{p in c} normalize(t_p) )

    Args:
      prompt_embeddings: (P, E) text embeddings of any norm.
      class_index: (P,) class of each prompt; each of 0..C-1 must occur.

    Returns:
      (C, E) float32 with rows of norm 1.

    Raises:
      UserError: an embedding is not finite, or the norm of a vector is zero.
      ValueError: the shapes do not match, or a class has no prompt.
    """
    prompts = np.asarray(prompt_embeddings, np.float64)
    index = np.asarray(class_index)
    if prompts.ndim != 2 or index.shape != prompts.shape[:1] or not len(index):
        raise ValueError(
            "need prompt embeddings (P, E) and P class indices with P > 0, got shapes "
            f"{prompts.shape} and {index.shape}"
        )
    counts = np.bincount(index)
    if not counts.all():
        raise ValueError(f"class {int(np.argmin(counts))} has no prompt")
    sums = np.zeros((len(counts), prompts.shape[1]))
    np.add.at(sums, index, _normalize(prompts, "the embedding of prompt"))
    return _normalize(sums / counts[:, None], "the mean embedding of class").astype(np.float32)


def _normalize(vectors: Array, what: str) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    broken = np.flatnonzero(~(np.isfinite(norms) & (norms > 0))[:, 0])
    if broken.size:
        problem = "zero" if norms[broken[0], 0] == 0 else "not finite"
        raise UserError(f"{what} {broken[0]} is {problem}; have the parameters diverged?")
    return vectors / norms


def zero_shot_logits(image_embeddings: Array, class_embeddings: Array, logit_scale: float) -> Array:
    """logit_scale * cosine(image, class).

    Args:
      image_embeddings: (N, E) of any norm.
      class_embeddings: (C, E) with rows of norm 1, from ``class_embeddings``.
      logit_scale: the factor itself, exp of the learned parameter. It changes probabilities, but
        not accuracy or binary AUC.

    Returns:
      (N, C) float32. An image embedding that is zero or not finite gives a row of NaN, which
      ``ClassificationResult`` reports with the id of the sample.
    """
    images = np.asarray(image_embeddings, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        images = images / np.linalg.norm(images, axis=1, keepdims=True)
        logits = logit_scale * images @ np.asarray(class_embeddings, np.float64).T
    return logits.astype(np.float32)


def probabilities(result: ClassificationResult) -> Array:
    """(N, C) float64 softmax of the logits over the classes."""
    logits = result.logits.astype(np.float64)
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))


def confusion_matrix(result: ClassificationResult) -> Array:
    """(C, C) integer counts; rows are true classes, columns predicted classes."""
    counts = np.zeros((len(result.classes),) * 2, np.int64)
    np.add.at(counts, (result.labels, result.predictions), 1)
    return counts


def per_class_recall(result: ClassificationResult) -> Array:
    """(C,) recall of each class; NaN for a class without samples."""
    counts = confusion_matrix(result)
    with np.errstate(invalid="ignore"):
        return np.diagonal(counts) / counts.sum(axis=1)


def one_vs_rest_scores(logits: Array) -> Array:
    """(N, C) float64: log-odds of the softmax probability of each class.

        log p_c / (1 - p_c) = z_c - logsumexp_{k != c} z_k

    It ranks the samples exactly as p_c does, but does not saturate where p_c rounds to 1. With two
    classes, the score of class 1 is z_1 - z_0.
    """
    logits = logits.astype(np.float64)
    others = [logsumexp(np.delete(logits, c, axis=1), axis=1) for c in range(logits.shape[1])]
    return logits - np.stack(others, axis=1)


def macro_auc(result: ClassificationResult) -> float:
    """Mean one-versus-rest ROC AUC over the classes with both positives and negatives.

    It uses ``one_vs_rest_scores``; with two classes it is the usual binary AUC. NaN if there is no
    such class (no samples, one candidate class, or one class in the labels).
    """
    from sklearn.metrics import roc_auc_score  # takes a second to import

    occurring = np.unique(result.labels)
    if len(occurring) < 2:
        return float("nan")
    scores = one_vs_rest_scores(result.logits)
    areas = [roc_auc_score(result.labels == c, scores[:, c]) for c in occurring]
    return float(np.mean(areas))


def metrics(result: ClassificationResult) -> dict[str, float]:
    """Scores of a task; undefined scores (no samples; AUC with one class) are NaN.

    Returns:
      accuracy: share of correct predictions.
      balanced_accuracy: mean recall over the classes that occur in the labels. Other classes remain
        candidates: predicting them lowers recall, but they have none themselves.
      auc: see ``macro_auc``.
      num_samples: N, without samples that are left out.
    """
    if not result.ids:
        nan = float("nan")
        return {"accuracy": nan, "balanced_accuracy": nan, "auc": nan, "num_samples": 0.0}
    return {
        "accuracy": float(np.mean(result.labels == result.predictions)),
        "balanced_accuracy": float(np.nanmean(per_class_recall(result))),
        "auc": macro_auc(result),
        "num_samples": float(len(result.ids)),
    }


def roc_curve(result: ClassificationResult, index: int) -> tuple[Array, Array]:
    """False and true positive rates of a class against the others, float64 each, from 0 to 1."""
    from sklearn.metrics import roc_curve

    scores = one_vs_rest_scores(result.logits)[:, index]
    false, true, _ = roc_curve(result.labels == index, scores)
    return false, true


def calibration(result: ClassificationResult, num_bins: int = 10) -> tuple[Array, Array, Array]:
    """Predictions grouped by their probability (Guo et al. 2017, arXiv 1706.04599).

    Returns:
      For each of the bins of equal width that is not empty: mean probability of the predicted
      class, share of correct predictions, number of samples.
    """
    confidence = probabilities(result).max(axis=1)
    right = result.predictions == result.labels
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    used = counts > 0
    means = np.bincount(bins, confidence, num_bins)[used] / counts[used]
    shares = np.bincount(bins, right, num_bins)[used] / counts[used]
    return means, shares, counts[used]


def expected_calibration_error(result: ClassificationResult) -> float:
    """Mean distance of probability and share of correct predictions, weighted by the samples."""
    means, shares, counts = calibration(result)
    return float((np.abs(means - shares) * counts).sum() / counts.sum())
