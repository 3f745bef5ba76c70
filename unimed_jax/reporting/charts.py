"""Line charts and histograms as inline SVG: sharp at any size, with the colors of the page.

Below every chart is a link that saves it as an SVG file of its own.
"""

import base64
import functools
import html
import importlib.resources
import math
import re
from collections.abc import Callable, Mapping, Sequence

Point = tuple[float, float]

_WIDTH, _HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 10, 10, 42
NUM_COLOURS = 8
_MAX_POINTS = 400  # one per pixel of the plot


def line_chart(
    series: Mapping[str, Sequence[Point]],
    y_range: tuple[float | None, float | None] = (None, None),
    *,
    x_label: str = "step",
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> str:
    """One SVG element with a line per series over a common x axis.

    Args:
      series: name -> (x, y) points, x ascending; non-finite points make gaps.
      y_range: limits of the y axis; None fits a limit to the data.
      x_label, y_label: titles of the axes.
      x_range: limits of the x axis; None: those of the data.
      diagonal: draw the line y = x.

    Returns:
      SVG markup; line i has the CSS class `line-(i mod 8)`. Long series are averaged over equal
      runs of points; series of at most 30 points also get markers with their value as tooltip.
    """
    thinned = {name: _thin(points) for name, points in series.items()}
    finite = [p for points in thinned.values() for p in points if math.isfinite(p[1])]
    if not finite:
        return '<p class="empty">no finite values</p>'
    x_low, x_high = x_range or (min(p[0] for p in finite), max(p[0] for p in finite))
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    x_ticks = [x for x in ticks(x_low, x_high, 5) if x_low <= x <= x_high]
    y_ticks = _y_ticks([p[1] for p in finite], y_range)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_of(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        share = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [*_frame(y_ticks, y_of), *_titles(x_label, y_label), *_x_labels(x_ticks, x_of)]
    if diagonal:
        ends = [(x_of(v), y_of(v)) for v in (x_low, x_high)]
        parts.append('<line class="reference" ')
        parts.append(" ".join(f'x{k}="{x:.1f}" y{k}="{y:.1f}"' for k, (x, y) in enumerate(ends, 1)))
        parts.append("/>")
    for i, (name, points) in enumerate(thinned.items()):
        colour = f"line-{i % NUM_COLOURS}"
        path, pen = [], "M"
        for x, y in points:
            if math.isfinite(y):
                path.append(f"{pen}{x_of(x):.1f} {y_of(y):.1f}")
            pen = "L" if math.isfinite(y) else "M"
        parts.append(f'<path class="{colour}" d="{"".join(path)}"/>')
        for x, y in points if len(points) <= 30 else ():
            if math.isfinite(y):
                tip = html.escape(f"{name}, {x_label} {x:.4g}: {y:.4g}")
                parts.append(f'<circle class="{colour}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}"')
                parts.append(f' r="2.5"><title>{tip}</title></circle>')
    return _finished(parts)


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    marker: float | None = None,
    *,
    x_label: str = "",
    y_label: str = "",
) -> str:
    """One SVG element with a bar per bin.

    Args:
      edges: bin edges, ascending, one more than counts.
      counts: number of items per bin.
      marker: x position of a vertical line.
      x_label, y_label: titles of the axes.
    """
    x_ticks = [x for x in ticks(edges[0], edges[-1], 6) if edges[0] <= x <= edges[-1]]
    y_ticks = ticks(0, max(*counts, 1), 4)

    def x_of(x: float) -> float:
        share = (x - edges[0]) / (edges[-1] - edges[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / y_ticks[-1] * (_HEIGHT - _TOP - _BOTTOM)

    parts = [*_frame(y_ticks, y_of), *_titles(x_label, y_label), *_x_labels(x_ticks, x_of)]
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        begin, end, top = x_of(left), x_of(right), y_of(count)
        parts.append(
            f'<rect class="line-0" x="{begin:.1f}" y="{top:.1f}" '
            f'width="{max(end - begin - 1, 0.5):.1f}" height="{y_of(0) - top:.1f}">'
            f"<title>{left:g} to {right:g}: {count:,}</title></rect>"
        )
    if marker is not None:
        at = f"{x_of(marker):.1f}"
        parts.append(
            f'<line class="marker" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
    return _finished(parts)


def interval_chart(
    rows: Sequence[str], series: Mapping[str, Sequence[tuple[float, float, float] | None]]
) -> str:
    """One SVG element with a row per name; each series has a dot with an interval on it.

    Args:
      rows: names, from top to bottom.
      series: name -> (value, low, high) of each row, all between 0 and 1 and shown in percent;
        None or a value that is not finite leaves the place empty.

    Returns:
      SVG markup; series i has the CSS class `line-(i mod 8)`.
    """
    left, width, lane = 200, 2 * _WIDTH, 9  # pixels; a lane per series
    pitch = lane * len(series) + 10
    bottom = _TOP + pitch * len(rows)

    def x_of(x: float) -> float:
        return left + min(max(x, 0.0), 1.0) * (width - left - _RIGHT - 10)

    parts = [f'<svg viewBox="0 0 {width} {bottom + _BOTTOM}" role="img" class="chart">']
    for percent in range(0, 101, 10):
        at = f"{x_of(percent / 100):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{percent}</text>')
    for number, row in enumerate(rows):
        top = _TOP + pitch * number
        parts.append(f'<text x="{left - 10}" y="{top + pitch / 2:.1f}" dy="0.32em" ')
        parts.append(f'text-anchor="end">{html.escape(row)}</text>')
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - _RIGHT}" y1="{top}" y2="{top}"/>'
        )
        for i, (name, points) in enumerate(series.items()):
            point = points[number]
            if point is None or not math.isfinite(point[0]):
                continue
            value, low, high = point
            y = f"{top + 5 + lane * (i + 0.5):.1f}"
            colour = f"line-{i % NUM_COLOURS}"
            tip = f"{name}, {row}: {100 * value:.2f}"
            if low < high:
                tip += f" [{100 * low:.1f}, {100 * high:.1f}]"
                parts.append(
                    f'<path class="{colour}" d="M{x_of(low):.1f} {y}L{x_of(high):.1f} {y}"/>'
                )
            parts.append(f'<circle class="{colour}" cx="{x_of(value):.1f}" cy="{y}" r="3.2">')
            parts.append(f"<title>{html.escape(tip)}</title></circle>")
    return _finished(parts)


def spread_chart(
    labels: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float] | None]],
    *,
    x_label: str = "",
    y_label: str = "",
) -> str:
    """One SVG element with a line per series over named positions, and error bars.

    Args:
      labels: names of the positions, from left to right.
      series: name -> (mean, standard deviation) at each place, of numbers between 0 and 1; None or
        a mean that is not finite is a gap.
      x_label, y_label: titles of the axes.
    """
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(labels), 1)
    shift = min(6.0, 0.6 * step / max(len(series), 1))  # so that error bars do not overlap

    def y_of(y: float) -> float:
        return _HEIGHT - _BOTTOM - min(max(y, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [*_frame(ticks(0, 1, 5), y_of), *_titles(x_label, y_label)]
    for place, label in enumerate(labels):
        x = _LEFT + (place + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 24}" text-anchor="middle">')
        parts.append(f"{html.escape(label)}</text>")
    for i, (name, points) in enumerate(series.items()):
        colour = f"line-{i % NUM_COLOURS}"
        path, pen, marks = [], "M", []
        for place, point in enumerate(points):
            if point is None or not math.isfinite(point[0]):
                pen = "M"
                continue
            mean, deviation = point
            x = _LEFT + (place + 0.5) * step + (i - (len(series) - 1) / 2) * shift
            path.append(f"{pen}{x:.1f} {y_of(mean):.1f}")
            pen = "L"
            bar = f"M{x:.1f} {y_of(mean - deviation):.1f}V{y_of(mean + deviation):.1f}"
            tip = html.escape(f"{name}, {labels[place]}: {mean:.3f} ± {deviation:.3f}")
            marks.append(f'<path class="{colour}" d="{bar}"/>' if deviation else "")
            marks.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y_of(mean):.1f}" r="3">')
            marks.append(f"<title>{tip}</title></circle>")
        parts.append(f'<path class="{colour}" d="{"".join(path)}"/>' if path else "")
        parts += marks
    return _finished(parts)


def _frame(y_ticks: Sequence[float], y_of: Callable[[float], float]) -> list[str]:
    """The opening tag, with grid lines and labels of the y axis."""
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="chart">']
    for y in y_ticks:
        at = f"{y_of(y):.1f}"
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'
            f'<text x="{_LEFT - 7}" y="{at}" dy="0.32em" text-anchor="end">'
            f"{_label(y, y_ticks)}</text>"
        )
    return parts


