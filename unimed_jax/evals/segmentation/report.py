"""Segmentation scores as metrics, tables and pictures."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unimed_jax.evals.segmentation.scores import mean_interval
from unimed_jax.reporting import html_report

_TRUTH, _FOUND, _BOTH = (60, 200, 90), (230, 70, 60), (250, 220, 70)


@dataclass(frozen=True)
class TargetScores:
    """Scores on one domain; values are per image or volume, NaN where a class is absent.

    Attributes:
      target: its name; empty if there is one alone.
      groups: patient of each value.
      dice, hd95: class -> float64 (N,).
      unit: of hd95, ``px`` or ``mm``.
      distance: name of hd95 among the metrics.
    """

    target: str
    groups: tuple[str, ...]
    dice: Mapping[str, np.ndarray]
    hd95: Mapping[str, np.ndarray]
    unit: str
    distance: str = "hd95"

    def key(self, name: str, score: str) -> str:
        """``<target>/<class>/<score>``."""
        return "/".join(filter(None, (self.target, name, score)))

    def metrics(self) -> dict[str, float]:
        """``<target>/<class>/dice`` and so on, with the interval; ``mean`` over the classes."""
        found = {}
        for score, per_class in (("dice", self.dice), (self.distance, self.hd95)):
            means = []
            for name, values in per_class.items():
                mean, low, high = mean_interval(values, self.groups)
                key = self.key(name, score)
                found |= {key: mean, f"{key}_low": low, f"{key}_high": high}
                means.append(mean)
            defined = [mean for mean in means if np.isfinite(mean)]
            found[self.key("mean", score)] = float(np.mean(defined)) if defined else np.nan
        return found


@dataclass(frozen=True)
class Overlay:
    """An image with what was found and what is true, bool (H, W, K), and Dice per class."""

    target: str
    id: str
    image: np.ndarray
    found: np.ndarray
    truth: np.ndarray
    dice: np.ndarray


_HEADER = ("source → target", "class", "n", "Dice", "95 % interval", "HD95", "95 % interval")


def _rows(scores: Sequence[TargetScores], source: str) -> list[tuple[str, ...]]:
    rows = []
    for target in scores:
        metrics = target.metrics()
        for name, values in target.dice.items():
            dice, hd95 = (target.key(name, score) for score in ("dice", target.distance))
            held_out = " (held out)" if target.target in ("", source) else ""
            rows.append(
                (
                    f"{source} → {target.target or source}{held_out}",
                    name,
                    str(int(np.isfinite(values).sum())),
                    f"{metrics[dice]:.3f}",
                    f"{metrics[f'{dice}_low']:.3f} to {metrics[f'{dice}_high']:.3f}",
                    f"{metrics[hd95]:.1f} {target.unit}",
                    f"{metrics[f'{hd95}_low']:.1f} to {metrics[f'{hd95}_high']:.1f}",
                )
            )
    return rows


def text_table(scores: Sequence[TargetScores], source: str) -> str:
    """For the terminal, one line per target and class."""
    rows = [_HEADER, *_rows(scores, source)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def scores_section(scores: Sequence[TargetScores], source: str) -> html_report.Section:
    """The same table for the report."""
    note = (
        '<p class="note">Means over images or volumes that have the class; intervals are '
        "bootstraps over patients. HD95: the larger directed 95th percentile of the distance "
        "between surfaces; the diagonal of the image where nothing was found.</p>"
    )
    return html_report.Section(
        "Segmentation", html_report.table(_HEADER, _rows(scores, source)) + note
    )


def overlays_section(overlays: Sequence[Overlay]) -> html_report.Section:
    """Images with the outlines of what is true (green), found (red), and both (yellow)."""
    groups: dict[str, list[str]] = {}
    for item in overlays:
        score = ", ".join("-" if np.isnan(d) else f"{d:.2f}" for d in item.dice)
        groups.setdefault(item.target, []).append(
            f'<article><img src="{html_report.image_uri(outlined(item), 320)}" '
            f'alt="{html.escape(item.id)}" loading="lazy"><p>Dice {score}</p>'
            f'<p class="id" title="{html.escape(item.id)}">{html.escape(item.id)}</p></article>'
        )
    body = "".join(
        f'<h3>{html.escape(target)}</h3><div class="gallery">{"".join(cards)}</div>'
        for target, cards in groups.items()
    )
    note = '<p class="note">Outlines: the truth green, what was found red, both yellow.</p>'
    return html_report.Section(
        "Overlays", (body or '<p class="empty">No image was kept.</p>') + note
    )


def outlined(item: Overlay) -> np.ndarray:
    """uint8 (H, W, 3): the image with the outlines of all classes."""
    image = item.image.copy()
    truth, found = (_outline(regions) for regions in (item.truth, item.found))
    for where, colour in ((truth, _TRUTH), (found, _FOUND), (truth & found, _BOTH)):
        image[where] = colour
    return image


def _outline(regions: np.ndarray) -> np.ndarray:
    edges = [
        regions[..., k] & ~ndimage.binary_erosion(regions[..., k]) for k in range(regions.shape[-1])
    ]
    return np.any(edges, axis=0)
