"""Figures for notebooks, drawn with matplotlib (extra `notebooks`).

Each function returns a figure that pyplot has closed, so that a notebook shows it once, as the
value of a cell. Reports use ``charts.py``, which does not need matplotlib.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

_ACCENT, _WRONG, _SOFT, _OTHERS = "#0b6a72", "#b4451d", "#9aa5a9", "sDv^P"
_DARK = 0.6  # fraction of the color range above which text is white


def predictions(
    images: Sequence[Image.Image],
    titles: Sequence[str],
    classes: Sequence[str],
    probabilities: np.ndarray,
    targets: Sequence[int] | None = None,
    *,
    columns: int = 3,
) -> Figure:
    """Images, each with a bar per class below it.

    Args:
      images: N images; the figure is empty for N = 0.
      titles: N titles.
      classes: C class names.
      probabilities: (N, C).
      targets: N class indices; if given, the color of the most probable class says whether it is
        correct, and the target is in bold.
      columns: images per row.
    """
    rows = max(1, math.ceil(len(images) / columns))
    size = (3.2 * columns, rows * (2.8 + 0.24 * len(classes)))
    figure, axes = plt.subplots(
        2 * rows,
        columns,
        figsize=size,
        squeeze=False,
        layout="constrained",
        height_ratios=[2.8, 0.24 * len(classes)] * rows,
    )
    for axis in axes.flat:
        axis.axis("off")
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        top, below = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        top.imshow(image, cmap="gray")
        top.set_title(title, fontsize=9)
        below.axis("on")
        best = int(probabilities[i].argmax())
        correct = targets is None or best == targets[i]
        colours = [_SOFT] * len(classes)
        colours[best] = _ACCENT if correct else _WRONG
        bars = below.barh(range(len(classes)), probabilities[i], color=colours)
        below.bar_label(bars, [f"{p:.0%}" for p in probabilities[i]], padding=2, fontsize=8)
        below.set(xlim=(0, 1.25), xticks=[])
        below.set_yticks(range(len(classes)), classes, fontsize=8)
        below.invert_yaxis()
        below.spines[["top", "right", "bottom"]].set_visible(False)
        if targets is not None:
            below.get_yticklabels()[targets[i]].set_fontweight("bold")
    return _closed(figure)


def matrix(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    number_format: str = "{:.2f}",
    shade: np.ndarray | None = None,
) -> Figure:
    """A matrix of numbers on shades of one color.

    Args:
      values: (R, C).
      rows, columns: R and C names.
      number_format: format of the numbers.
      shade: (R, C) values of the colors, if not ``values``, such as the row-normalized confusion
        matrix.
    """
    shade = np.asarray(values if shade is None else shade, float)
    size = (2.5 + 0.55 * len(columns), 1.2 + 0.36 * len(rows))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    image = axis.imshow(shade, cmap="GnBu", aspect="auto")
    for (row, column), value in np.ndenumerate(np.asarray(values)):
        dark = np.asarray(image.norm(shade[row, column]), float) > _DARK
        axis.text(
            column,
            row,
            number_format.format(value),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return _closed(figure)


def intervals(
    names: Sequence[str],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    label: str,
    others: Mapping[str, Sequence[float]],
) -> Figure:
    """Scores with confidence intervals, one per row, beside those of other models.

    Args:
      names: N row names.
      values, low, high: N scores and the limits of their intervals.
      label: name of the model.
      others: model -> N scores; NaN for missing ones.
    """
    value, lower, upper = (np.asarray(x, float) for x in (values, low, high))
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.42 * len(names)), layout="constrained")
    places = np.arange(len(names))
    errors = np.stack([value - lower, upper - value])
    axis.errorbar(value, places, xerr=errors, fmt="o", color=_ACCENT, capsize=3, label=label)
    for marker, (name, scores) in zip(_OTHERS * len(others), others.items(), strict=False):
        axis.plot(
            np.asarray(scores, float), places, marker, mfc="none", mec=_WRONG, ms=6, label=name
        )
    axis.set_yticks(places, names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    return _closed(figure)


def _closed(figure: Figure) -> Figure:
    plt.close(figure)
    return figure
