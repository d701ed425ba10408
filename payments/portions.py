"""Many values for a query in portions: databases refuse, or plan badly, a statement with too many."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

VALUES_PER_QUERY = 500

Value = TypeVar("Value", str, bytes)


def portions(values: Iterable[Value]) -> Iterator[list[Value]]:
    """Each of them once, in order; nothing for none."""
    listed = sorted(set(values))
    for start in range(0, len(listed), VALUES_PER_QUERY):
        yield listed[start : start + VALUES_PER_QUERY]
