"""Reports: one self-contained HTML file, readable in light and dark mode.

A report is a title and a list of sections. Tasks and evaluators make the sections; a ``Section``
holds finished HTML, so escape foreign text. Charts are inline SVG and matrices are tables: numbers
can be selected, searched and enlarged. Images are embedded PNGs.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.io.files import PathLike, write_text_atomically
from unimed_jax.reporting import charts


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading; ``html`` is inserted unescaped."""

    title: str
    html: str


@dataclass(frozen=True)
class Chart:
    """One chart of metrics over steps.

    Attributes:
      title: caption of the chart.
      keys: name of a metric; ``*`` matches any text ("loss", "zero_shot/*/balanced_accuracy"). Each
        match becomes a line, named by the text that ``*`` matches.
      y_range: limits of the y axis; None fits a limit to the data.
    """

    title: str
    keys: str
    y_range: tuple[float | None, float | None] = (None, None)


def write_report(
    path: PathLike, title: str, sections: Sequence[Section], subtitle: str = ""
) -> None:
    """Writes the sections, with a table of contents, to one HTML file.

    Equal arguments give equal bytes. The file is replaced atomically.

    Raises:
      UserError: the file cannot be written.
    """
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{html.escape(title)}</title><style>{charts.style_sheet()}</style></head><body><header>",
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


def summary_section(figures: Mapping[str, str], title: str = "At a glance") -> Section:
    """Key numbers: name -> formatted value ("0.953", "4 min 12 s")."""
    if not figures:
        return Section(title, '<p class="empty">No scores.</p>')
    tiles = (
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in figures.items()
    )
    return Section(title, f'<dl class="figures">{"".join(tiles)}</dl>')


def facts_section(facts: Mapping[str, str], title: str = "What was measured") -> Section:
    """A list of names and texts of any length."""
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return Section(title, f'<dl class="facts">{rows}</dl>')


def curves_section(
    history: Sequence[Mapping[str, Any]],
    plots: Sequence[Chart],
    title: str = "Training",
) -> Section:
    """Charts of the rows of metrics.jsonl; a chart without data is left out."""
    figures = []
    for plot in plots:
        series = _series(history, plot.keys)
        if not series:
            continue
        if all(len(points) == 1 for points in series.values()):
            figures.append(_single_values(plot.title, series))
            continue
        # a single line is labelled with its last value
        last = next(iter(series.values()))[-1][1]
        value = f"<output>{last:.4g}</output>" if len(series) == 1 else ""
        chart = charts.line_chart(series, plot.y_range, y_label=plot.title)
        figures.append(
            f"<figure><figcaption>{html.escape(plot.title)}{value}</figcaption>"
            f"{chart}{legend(list(series))}</figure>"
        )
    body = "".join(figures) or '<p class="empty">Nothing was logged.</p>'
    return Section(title, f'<div class="curves">{body}</div>')


def _single_values(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A chart with one point per line is a list of numbers."""
    step = next(iter(series.values()))[0][0]
    rows = [(name, f"{points[0][1]:.4g}") for name, points in series.items()]
    caption = f"{html.escape(title)}<output>step {step:g}</output>"
    return f"<figure><figcaption>{caption}</figcaption>{table(('', ''), rows)}</figure>"


def legend(names: Sequence[str]) -> str:
    """HTML legend of a chart; empty for a single line."""
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


def meter(value: float, chance: float) -> str:
    """HTML of a number in [0, 1] with a bar, on which a tick marks chance level."""
    width = 0.0 if math.isnan(value) else 100 * value
    return (
        f'<div class="balanced"><b>{number(value)}</b>'
        f'<div class="meter"><i style="width:{width:.1f}%"></i>'
        f'<u style="left:{100 * chance:.1f}%"></u></div></div>'
    )


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """HTML bars, the longest as wide as the page: name, number >= 0, and the number as text."""
    largest = max((value for _, value, _ in rows), default=0.0) or 1.0
    body = "".join(
        f'<span title="{html.escape(name)}">{html.escape(name)}</span>'
        f'<i style="width:{100 * value / largest:.1f}%"></i><em>{html.escape(text)}</em>'
        for name, value, text in rows
    )
    return f'<div class="bars">{body}</div>'


def image_uri(image: np.ndarray, max_side: int = 256, lossless: bool = True) -> str:
    """A data: URI of a uint8 (H, W, 3) image, scaled down to at most ``max_side`` pixels.

    PNG if ``lossless``; JPEG takes a sixth of the bytes, for pages with many images.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"need a uint8 image (H, W, 3), got {image.dtype} {image.shape}")
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    thumbnail.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    compact: bool = False,
    bold: Collection[tuple[int, int]] = (),
) -> str:
    """HTML table of strings; the first column holds row headings.

    Args:
      header: texts of the header, as many as columns.
      rows: texts of the cells.
      compact: for many columns.
      bold: (row, column) of the emphasised cells, counted from 0, the headings included.
    """

    def cell(row: int, column: int, text: str) -> str:
        content = html.escape(text)
        return f"<td><b>{content}</b></td>" if (row, column) in bold else f"<td>{content}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        f"{''.join(cell(number, column, row[column]) for column in range(1, len(row)))}</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table class="scores{" compact" if compact else ""}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def config_section(config: Mapping[str, Any], title: str = "Configuration") -> Section:
    """The resolved config, collapsed."""
    text = html.escape(json.dumps(config, indent=2, default=str))
    return Section(title, f"<details><summary>All keys</summary><pre>{text}</pre></details>")


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table: header, rule, rows; the first column is left-aligned."""
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


def number(value: float, decimals: int = 3, dash: str = "—") -> str:
    """A number as a string; a dash for NaN."""
    return dash if math.isnan(value) else f"{value:.{decimals}f}"
