"""Bars as the numbers of an SVG. Pure: the template draws them, the style sheet colours them.

The picture has no text, so it may be stretched to any width; what it says is in words beside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

HEIGHT = 100
STEP = 10
WIDTH = 8
"""Of a bar; the rest of the step is the gap."""
LEAST = 1
"""The height of a bar that is not zero: nothing that was earned is invisible."""


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    amount: int
    sales: int
    x: int
    y: int
    height: int

    @property
    def taken_back(self) -> bool:
        return self.amount < 0


@dataclass(frozen=True, slots=True)
class Chart:
    bars: tuple[Bar, ...]
    zero_y: int
    """Where nothing is; bars of reversals hang below it."""
    amount_max: int

    @property
    def width(self) -> int:
        return STEP * len(self.bars)


def bar_chart(entries: Iterable[tuple[str, int, int]]) -> Chart:
    """`entries` are (label, amount, sales), oldest first."""
    listed = list(entries)
    top = max((amount for _, amount, _ in listed), default=0)
    top, bottom = max(top, 0), min(min((amount for _, amount, _ in listed), default=0), 0)
    scale = max(top - bottom, 1)
    zero_y = HEIGHT * top // scale if bottom else HEIGHT
    bars = []
    for place, (label, amount, sales) in enumerate(listed):
        height = max(LEAST, HEIGHT * abs(amount) // scale) if amount else 0
        y = zero_y - height if amount > 0 else zero_y
        bars.append(Bar(label, amount, sales, place * STEP + (STEP - WIDTH) // 2, y, height))
    return Chart(tuple(bars), zero_y, top)
