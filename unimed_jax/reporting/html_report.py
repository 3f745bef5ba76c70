"""The report of a run: one HTML file without outside parts, readable in light and dark.

A report is a title and a list of sections; a task picks the sections that suit it and may add its
own (`Section` holds finished HTML: escape what is not yours). Charts are inline SVG and matrices
are tables, so that numbers can be selected, searched and enlarged; images are embedded PNGs.
"""

import base64
import html
import importlib.resources
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.io.files import PathLike, write_text_atomically
from unimed_jax.evals import classification
from unimed_jax.evals.classification import ClassificationResult
from unimed_jax.reporting import charts


@dataclass(frozen=True)
class Section:
    """A headed part of the report. `html` is inserted as it is."""

    title: str
    html: str


@dataclass(frozen=True)
class Chart:
    """One chart of metrics over steps.

    `keys` names a metric, '*' standing for any text ('loss', 'zero_shot/*/balanced_accuracy'); each
    metric that matches becomes a line, named by what the '*' stands for.
    """

    title: str
    keys: str
    y_range: tuple[float | None, float | None] = (None, None)


TRAINING_CHARTS = (
    Chart("Loss", "loss"),
    Chart("Balanced accuracy", "zero_shot/*/balanced_accuracy", (0.0, 1.0)),
    Chart("Dice", "segmentation/*/dice", (0.0, 1.0)),
    Chart("Segmentation loss", "segmentation_*"),
    Chart("Alignment with text", "alignment_*"),
    Chart("Learning rate", "learning_rate", (0.0, None)),
    Chart("Gradient norm", "grad_norm", (0.0, None)),
    Chart("Logit scale", "logit_scale"),
    Chart("Images per second", "images_per_sec", (0.0, None)),
)


@dataclass(frozen=True)
class GalleryItem:
    """An image with the classes that the model ranks highest.

    Attributes:
      task: the task it belongs to; the gallery has a row of cards per task.
      id: the sample's id.
      image: (H, W, 3) uint8.
      true_class: name of the class it is labelled with.
      top_classes: (class name, probability), highest first.
    """

    task: str
    id: str
    image: np.ndarray
    true_class: str
    top_classes: tuple[tuple[str, float], ...]


def write_report(
    path: PathLike, title: str, sections: Sequence[Section], subtitle: str = ""
) -> None:
    """Writes the sections, in order and with a table of contents, to one HTML file.

    The same arguments give the same bytes. The file is replaced atomically.

    Raises:
      UserError: the file cannot be written.
    """
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{html.escape(title)}</title><style>{_css()}</style></head><body><header>",
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="subtitle">{html.escape(subtitle)}</p>' if subtitle else "",
        "<nav>",
        *(f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections)),
        "</nav></header><main>",
    ]
    for i, section in enumerate(sections):
        parts.append(f'<section id="s{i}"><h2>{html.escape(section.title)}</h2>')
        parts.append(f"{section.html}</section>")
    write_text_atomically(path, "\n".join([*parts, "</main></body></html>\n"]))


def _css() -> str:
    return (importlib.resources.files("unimed_jax.reporting") / "report.css").read_text(
        encoding="utf-8"
    )


def summary_section(figures: Mapping[str, str], title: str = "At a glance") -> Section:
    """Key figures, name -> value as it is to be read ('0.953', '4 min 12 s')."""
    tiles = (
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in figures.items()
    )
    return Section(title, f'<dl class="figures">{"".join(tiles)}</dl>')


def curves_section(
    history: Sequence[Mapping[str, Any]],
    plots: Sequence[Chart] = TRAINING_CHARTS,
    title: str = "Training",
) -> Section:
    """Metrics over steps, from the rows of metrics.jsonl; a chart without data is left out."""
    figures = []
    for plot in plots:
        series = _series(history, plot.keys)
        if not series:
            continue
        # The last value saves the reader from measuring the end of a single line.
        last = next(iter(series.values()))[-1][1]
        value = f"<output>{last:.4g}</output>" if len(series) == 1 else ""
        figures.append(
            f"<figure><figcaption>{html.escape(plot.title)}{value}</figcaption>"
            f"{charts.line_chart(series, plot.y_range)}{legend(list(series))}</figure>"
        )
    body = "".join(figures) or '<p class="empty">Nothing was logged.</p>'
    return Section(title, f'<div class="curves">{body}</div>')


