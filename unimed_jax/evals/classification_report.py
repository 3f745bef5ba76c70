"""Sections of the report on classification results, and their table for the terminal."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unimed_jax.evals import classification
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.reporting import charts, html_report
from unimed_jax.reporting.html_report import Section, image_uri, meter, number, text_table


@dataclass(frozen=True)
class GalleryItem:
    """An image with the classes that the model ranks highest.

    Attributes:
      task: the task it belongs to; the gallery has a row of cards per task.
      id: the sample's id.
      image: (H, W, 3) uint8.
      true_class: name of the class it is labeled with.
      top_classes: (class name, probability), highest first.
    """

    task: str
    id: str
    image: np.ndarray
    true_class: str
    top_classes: tuple[tuple[str, float], ...]


def classification_section(
    results: Sequence[ClassificationResult],
    title: str = "Zero-shot classification",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Section:
    """The scores, one row per task, with balanced accuracy as a bar and chance as a tick.

    Args:
      results: the tasks.
      title: heading.
      intervals: task -> 95 % interval of the balanced accuracy; None: no such column.
    """
    rows = []
    for result in results:
        scores = classification.metrics(result)
        rows.append(
            f'<tr><th scope="row">{html.escape(result.task)}</th>'
            f"<td>{meter(scores['balanced_accuracy'], result.chance)}</td>"
            f"{_interval_cell(intervals, result.task)}"
            f"<td>{number(result.chance)}</td><td>{number(scores['accuracy'])}</td>"
            f"<td>{number(scores['auc'])}</td><td>{len(result.classes)}</td>"
            f"<td>{len(result.ids):,}</td><td>{result.num_left_out:,}</td></tr>"
        )
    if not rows:
        return Section(title, '<p class="empty">No task was evaluated.</p>')
    return Section(
        title,
        '<div class="scroll"><table class="scores"><thead><tr><th>Task</th>'
        f'<th class="wide">Balanced accuracy</th>{"<th>95 %</th>" if intervals else ""}'
        "<th>Chance</th><th>Accuracy</th>"
        "<th>AUC</th><th>Classes</th><th>Images</th><th>Left out</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Balanced accuracy is the mean recall over classes; the tick marks chance, '
        "1 / classes. AUC is the area under the ROC curve, for more than two classes the mean of "
        "one against the rest. Intervals are bootstraps over patients. "
        "Left out: images whose label is none of the task's classes, and "
        "those that cannot be decoded.</p>",
    )


def _interval_cell(intervals: Mapping[str, tuple[float, float]] | None, task: str) -> str:
    if not intervals:
        return ""
    low, high = intervals[task]
    return f"<td>{number(low)} to {number(high)}</td>"


def curves_section(
    results: Sequence[ClassificationResult], title: str = "ROC and reliability"
) -> Section:
    """Per task the ROC curve of every class, and the calibration of its probabilities."""
    figures = []
    for result in results:
        occurring = np.unique(result.labels)
        if len(occurring) < 2:
            continue
        name = html.escape(result.task)
        curves = {}
        for index in occurring if len(result.classes) > 2 else (1,):
            false, true = classification.roc_curve(result, int(index))
            curves[result.classes[index]] = list(zip(false.tolist(), true.tolist(), strict=True))
        roc = charts.line_chart(
            curves, (0.0, 1.0), x_label="false positive rate", y_label="true positive rate",
            x_range=(0.0, 1.0), diagonal=True,
        )  # fmt: skip
        means, shares, _ = classification.calibration(result)
        reliability = charts.line_chart(
            {"predictions": list(zip(means.tolist(), shares.tolist(), strict=True))},
            (0.0, 1.0), x_label="probability of the prediction", y_label="share that is right",
            x_range=(0.0, 1.0), diagonal=True,
        )  # fmt: skip
        error = classification.expected_calibration_error(result)
        figures.append(
            f"<figure><figcaption>{name}: ROC<output>AUC "
            f"{number(classification.macro_auc(result))}</output></figcaption>{roc}"
            f"{html_report.legend(list(curves))}</figure>"
            f"<figure><figcaption>{name}: reliability<output>calibration error {number(error)}"
            f"</output></figcaption>{reliability}</figure>"
        )
    body = "".join(figures) or '<p class="empty">No task has samples of two classes.</p>'
    note = (
        '<p class="note">ROC: a class against the rest. Reliability: predictions in ten bins of '
        "their softmax probability; below the diagonal the model is too sure. Calibration error: "
        "mean distance to the diagonal, weighted by samples.</p>"
    )
    return Section(title, f'<div class="curves">{body}</div>{note}')


def confusion_section(
    results: Sequence[ClassificationResult], title: str = "Confusion matrices"
) -> Section:
    """Counts per true class (row) and predicted class (column); shading is the share of the row."""
    figures = []
    for result in results:
        counts = classification.confusion_matrix(result)
        recall = classification.per_class_recall(result)
        names = [html.escape(name) for name in result.classes]
        head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
        rows = []
        for c, name in enumerate(names):
            total = int(counts[c].sum())
            cells = "".join(
                _confusion_cell(int(count), total, right=c == k)
                for k, count in enumerate(counts[c])
            )
            rows.append(
                f'<tr><th scope="row">{name}</th>{cells}'
                f'<td class="sum">{number(recall[c], 2)}</td><td class="sum">{total:,}</td></tr>'
            )
        figures.append(
            f"<figure><figcaption>{html.escape(result.task)}</figcaption>"
            '<div class="scroll"><table class="confusion"><thead><tr><th>true \\ predicted</th>'
            f"{head}"
            '<th class="sum"><span>recall</span></th><th class="sum"><span>images</span></th></tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table></div></figure>"
        )
    return Section(title, f'<div class="matrices">{"".join(figures)}</div>')


def _confusion_cell(count: int, total: int, right: bool) -> str:
    share = count / total if total else 0.0
    kind = "right" if right else "wrong"
    # From there on the inverted text color has more contrast with the shade, in both themes.
    strong = " strong" if share > 0.8 else ""
    return (
        f'<td class="{kind}{strong}" style="--share:{100 * share:.0f}%" title="{share:.1%} of row">'
        f"{count or '·'}</td>"
    )


def gallery_section(items: Sequence[GalleryItem], title: str = "Examples") -> Section:
    """Images with their top classes as bars, grouped by task, marked right or wrong."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(item.task, []).append(_card(item))
    body = "".join(
        f'<h3>{html.escape(task)}</h3><div class="gallery">{"".join(cards)}</div>'
        for task, cards in groups.items()
    )
    if not body:
        return Section(title, '<p class="empty">No image was kept.</p>')
    note = "Above the bars the true class; bars are softmax probabilities, the true class in bold."
    return Section(title, f'{body}<p class="note">{note}</p>')


