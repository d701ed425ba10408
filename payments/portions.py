"""Many values for a query in portions: databases refuse, or plan badly, a statement with too many."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

PORTION = 500

Value = TypeVar("Value", str, bytes)


def portions(values: Iterable[Value], *, at_most: int = PORTION) -> Iterator[list[Value]]:
    """All of them once, in order, so many at a time; nothing for none."""
    listed = sorted(set(values))
    for start in range(0, len(listed), at_most):
        yield listed[start : start + at_most]
