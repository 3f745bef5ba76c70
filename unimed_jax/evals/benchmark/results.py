"""Machine-readable results of a suite: results.json, results.csv, clip_benchmark/."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from input_pipeline.io.files import AnyPath, write_text_atomically
from unimed_jax.evals import classification, statistics
from unimed_jax.evals.benchmark.run import (
    CLASS_VECTOR,
    PROTOCOLS,
    SCORE,
    Scored,
    SetResult,
    SuiteResult,
)
from unimed_jax.version import __version__

# the metrics of CLIP_benchmark for a model on a data set
_ENTRY = ("dataset", "model", "pretrained", "task", "language", "metrics")


@dataclass(frozen=True)
class ModelName:
    """The two names of a model in CLIP_benchmark, the second as given by the user."""

    architecture: str
    checkpoint: str


def write_set(directory: AnyPath, result: SetResult, model: ModelName) -> None:
    """Writes clip_benchmark/KEY.json, one set in the format of CLIP_benchmark."""
    entry = _set_json(result, model)
    text = _to_json({key: entry[key] for key in _ENTRY})
    write_text_atomically(_entry_file(directory, result.spec.key), text)


def write(directory: AnyPath, suite_result: SuiteResult, model: ModelName) -> None:
    """Writes results.json and results.csv; deletes files of `write_set` for other sets."""
    content = as_json(suite_result, model)
    write_text_atomically(directory / "results.json", _to_json(content))
    write_text_atomically(directory / "results.csv", _csv(content["sets"]))
    evaluated = {r.spec.key for r in suite_result.sets}
    for spec in (*suite_result.suite.sets, *suite_result.suite.not_chosen):
        if spec.key not in evaluated:
            _entry_file(directory, spec.key).unlink(missing_ok=True)


def _entry_file(directory: AnyPath, key: str) -> AnyPath:
    return directory / "clip_benchmark" / f"{key}.json"


def as_json(suite_result: SuiteResult, model: ModelName) -> dict[str, Any]:
    """The results as JSON values: CLIP_benchmark's keys, for the suite and in each of 'sets'."""
    as_published, leak_free = (
        suite_result.means(leak_free=False),
        suite_result.means(leak_free=True),
    )
    return {
        "dataset": suite_result.suite.name,
        "model": model.architecture,
        "pretrained": model.checkpoint,
        "task": "zeroshot_classification",
        "language": "en",
        "metrics": {
            f"{column}/{name}{_fewer(mean)}": mean["value"]
            for column, means in (("as_published", as_published), ("leak_free", leak_free))
            for name, mean in means.items()
        },
        "unimed_jax": __version__,
        "protocol": {
            "name": suite_result.protocol,
            "rule": PROTOCOLS[suite_result.protocol],
            "class_vector": CLASS_VECTOR,
            "score": SCORE,
            "intervals": f"percentile bootstrap over groups, {statistics.NUM_RESAMPLES} resamples, "
            f"{statistics.LEVEL:.0%}, seed 0",
        },
        "means": {"as_published": as_published, "leak_free": leak_free},
        "families": suite_result.family_means(),
        "absent": dict(suite_result.absent),
        "failed": dict(suite_result.failed),
        "unexpected_counts": {
            r.spec.key: r.count_problem for r in suite_result.sets if r.count_problem
        },
        "bad_images": {
            r.spec.key: [dataclasses.asdict(bad) for bad in r.bad_images]
            for r in suite_result.sets
            if r.bad_images
        },
        "sets": [_set_json(r, model) for r in suite_result.sets],
    }


def _fewer(mean: Mapping[str, Any]) -> str:
    """'_over_3_of_4_sets' for the name of a mean that is not over all of its sets."""
    total = len(mean["over"]) + len(mean["without"])
    return f"_over_{len(mean['over'])}_of_{total}_sets" if mean["without"] else ""


def _set_json(r: SetResult, model: ModelName) -> dict[str, Any]:
    values = r.scored.values
    metrics = {
        "acc1": values["accuracy"],
        "mean_per_class_recall": values["balanced_accuracy"],
        **values,
    }
    top5 = np.argsort(-r.result.logits, axis=1, kind="stable")[:, :5]
    right5 = (top5 == r.result.labels[:, None]).any(1)
    metrics["acc5"] = float(right5.mean()) if len(r.result.classes) >= 5 else float("nan")
    by_modality = _by_modality(r)
    return {
        "dataset": r.spec.key,
        "model": model.architecture,
        "pretrained": model.checkpoint,
        "task": "zeroshot_classification",
        "language": "en",
        "metrics": metrics,
        "metric": r.spec.metric,
        "modality": r.spec.modality,
        "classes": list(r.result.classes),
        "as_published": _scored_json(r.scored),
        "leak_free": _scored_json(r.leak_free) if r.leak_free else r.leak_free_reason,
        "known_overlap": r.spec.leak,
        **({"accuracy_by_modality": by_modality} if by_modality else {}),
        "chance": 0.5 if r.spec.metric == "auc" else r.result.chance,
        "majority_accuracy": r.majority,
        "num_rows": r.num_rows,
        "expected_rows": r.spec.num_images,
        "duplicate_rows": r.num_rows - len(r.images.ids),
        "ignored_rows": dict(r.images.ignored),
        "bad_images": len(r.bad_images),
        "images_with_the_bytes_of_another": r.same_bytes,
        "class_counts": np.bincount(r.result.labels, minlength=len(r.result.classes)).tolist(),
        "confusion_matrix": classification.confusion_matrix(r.result).tolist(),
        "prompts": {
            "from": r.prompts.origin,
            "sha256": r.prompts.sha256,
            "classes_by_order": list(r.prompts.by_order),
            "used_per_class": list(r.num_prompts),
            "single_prompts": list(r.single_prompts),
            **statistics.prompt_spread(r.single_prompts),
        },
        "files": {
            "read": r.images.source,
            "sha256": r.digest,
            "rows_left_out": r.images.num_left_out,
            "notes": list(r.images.notes),
        },
        "published": dict(r.spec.published),
    }


def _scored_json(scored: Scored) -> dict[str, Any]:
    return {
        "num_images": scored.num_images,
        **{
            name: {"value": value, "interval": list(scored.intervals[name])}
            for name, value in scored.values.items()
        },
    }


def _by_modality(r: SetResult) -> dict[str, float]:
    """Accuracy of the images of each modality, where the classes of a set differ in theirs."""
    of_class = np.array([c.modality for c in r.spec.classes])
    right = r.result.predictions == r.result.labels
    return {
        str(name): float(right[of_class[r.result.labels] == name].mean())
        for name in np.unique(of_class[r.result.labels])
        if name
    }


def _csv(sets: list[dict[str, Any]]) -> str:
    """A line per set, with the columns that `clip_benchmark build` makes of such entries."""
    scores: tuple[str, ...] = statistics.SCORES
    if any("auprc" in entry["metrics"] for entry in sets):
        scores = statistics.FINDING_SCORES
    fields = ("acc1", "acc5", "mean_per_class_recall", *scores)
    names = tuple(name for name in _ENTRY if name != "metrics")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*fields, *names, "model_fullname"))
    for entry in sets:
        values = [_without_nan(entry["metrics"].get(name)) for name in fields]
        full = f"{entry['model']} {entry['pretrained']}"
        writer.writerow([*values, *(entry[name] for name in names), full])
    return buffer.getvalue()


def _to_json(value: Any) -> str:
    return json.dumps(_without_nan(value), indent=1, ensure_ascii=False) + "\n"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