def _card(item: GalleryItem) -> str:
    right = bool(item.top_classes) and item.top_classes[0][0] == item.true_class
    bars = "".join(
        f'<li class="{"true" if name == item.true_class else "other"}">'
        f'<span>{html.escape(name)}</span><i style="width:{100 * probability:.1f}%"></i>'
        f"<em>{probability:.0%}</em></li>"
        for name, probability in item.top_classes
    )
    verdict = "✓ right" if right else "✗ wrong"
    return (
        f'<article class="{"hit" if right else "miss"}">'
        f'<img src="{image_uri(item.image)}" alt="{html.escape(item.id)}" loading="lazy">'
        f'<p><b>{html.escape(item.true_class)}</b><span class="verdict">{verdict}</span></p>'
        f'<ol>{bars}</ol><p class="id" title="{html.escape(item.id)}">{html.escape(item.id)}</p>'
        "</article>"
    )


def results_table(results: Sequence[ClassificationResult]) -> str:
    """The scores as plain text for the terminal, one line per task, '-' where undefined."""
    header = ("task", "classes", "images", "left out", "chance", "bal. acc.", "accuracy", "AUC")
    rows: list[tuple[str, ...]] = [header]
    for result in results:
        scores = classification.metrics(result)
        numbers = (result.chance, *(scores[k] for k in ("balanced_accuracy", "accuracy", "auc")))
        counts = (len(result.classes), len(result.ids), result.num_left_out)
        rows.append((result.task, *map(str, counts), *(number(n, dash="-") for n in numbers)))
    return text_table(rows)