def legend(names: Sequence[str]) -> str:
    """HTML of the colours of a chart's lines; empty for a single line."""
    entries = "".join(
        f'<span><i class="line-{i % charts.NUM_COLOURS}"></i>{html.escape(name)}</span>'
        for i, name in enumerate(names)
    )
    return f'<div class="legend">{entries}</div>' if len(names) > 1 else ""


def _series(
    history: Sequence[Mapping[str, Any]], pattern: str
) -> dict[str, list[tuple[float, float]]]:
    expression = re.compile("(.*)".join(map(re.escape, pattern.split("*"))))
    series: dict[str, list[tuple[float, float]]] = {}
    for row in history:
        for key, value in row.items():
            if match := expression.fullmatch(key):
                name = " / ".join(match.groups()) or key
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    return series


def classification_section(
    results: Sequence[ClassificationResult], title: str = "Zero-shot classification"
) -> Section:
    """The scores, one row per task, with balanced accuracy as a bar and chance as a tick."""
    rows = []
    for result in results:
        scores = classification.metrics(result)
        rows.append(
            f'<tr><th scope="row">{html.escape(result.task)}</th>'
            f"<td>{meter(scores['balanced_accuracy'], result.chance)}</td>"
            f"<td>{_number(result.chance)}</td><td>{_number(scores['accuracy'])}</td>"
            f"<td>{_number(scores['auc'])}</td><td>{len(result.classes)}</td>"
            f"<td>{len(result.ids):,}</td><td>{result.num_left_out:,}</td></tr>"
        )
    if not rows:
        return Section(title, '<p class="empty">No task was evaluated.</p>')
    return Section(
        title,
        '<div class="scroll"><table class="scores"><thead><tr><th>Task</th>'
        '<th class="wide">Balanced accuracy</th><th>Chance</th><th>Accuracy</th>'
        "<th>AUC</th><th>Classes</th><th>Images</th><th>Left out</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Balanced accuracy is the mean recall over classes; the tick marks chance, '
        "1 / classes. AUC is the area under the ROC curve, for more than two classes the mean of "
        "one against the rest. Left out: images whose label is none of the task's classes.</p>",
    )


def meter(value: float, chance: float) -> str:
    """HTML of a number between 0 and 1 with a bar, on which a tick marks chance."""
    width = 0.0 if math.isnan(value) else 100 * value
    return (
        f'<div class="balanced"><b>{_number(value)}</b>'
        f'<div class="meter"><i style="width:{width:.1f}%"></i>'
        f'<u style="left:{100 * chance:.1f}%"></u></div></div>'
    )


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
                f'<td class="sum">{_number(recall[c], 2)}</td><td class="sum">{total:,}</td></tr>'
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
    # From there on the inverted text colour has more contrast with the shade, in both themes.
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


def image_uri(image: np.ndarray, max_side: int = 256, lossless: bool = True) -> str:
    """A data: URI of the (H, W, 3) uint8 image, scaled down to at most `max_side` pixels.

    PNG, or, for pages of many pictures, JPEG in a sixth of the bytes.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"need a uint8 image (H, W, 3), got {image.dtype} {image.shape}")
    picture = Image.fromarray(image)
    picture.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    picture.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], compact: bool = False) -> str:
    """HTML of a table of texts, the first column naming the row; `compact` for many columns."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="scores{" compact" if compact else ""}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def config_section(config: Mapping[str, Any], title: str = "Configuration") -> Section:
    """The resolved config, folded."""
    text = html.escape(json.dumps(config, indent=2, default=str))
    return Section(title, f"<details><summary>All keys</summary><pre>{text}</pre></details>")


def results_table(results: Sequence[ClassificationResult]) -> str:
    """The scores as plain text for the terminal, one line per task, '-' where undefined."""
    header = ("task", "classes", "images", "left out", "chance", "bal. acc.", "accuracy", "AUC")
    rows = [header]
    for result in results:
        scores = classification.metrics(result)
        numbers = (result.chance, *(scores[k] for k in ("balanced_accuracy", "accuracy", "auc")))
        counts = (len(result.classes), len(result.ids), result.num_left_out)
        rows.append((result.task, *map(str, counts), *(_number(n, dash="-") for n in numbers)))
    return text_table(rows)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned plain text: a header, a line, the other rows; the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(v.rjust(w) for v, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(value: float, decimals: int = 3, dash: str = "—") -> str:
    return dash if math.isnan(value) else f"{value:.{decimals}f}"
