"""A few SVG shapes for the diagrams: cards, boxes, arrows and text on a light background.

The background is part of each picture, so that it looks the same on light and dark pages.
"""

import html
from pathlib import Path

INK, MUTED, LINE = "#1f2933", "#5f6c7b", "#8a97a6"
BLUE, TEAL, AMBER, ROSE, VIOLET, GREY = (
    ("#e7effc", "#3366cc"),
    ("#e2f5f1", "#0f8a77"),
    ("#fdf1dd", "#c77700"),
    ("#fbe6ea", "#c2334f"),
    ("#eee9fb", "#6a4bc4"),
    ("#f1f4f7", "#7b8794"),
)
Colour = tuple[str, str]  # fill, stroke
SANS = "Inter, Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "'Roboto Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


class Svg:
    """Collects shapes; ``save`` writes the file."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="{SANS}">',
            f"<title>{html.escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
            'markerHeight="8" orient="auto-start-reverse">'
            f'<path d="M0 0 10 5 0 10z" fill="{LINE}"/></marker></defs>',
            f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="14" fill="#fcfdfe" '
            'stroke="#d5dce4"/>',
        ]

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 14,
        *,
        fill: str = INK,
        weight: int = 400,
        anchor: str = "middle",
        mono: bool = False,
    ) -> None:
        family = f' font-family="{MONO}"' if mono else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" font-weight="{weight}" '
            f'text-anchor="{anchor}"{family}>{html.escape(text)}</text>'
        )

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: Colour,
        *,
        radius: float = 9,
        dashed: bool = False,
        stroke_width: float = 1.5,
        opacity: float = 1,
    ) -> None:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="{colour[0]}" stroke="{colour[1]}" stroke-width="{stroke_width:g}"{dash} '
            f'opacity="{opacity:g}"/>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        title: str,
        lines: tuple[str, ...] = (),
        colour: Colour = BLUE,
        *,
        mono: bool = False,
        size: float = 15,
    ) -> None:
        """A rectangle with a bold title and smaller lines, centred."""
        self.rect(x, y, width, height, colour)
        total = size + len(lines) * (size + 3)
        top = y + (height - total) / 2 + size - 2
        self.text(x + width / 2, top, title, size, weight=650, mono=mono)
        for number, line in enumerate(lines, start=1):
            self.text(x + width / 2, top + number * (size + 3), line, size - 2.5, fill=MUTED)

    def arrow(self, *points: tuple[float, float], label: str = "", dashed: bool = False) -> None:
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.8" '
            f'marker-end="url(#tip)"{dash}/>'
        )
        if label:
            (x0, y0), (x1, y1) = points[0], points[-1]
            self.text((x0 + x1) / 2, (y0 + y1) / 2 - 9, label, 12.5, fill=MUTED, mono=True)

    def line(self, x0: float, y0: float, x1: float, y1: float, stroke: str = LINE) -> None:
        self._parts.append(
            f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" stroke="{stroke}" stroke-width="1.5"/>'
        )

    def save(self, path: Path) -> None:
        path.write_text("\n".join([*self._parts, "</svg>"]) + "\n", encoding="utf-8")
        print(f"written: {path.name}, {path.stat().st_size / 1000:.0f} kB")