def _x_labels(x_ticks: Sequence[float], x_of: Callable[[float], float]) -> list[str]:
    place = f'y="{_HEIGHT - 24}" text-anchor="middle"'
    return [f'<text x="{x_of(x):.1f}" {place}>{_label(x, x_ticks)}</text>' for x in x_ticks]


def _titles(x_label: str, y_label: str) -> list[str]:
    """Titles of the axes: below, and turned on the left."""
    x, y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    below = f'<text class="title" x="{x:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">'
    left = (
        f'<text class="title" transform="translate(12 {y:.0f}) rotate(-90)" text-anchor="middle">'
    )
    return [
        *([f"{below}{html.escape(x_label)}</text>"] if x_label else []),
        *([f"{left}{html.escape(y_label)}</text>"] if y_label else []),
    ]


@functools.cache
def style_sheet() -> str:
    """The style sheet of the reports, which the charts need."""
    file = importlib.resources.files("unimed_jax.reporting") / "report.css"
    return file.read_text(encoding="utf-8")


@functools.cache
def _standalone_style() -> str:
    """The rules of charts alone, with the light colours instead of the variables of the page."""
    css = style_sheet()
    colours = dict(re.findall(r"--([\w-]+):(#\w+)", css.partition("@media")[0]))
    rules = re.findall(r"^(\.(?:chart|line-)[^{]*\{[^}]*\})", css, re.M)
    lines = {f"line-{i}": colours[f"c{i}"] for i in range(NUM_COLOURS)}
    text = "\n".join(rule for rule in rules if not rule.startswith(".line-"))
    # the colour of a line is set below
    text = re.sub(r"var\(--(\w+)\)", lambda m: colours.get(m[1], "#000"), text)
    numbered = "\n".join(
        f".chart path.{name}{{stroke:{c}}} .chart circle.{name},.chart rect.{name}{{fill:{c}}}"
        for name, c in lines.items()
    )
    return f"{text}\n{numbered}\n.chart{{font-family:system-ui,sans-serif;background:#fff}}"


