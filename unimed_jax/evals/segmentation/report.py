"""Segmentation scores as metrics, tables and overlays."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unimed_jax.evals.statistics import mean_interval
from unimed_jax.reporting import html_report

_TARGET_COLOUR, _PREDICTION_COLOUR, _BOTH_COLOUR = (60, 200, 90), (230, 70, 60), (250, 220, 70)


@dataclass(frozen=True)
class DomainScores:
    """Scores on one domain; values are per image or volume, NaN where a class is absent.

    Attributes:
      domain: name of the domain; empty if it is the only one.
      groups: patient of each value.
      dice: class -> float64 (N,).
      hd95: class -> float64 (N,).
      unit: unit of hd95, ``px`` or ``mm``.
      distance: name of hd95 among the metrics.
      num_left_out: number of samples that cannot be decoded.
    """

    domain: str
    groups: tuple[str, ...]
    dice: Mapping[str, np.ndarray]
    hd95: Mapping[str, np.ndarray]
    unit: str
    distance: str = "hd95"
    num_left_out: int = 0

    def key(self, name: str, score: str) -> str:
        """``<domain>/<class>/<score>``."""
        return "/".join(filter(None, (self.domain, name, score)))

    def metrics(self) -> dict[str, float]:
        """``<domain>/<class>/dice`` and so on, with the interval; ``mean`` over the classes.

        ``<domain>/num_left_out`` if there are any.
        """
        metrics: dict[str, float] = {}
        if self.num_left_out:
            metrics[self.key("", "num_left_out")] = float(self.num_left_out)
        for score, per_class in (("dice", self.dice), (self.distance, self.hd95)):
            means = []
            for name, values in per_class.items():
                mean, low, high = mean_interval(values, self.groups)
                key = self.key(name, score)
                metrics |= {key: mean, f"{key}_low": low, f"{key}_high": high}
                means.append(mean)
            defined = [mean for mean in means if np.isfinite(mean)]
            metrics[self.key("mean", score)] = float(np.mean(defined)) if defined else np.nan
        return metrics


@dataclass(frozen=True)
class Overlay:
    """An image with the masks of its prediction and its target.

    Attributes:
      title: heading under which overlays are grouped: a domain, or a patient.
      id: of the sample.
      image: uint8 (H, W, 3).
      prediction: bool (H, W, K).
      target: bool (H, W, K).
      dice: float64 (K,).
      classes: names of the K classes.
    """

    title: str
    id: str
    image: np.ndarray
    prediction: np.ndarray
    target: np.ndarray
    dice: np.ndarray
    classes: tuple[str, ...]


_HEADER = ("source → target", "class", "n", "Dice", "95 % interval", "HD95", "95 % interval")


def _rows(scores: Sequence[DomainScores], source: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for domain in scores:
        metrics = domain.metrics()
        for name, values in domain.dice.items():
            dice, hd95 = (domain.key(name, score) for score in ("dice", domain.distance))
            held_out = " (held out)" if domain.domain in ("", source) else ""
            rows.append(
                (
                    f"{source} → {domain.domain or source}{held_out}",
                    name,
                    str(int(np.isfinite(values).sum())),
                    f"{metrics[dice]:.3f}",
                    f"{metrics[f'{dice}_low']:.3f} to {metrics[f'{dice}_high']:.3f}",
                    f"{metrics[hd95]:.1f} {domain.unit}",
                    f"{metrics[f'{hd95}_low']:.1f} to {metrics[f'{hd95}_high']:.1f}",
                )
            )
    return rows


def text_table(scores: Sequence[DomainScores], source: str) -> str:
    """A table for the terminal, one line per domain and class."""
    rows = [_HEADER, *_rows(scores, source)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *_left_out(scores)])


def _left_out(scores: Sequence[DomainScores]) -> list[str]:
    return [
        f"{domain.domain or 'held out'}: {domain.num_left_out} samples that cannot be decoded are "
        "left out"
        for domain in scores
        if domain.num_left_out
    ]


def scores_section(scores: Sequence[DomainScores], source: str) -> html_report.Section:
    """The same table for the report."""
    note = (
        '<p class="note">Means over images or volumes that have the class; intervals are '
        "bootstraps over patients. HD95: the larger directed 95th percentile of the distance "
        "between surfaces; the diagonal of the image where the prediction is empty.</p>"
    )
    left_out = "".join(f'<p class="note">{html.escape(text)}</p>' for text in _left_out(scores))
    return html_report.Section(
        "Segmentation", html_report.table(_HEADER, _rows(scores, source)) + left_out + note
    )


def overlays_section(overlays: Sequence[Overlay]) -> html_report.Section:
    """Images with the outlines of target (green), prediction (red), and both (yellow).

    Below each image stands the Dice of every class.
    """
    groups: dict[str, list[str]] = {}
    for item in overlays:
        scores = (
            f"{name} {'-' if np.isnan(d) else f'{d:.2f}'}"
            for name, d in zip(item.classes, item.dice, strict=True)
        )
        score = html.escape(", ".join(scores))
        groups.setdefault(item.title, []).append(
            f'<article><img src="{html_report.image_uri(outlined(item), 320)}" '
            f'alt="{html.escape(item.id)}" loading="lazy"><p>Dice {score}</p>'
            f'<p class="id" title="{html.escape(item.id)}">{html.escape(item.id)}</p></article>'
        )
    body = "".join(
        f'<h3>{html.escape(title)}</h3><div class="gallery">{"".join(cards)}</div>'
        for title, cards in groups.items()
    )
    note = '<p class="note">Outlines: target green, prediction red, both yellow.</p>'
    return html_report.Section("Overlays", (body or '<p class="empty">No overlays.</p>') + note)


def outlined(item: Overlay) -> np.ndarray:
    """uint8 (H, W, 3): the image with the outlines of all classes."""
    image = item.image.copy()
    target, prediction = (_outline(masks) for masks in (item.target, item.prediction))
    for where, color in (
        (target, _TARGET_COLOUR),
        (prediction, _PREDICTION_COLOUR),
        (target & prediction, _BOTH_COLOUR),
    ):
        image[where] = color
    return image


def _outline(masks: np.ndarray) -> np.ndarray:
    edges = [masks[..., k] & ~ndimage.binary_erosion(masks[..., k]) for k in range(masks.shape[-1])]
    return np.any(edges, axis=0)
