"""results.json, results.csv, clip_benchmark/ and report.html of a suite."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from input_pipeline import images as image_files
from input_pipeline.files import AnyPath, write_text_atomically
from unimed_jax import report, runtime
from unimed_jax.evals import classification, scores
from unimed_jax.evals.suite import CLASS_VECTOR, PROTOCOLS, SCORE, Scored, SetResult, SuiteResult
from unimed_jax.evals.suite_files import Suite
from unimed_jax.version import __version__

_GALLERY_PER_SET, _GALLERY_SIDE = 3, 160
_MAX_MATRIX = 20  # classes; larger confusion matrices are in results.json only
_MODALITIES = {
    "xray": "X-ray",
    "ct": "CT",
    "mri": "MRI",
    "ultrasound": "Ultrasound",
    "fundus": "Fundus",
    "histopathology": "Histopathology",
    "mixed": "Mixed",
    "mean": "Mean",
}


# what CLIP_benchmark writes of a model on a data set
_ENTRY = ("dataset", "model", "pretrained", "task", "language", "metrics")


@dataclass(frozen=True)
class ModelName:
    """A model by CLIP_benchmark's two names, the second as the user gave it."""

    architecture: str
    checkpoint: str


def write_set(directory: AnyPath, result: SetResult, model: ModelName) -> None:
    """Writes clip_benchmark/KEY.json, one set as CLIP_benchmark writes it, and nothing more."""
    entry = _set_json(result, model)
    text = _to_json({key: entry[key] for key in _ENTRY})
    write_text_atomically(_entry_file(directory, result.spec.key), text)


def write(
    directory: AnyPath, found: SuiteResult, model: ModelName, settings: Mapping[str, str]
) -> None:
    """Prints the table and writes the files, beside those of `write_set`.

    Args:
      directory: where they go. Files of other sets, from before, are deleted there.
      found: the results.
      model: its names.
      settings: of the command, shown in the report.
    """
    content = as_json(found, model)
    write_text_atomically(directory / "results.json", _to_json(content))
    write_text_atomically(directory / "results.csv", _csv(content["sets"]))
    evaluated = {r.spec.key for r in found.sets}
    for spec in (*found.suite.sets, *found.suite.not_chosen):
        if spec.key not in evaluated:
            _entry_file(directory, spec.key).unlink(missing_ok=True)
    report.write_report(
        directory / "report.html",
        title=f"{found.suite.title}: {model.checkpoint}",
        sections=_sections(found, settings),
        subtitle=f"Protocol {found.protocol}: {PROTOCOLS[found.protocol]}. It shows pictures of "
        "the sets: their terms apply.",
    )
    runtime.say(table(found))
    runtime.say(f"\nresults: {directory / 'results.json'}\nreport:  {directory / 'report.html'}")


def _entry_file(directory: AnyPath, key: str) -> AnyPath:
    return directory / "clip_benchmark" / f"{key}.json"


def as_json(found: SuiteResult, model: ModelName) -> dict[str, Any]:
    """The results as JSON values: CLIP_benchmark's keys, for the suite and in each of 'sets'."""
    as_published, leak_free = found.means(leak_free=False), found.means(leak_free=True)
    return {
        "dataset": found.suite.name,
        "model": model.architecture,
        "pretrained": model.checkpoint,
        "task": "zeroshot_classification",
        "language": "en",
        "metrics": {
            f"{column}/{name}": mean["value"]
            for column, means in (("as_published", as_published), ("leak_free", leak_free))
            for name, mean in means.items()
        },
        "unimed_jax": __version__,
        "protocol": {
            "name": found.protocol,
            "rule": PROTOCOLS[found.protocol],
            "class_vector": CLASS_VECTOR,
            "score": SCORE,
            "intervals": f"percentile bootstrap over groups, {scores.NUM_RESAMPLES} resamples, "
            f"{scores.LEVEL:.0%}, seed 0",
        },
        "means": {"as_published": as_published, "leak_free": leak_free},
        "absent": dict(found.absent),
        "unexpected_counts": {r.spec.key: r.count_problem for r in found.sets if r.count_problem},
        "bad_images": {
            r.spec.key: [dataclasses.asdict(bad) for bad in r.bad_images]
            for r in found.sets
            if r.bad_images
        },
        "sets": [_set_json(r, model) for r in found.sets],
    }


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
            "from": "--prompts" if r.own_prompts else "packaged",
            "sha256": r.prompts_sha256,
            "used_per_class": list(r.num_prompts),
            "single_prompts": list(r.single_prompts),
            **scores.prompt_spread(r.single_prompts),
        },
        "files": {"read": r.images.source, "sha256": r.digest},
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
    fields = ("acc1", "acc5", "mean_per_class_recall", *scores.SCORES)
    names = tuple(name for name in _ENTRY if name != "metrics")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*fields, *names, "model_fullname"))
    for entry in sets:
        values = [_without_nan(entry["metrics"][name]) for name in fields]
        full = f"{entry['model']} {entry['pretrained']}"
        writer.writerow([*values, *(entry[name] for name in names), full])
    return buffer.getvalue()