def _finished(parts: Sequence[str]) -> str:
    """The chart, and a link to the same chart as a file."""
    svg = "".join([*parts, "</svg>"])
    file = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    file = file.replace(">", f"><style>{_standalone_style()}</style>", 1)
    uri = f"data:image/svg+xml;base64,{base64.b64encode(file.encode()).decode()}"
    link = f'<a class="save" download="chart.svg" href="{uri}">save as SVG</a>'
    return f'<div class="plot">{svg}{link}</div>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers that span [low, high], 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _y_ticks(values: Sequence[float], y_range: tuple[float | None, float | None]) -> list[float]:
    low = min(values) if y_range[0] is None else y_range[0]
    high = max(values) if y_range[1] is None else y_range[1]
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant: centre it
        margin = 0.1 * abs(low) or 1.0
        low, high = low - margin, high + margin
    return ticks(low, high, 5)


def _label(value: float, all_ticks: Sequence[float]) -> str:
    """A tick label with as many decimals as the spacing needs; 12k or 3e-4 if shorter."""
    step = all_ticks[1] - all_ticks[0] if len(all_ticks) > 1 else abs(value) or 1.0
    if abs(value) < step * 1e-6:
        return "0"
    if step < 1e-3 or abs(value) >= 1e7:
        mantissa, exponent = f"{value:.3g}", 0
        if abs(value) < 1e-2 or abs(value) >= 1e7:
            exponent = math.floor(math.log10(abs(value)))
            mantissa = f"{value / 10.0**exponent:.3g}"
        return f"{mantissa}e{exponent}" if exponent else mantissa
    if step >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    """At most _MAX_POINTS points: means over equally long runs."""
    run = math.ceil(len(points) / _MAX_POINTS)
    if run <= 1:
        return points
    runs = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]
