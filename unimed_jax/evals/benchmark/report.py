"""Human-readable results of a suite: the table on the terminal, report.html."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipeline.io import images as image_files
from input_pipeline.io.files import AnyPath
from unimed_jax.distributed import process
from unimed_jax.evals import classification, classification_report, statistics
from unimed_jax.evals.benchmark import results as suite_results
from unimed_jax.evals.benchmark.results import ModelName
from unimed_jax.evals.benchmark.run import PROTOCOLS, Scored, SetResult, SuiteResult
from unimed_jax.evals.benchmark.spec import ACCESS, MODALITIES, Suite
from unimed_jax.reporting import charts, html_report

_GALLERY_PER_SET, _GALLERY_SIDE = 3, 160
_MAX_MATRIX = 20  # classes; larger confusion matrices are in results.json only
_COLUMNS = {**MODALITIES, "mean": "Mean"}


def write(
    directory: AnyPath, suite_result: SuiteResult, model: ModelName, settings: Mapping[str, str]
) -> None:
    """Prints the table and writes the files, beside those of `suite_results.write_set`.

    Args:
      directory: the output directory.
      suite_result: the results.
      model: the names of the model.
      settings: settings of the command, shown in the report.
    """
    suite_results.write(directory, suite_result, model)
    html_report.write_report(
        directory / "report.html",
        title=f"{suite_result.suite.title}: {model.checkpoint}",
        sections=_sections(suite_result, settings),
        subtitle=f"Protocol {suite_result.protocol}: {PROTOCOLS[suite_result.protocol]}. It shows "
        "images of the sets: their terms apply.",
    )
    process.log(table(suite_result))
    process.log(f"\nresults: {directory / 'results.json'}\nreport:  {directory / 'report.html'}")


def table(suite_result: SuiteResult) -> str:
    """The scores as plain text, in percent, one line per set, including absent sets."""
    results = {r.spec.key: r for r in suite_result.sets}
    lines = []
    width = max(20, *(len(spec.key) for spec in suite_result.suite.sets))
    for spec in suite_result.suite.sets:
        if spec.key in suite_result.unscored:
            lines.append(f"{spec.key:<{width}} {suite_result.unscored[spec.key]}")
            continue
        r = results[spec.key]
        more = [f"{m} {_percent(r.scored, m)}" for m in ("auprc", "f1") if spec.family]
        lines.append(
            f"{spec.key:<{width}} {spec.metric:<9} {_percent(r.scored, spec.metric):<22} "
            f"{''.join(f'{text:<29}' for text in more)}"
            f"n={r.scored.num_images:,}{''.join(f'  ! {text}' for text in _problems(r))}"
        )
    for family, means in suite_result.family_means().items():
        values = ", ".join(f"{name} {100 * value:.2f}" for name, value in means.items())
        lines.append(f"mean over the findings of {family}: {values}")
    for title, leak_free in (("as published", False), ("leak-free", True)):
        mean = suite_result.means(leak_free)["mean"]
        lines.append(f"mean {title}: {_mean_text(mean)}")
        for word in ("without", "incomplete"):
            if mean[word]:
                lines.append(f"  {word} {', '.join(mean[word])}")
    lines += [
        f"does not decode: {bad.place}: {bad.id}" for r in suite_result.sets for bad in r.bad_images
    ]
    return "\n".join(lines)


def _problems(r: SetResult) -> list[str]:
    """The problems with the files of a set, as text."""
    bad = f"{len(r.bad_images):,} images do not decode" if r.bad_images else ""
    by_order = "classes of --prompts taken in our order" if r.prompts.by_order else ""
    return [text for text in (r.count_problem, bad, *r.images.notes, by_order) if text]


def listing(suite: Suite, missing: Mapping[str, str]) -> str:
    """One line per set: key, modality, metric, what is missing, classes."""
    lines = []
    width = max(20, *(len(spec.key) for spec in suite.sets))
    for spec in suite.sets:
        classes = ", ".join(c.name for c in spec.classes)
        shown = classes if len(classes) < 120 else f"{classes[:117]}..."
        state = f"absent ({missing[spec.key]})" if missing.get(spec.key) else "present"
        lines.append(
            f"{spec.key:<{width}} {spec.modality:<14} {spec.metric:<8} {state}  "
            f"{len(spec.classes)} classes: {shown}"
        )
    return "\n".join(lines)


def sources(suite: Suite, missing: Mapping[str, str], root: str) -> str:
    """Some lines per set: whether it is there, where to get it, and how to lay it out.

    Args:
      suite: the suite.
      missing: key -> the files that are missing; '' for none.
      root: the data root, as steps should name it.
    """
    blocks = []
    once = {spec.family or spec.key: spec for spec in suite.sets}
    for name, spec in once.items():
        source = spec.source
        read = " or ".join(f"{root}/{path}" for path in spec.layout.path)
        if spec.tfds:
            read += f", or {spec.tfds.dataset} as TFDS prepares it in {root}"
        title = spec.title.partition(":")[0] if spec.family else spec.title
        lines = [
            f"{name}: {title}, {'absent' if missing.get(spec.key) else 'present'}",
            f"  from     {source.url} ({ACCESS[source.access]})",
            f"  licence  {source.licence}",
            f"  read as  {read}",
        ]
        lines += [f"  {i}. {step.replace('SETS', root)}" for i, step in enumerate(source.steps, 1)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _sections(suite_result: SuiteResult, settings: Mapping[str, str]) -> list[html_report.Section]:
    published, leak_free = suite_result.means(leak_free=False), suite_result.means(leak_free=True)
    results = [r.result for r in suite_result.sets]
    small = [
        r.result
        for r in suite_result.sets
        if not r.spec.family and len(r.result.classes) <= _MAX_MATRIX
    ]
    return [
        html_report.summary_section(
            {
                "mean, as published": _mean_text(published["mean"]),
                "mean, leak-free": _mean_text(leak_free["mean"]),
            }
        ),
        html_report.Section("Sets", _sets_html(suite_result)),
        html_report.Section(
            "Modalities", _modalities_html(suite_result.suite, published, leak_free)
        ),
        html_report.Section("Plot", _plot(suite_result)),
        *([_left_out(published, leak_free)] if leak_free["mean"]["without"] else []),
        *([_bad_images(suite_result)] if any(r.bad_images for r in suite_result.sets) else []),
        *([_findings(suite_result)] if suite_result.family_means() else []),
        classification_report.classification_section(results, "Other scores"),
        *([classification_report.confusion_section(small)] if small else []),
        classification_report.gallery_section(
            _wrong_predictions(suite_result), "Wrong predictions"
        ),
        html_report.config_section(settings, "Settings"),
    ]


def _sets_html(suite_result: SuiteResult) -> str:
    models = list(dict.fromkeys(name for s in suite_result.suite.sets for name in s.published))
    header = [
        "Set",
        "Metric",
        "Score [95 %]",
        "Leak-free",
        "Majority",
        "One prompt: min, median, max",
    ]
    header += ["Images", *models]
    results = {r.spec.key: r for r in suite_result.sets}
    rows = []
    for spec in suite_result.suite.sets:
        printed = [f"{spec.published[m]:.2f}" if m in spec.published else "—" for m in models]
        if spec.key in suite_result.unscored:
            why = suite_result.unscored[spec.key].partition(":")[0]
            rows.append([spec.key, spec.metric, why, "—", "—", "—", "—", *printed])
            continue
        r = results[spec.key]
        spread = statistics.prompt_spread(r.single_prompts)
        count = f"{r.scored.num_images:,}"
        if r.count_problem and r.scored.num_images == r.num_rows:
            count = ""  # the number is in the problem
        rows.append(
            [
                spec.key,
                spec.metric,
                _percent(r.scored, spec.metric),
                _leak_free(r),
                f"{100 * r.majority:.1f}",
                ", ".join(f"{100 * value:.1f}" for value in spread.values()),
                "; ".join(filter(None, (count, *_problems(r)))),
                *printed,
            ]
        )
    note = "Percent. Published scores were made with the paper's prompts: they are not comparable."
    return html_report.table(header, rows, compact=True) + f'<p class="note">{note}</p>'


def _leak_free(r: SetResult) -> str:
    """The score without known training images; with an interval if it differs from the score."""
    if not r.leak_free:
        return "—"
    if r.leak_free.num_images < r.scored.num_images:
        return _percent(r.leak_free, r.spec.metric)
    return f"{100 * r.leak_free.values[r.spec.metric]:.2f}"


def _plot(suite_result: SuiteResult) -> str:
    """Scores with their intervals, scores without known training images, and published scores."""

    def point(scored: Scored, metric: str) -> tuple[float, float, float]:
        return (scored.values[metric], *scored.intervals[metric])

    series: dict[str, list[tuple[float, float, float] | None]] = {
        "as published": [point(r.scored, r.spec.metric) for r in suite_result.sets]
    }
    leak_free = [
        r.leak_free if r.leak_free and r.leak_free.num_images < r.scored.num_images else None
        for r in suite_result.sets
    ]
    if any(leak_free):
        series["leak-free"] = [
            point(scored, r.spec.metric) if scored else None
            for r, scored in zip(suite_result.sets, leak_free, strict=True)
        ]
    for model in dict.fromkeys(name for r in suite_result.sets for name in r.spec.published):
        values = [r.spec.published.get(model, math.nan) / 100 for r in suite_result.sets]
        series[model] = [(value, value, value) for value in values]
    names = [f"{r.spec.key} ({r.spec.metric})" for r in suite_result.sets]
    note = "Percent; bars are 95 % intervals. Published scores were made with other prompts."
    return (
        charts.interval_chart(names, series)
        + html_report.legend(list(series))
        + f'<p class="note">{note}</p>'
    )


def _modalities_html(suite: Suite, published: Mapping, leak_free: Mapping) -> str:
    header = ["", *(_COLUMNS.get(name, name) for name in published)]
    rows = [
        [title, *map(_mean_text, means.values())]
        for title, means in (("as published", published), ("leak-free", leak_free))
    ]
    for model, printed in suite.published.items():
        rows.append([model, *(f"{printed[n]:.2f}" if n in printed else "—" for n in published)])
    return html_report.table(header, rows, compact=True)


def _left_out(published: Mapping, leak_free: Mapping) -> html_report.Section:
    rows = [
        [column, key, reason]
        for column, means in (("as published", published), ("leak-free", leak_free))
        for key, reason in means["mean"]["without"].items()
    ]
    return html_report.Section(
        "Left out of the means", html_report.table(["Mean", "Set", "Reason"], rows)
    )


def _findings(suite_result: SuiteResult) -> html_report.Section:
    """AUROC, AUPRC and F1 of each finding, and their means over a family."""
    scores = {"auc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
    rows = []
    for family, means in suite_result.family_means().items():
        found = [r for r in suite_result.sets if r.spec.family == family]
        for r in found:
            name = r.spec.title.partition(": ")[2]
            present = f"{int((r.result.labels == 1).sum()):,} of {r.scored.num_images:,}"
            left_out = f"{r.images.num_left_out:,}" if r.images.num_left_out else ""
            values = (_percent(r.scored, score) for score in scores)
            rows.append([family, name, *values, present, left_out])
        values = (f"{100 * means[score]:.2f}" for score in scores)
        rows.append([family, f"mean of {len(found)}", *values, "", ""])
    note = (
        "Percent [95 %]. F1 where the prompts of presence are nearer than those of absence. AUPRC "
        "of chance is the share of images with the finding."
    )
    header = ["Set", "Finding", *scores.values(), "Present", "Left out"]
    return html_report.Section(
        "Findings",
        html_report.table(header, rows, compact=True) + f'<p class="note">{note}</p>',
    )


def _bad_images(suite_result: SuiteResult) -> html_report.Section:
    rows = [
        [r.spec.key, bad.id, bad.place, bad.reason]
        for r in suite_result.sets
        for bad in r.bad_images
    ]
    note = "They are in no score, and their sets count as incomplete."
    return html_report.Section(
        "Images that do not decode",
        html_report.table(["Set", "Image", "Listed in", "Reason"], rows, compact=True)
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


def _wrong_predictions(suite_result: SuiteResult) -> list[classification_report.GalleryItem]:
    """The first images of each set that are classified wrongly."""
    items = []
    for r in suite_result.sets:
        if r.spec.family:
            continue
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
                classification_report.GalleryItem(
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