def table(found: SuiteResult) -> str:
    """The scores as plain text, in percent, one line per set, absent sets among them."""
    results = {r.spec.key: r for r in found.sets}
    lines = []
    for spec in found.suite.sets:
        if spec.key in found.absent:
            lines.append(f"{spec.key:<20} absent: {found.absent[spec.key]}")
            continue
        r = results[spec.key]
        lines.append(
            f"{spec.key:<20} {spec.metric:<9} {_percent(r.scored, spec.metric):<22} "
            f"n={r.scored.num_images:,}{''.join(f'  ! {text}' for text in _problems(r))}"
        )
    for title, leak_free in (("as published", False), ("leak-free", True)):
        mean = found.means(leak_free)["mean"]
        lines.append(f"mean {title}: {_mean_text(mean)}")
        for word in ("without", "incomplete"):
            if mean[word]:
                lines.append(f"  {word} {', '.join(mean[word])}")
    lines += [f"does not decode: {bad.place}: {bad.id}" for r in found.sets for bad in r.bad_images]
    return "\n".join(lines)


def _problems(r: SetResult) -> list[str]:
    """What is wrong with the images of a set, for people."""
    bad = f"{len(r.bad_images):,} images do not decode" if r.bad_images else ""
    return [text for text in (r.count_problem, bad) if text]


def listing(suite: Suite, missing: Mapping[str, str]) -> str:
    """One line per set: key, modality, metric, what is missing, classes."""
    lines = []
    for spec in suite.sets:
        classes = ", ".join(c.name for c in spec.classes)
        shown = classes if len(classes) < 120 else f"{classes[:117]}..."
        state = f"absent ({missing[spec.key]})" if missing.get(spec.key) else "present"
        lines.append(
            f"{spec.key:<20} {spec.modality:<14} {spec.metric:<8} {state}  "
            f"{len(spec.classes)} classes: {shown}"
        )
    return "\n".join(lines)


def _sections(found: SuiteResult, settings: Mapping[str, str]) -> list[report.Section]:
    published, leak_free = found.means(leak_free=False), found.means(leak_free=True)
    results = [r.result for r in found.sets]
    small = [result for result in results if len(result.classes) <= _MAX_MATRIX]
    return [
        report.summary_section(
            {
                "mean, as published": _mean_text(published["mean"]),
                "mean, leak-free": _mean_text(leak_free["mean"]),
            }
        ),
        report.Section("Sets", _sets_html(found)),
        report.Section("Modalities", _modalities_html(found.suite, published, leak_free)),
        *([_left_out(published, leak_free)] if leak_free["mean"]["without"] else []),
        *([_bad_images(found)] if any(r.bad_images for r in found.sets) else []),
        report.classification_section(results, "Other scores"),
        report.confusion_section(small),
        report.gallery_section(_wrong_answers(found), "Wrong answers"),
        report.config_section(settings, "Settings"),
    ]


