"""A log-log plot as SVG, in lines of our own: readable on light and dark, the same for the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 196, 34, 46
LABEL_PX = 15
"""Between the labels of two lines."""
COLOURS = ("#e8590c", "#1c7ed6", "#2f9e44", "#ae3ec9", "#c2255c", "#0c8599", "#e6a700", "#748ffc", "#868e96")
"""Told apart on white and on black alike."""
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.grid{stroke:#888;stroke-opacity:.25}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}"
)


@dataclass(frozen=True)
class Series:
    name: str
    values: tuple[float, ...]
    """One for each x, above 0."""


def write_plot(place: Path, title: str, unit: str, counts: Sequence[int], lines: Sequence[Series]) -> None:
    place.write_text(svg(title, unit, counts, lines))


def svg(title: str, unit: str, counts: Sequence[int], lines: Sequence[Series]) -> str:
    """`counts` are the x of all lines; the axes end at powers of ten."""
    values = [value for line in lines for value in line.values]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, last = math.log10(counts[0]), math.log10(counts[-1])

    def x(count: float) -> float:
        return LEFT + (math.log10(count) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(value) - low) / max(1, high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
        f'<text x="{LEFT}" y="18">{title}</text>',
    ]
    for power in range(low, high + 1):
        at = y(10**power)
        drawn.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10**power:g} {unit}</text>')
    for count in counts:
        at = x(count)
        drawn.append(f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        drawn.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{count:,}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">invoices</text>')
    labels = _apart([y(line.values[-1]) for line in lines])
    for line, label_at, colour in zip(lines, labels, COLOURS, strict=False):
        points = [(x(count), y(value)) for count, value in zip(counts, line.values, strict=True)]
        path = "L".join(f"{at_x:.1f} {at_y:.1f}" for at_x, at_y in points)
        drawn.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="3" fill="{colour}"/>' for at_x, at_y in points]
        end_x, end_y = points[-1]
        drawn.append(
            f'<path d="M{end_x + 4:.1f} {end_y:.1f}L{end_x + 16:.1f} {label_at:.1f}" stroke="{colour}"/>'
        )
        drawn.append(f'<text x="{end_x + 20:.1f}" y="{label_at + 4:.1f}">{line.name}</text>')
    return "\n".join((*drawn, "</svg>", ""))


def _apart(wanted: Sequence[float]) -> list[float]:
    """Heights as near to those wanted as labels that do not touch can be."""
    placed = [0.0] * len(wanted)
    free = float(TOP)
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        placed[index] = max(wanted[index], free)
        free = placed[index] + LABEL_PX
    below = max(0.0, free - LABEL_PX - (HEIGHT - BOTTOM))
    return [at - below for at in placed]