def _sets_html(found: SuiteResult) -> str:
    models = list(dict.fromkeys(name for s in found.suite.sets for name in s.published))
    header = [
        "Set",
        "Metric",
        "Score [95 %]",
        "Leak-free",
        "Majority",
        "One prompt: min, median, max",
    ]
    header += ["Images", *models]
    results = {r.spec.key: r for r in found.sets}
    rows = []
    for spec in found.suite.sets:
        printed = [f"{spec.published[m]:.2f}" if m in spec.published else "—" for m in models]
        if spec.key in found.absent:
            rows.append([spec.key, spec.metric, "absent", "—", "—", "—", "—", *printed])
            continue
        r = results[spec.key]
        spread = scores.prompt_spread(r.single_prompts)
        count = f"{r.scored.num_images:,}"
        rows.append(
            [
                spec.key,
                spec.metric,
                _percent(r.scored, spec.metric),
                _percent(r.leak_free, spec.metric) if r.leak_free else "—",
                f"{100 * r.majority:.1f}",
                ", ".join(f"{100 * value:.1f}" for value in spread.values()),
                f"{count} ({'; '.join(problems)})" if (problems := _problems(r)) else count,
                *printed,
            ]
        )
    note = "Percent. Published scores were made with the paper's prompts: they are not comparable."
    return report.table(header, rows, compact=True) + f'<p class="note">{note}</p>'


def _modalities_html(suite: Suite, published: Mapping, leak_free: Mapping) -> str:
    header = ["", *(_MODALITIES[name] for name in published)]
    rows = [
        [title, *map(_mean_text, means.values())]
        for title, means in (("as published", published), ("leak-free", leak_free))
    ]
    for model, printed in suite.published.items():
        rows.append([model, *(f"{printed[n]:.2f}" if n in printed else "—" for n in published)])
    return report.table(header, rows, compact=True)


def _left_out(published: Mapping, leak_free: Mapping) -> report.Section:
    rows = [
        [column, key, reason]
        for column, means in (("as published", published), ("leak-free", leak_free))
        for key, reason in means["mean"]["without"].items()
    ]
    return report.Section("Left out of the means", report.table(["Mean", "Set", "Reason"], rows))


def _bad_images(found: SuiteResult) -> report.Section:
    rows = [[r.spec.key, bad.id, bad.place, bad.reason] for r in found.sets for bad in r.bad_images]
    note = "They are in no score, and their sets count as incomplete."
    return report.Section(
        "Images that do not decode",
        report.table(["Set", "Image", "Listed in", "Reason"], rows, compact=True)
        + f'<p class="note">{note}</p>',
    )


def _mean_text(mean: Mapping[str, Any]) -> str:
    """'61.6', or '61.6 (3 of 4 sets, 1 incomplete)': a mean over fewer sets or images says so."""
    if not mean["over"]:
        return "—"
    total = len(mean["over"]) + len(mean["without"])
    notes = [f"{len(mean['over'])} of {total} sets"] if mean["without"] else []
    notes += [f"{len(mean['incomplete'])} incomplete"] if mean["incomplete"] else []
    return f"{100 * mean['value']:.2f}" + (f" ({', '.join(notes)})" if notes else "")


def _percent(scored: Scored, metric: str) -> str:
    if math.isnan(scored.values[metric]):
        return "undefined"
    low, high = scored.intervals[metric]
    return f"{100 * scored.values[metric]:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def _wrong_answers(found: SuiteResult) -> list[report.GalleryItem]:
    """The first images of each set that are classified wrongly."""
    items = []
    for r in found.sets:
        result = r.result
        wrong = np.flatnonzero(result.predictions != result.labels)
        place = {result.ids[i]: i for i in reversed(wrong)}
        wanted = {r.images.ids.index(result.ids[i]) for i in wrong[:_GALLERY_PER_SET]}
        probabilities = classification.probabilities(result)
        for number in sorted(wanted):
            data = next(iter(r.images.read(number, number + 1)))
            image = image_files.decode(data)[0].convert("RGB")
            image.thumbnail((_GALLERY_SIDE, _GALLERY_SIDE))
            index = place[r.images.ids[number]]
            order = np.argsort(-probabilities[index], kind="stable")[:3]
            items.append(
                report.GalleryItem(
                    task=r.spec.key,
                    id=result.ids[index],
                    image=np.asarray(image),
                    true_class=result.classes[result.labels[index]],
                    top_classes=tuple(
                        (result.classes[c], float(probabilities[index, c])) for c in order
                    ),
                )
            )
    return items


def _to_json(value: Any) -> str:
    return json.dumps(_without_nan(value), indent=1, ensure_ascii=False) + "\n"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
