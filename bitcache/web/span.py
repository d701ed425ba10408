"""The days that a seller's page shows, as its address asks for them. Pure.

Whole days of a time zone: the last so many, today included, or from one date to another.
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from bitcache.earnings import Period, time_zone
from bitcache.errors import PeriodInvalid
from bitcache.web.render import minute_text

LENGTHS = (7, 30, 90, 365)
LENGTH_DEFAULT = 30
DAYS_MAX = 5 * 366
FIRST_DATE = datetime.date(2009, 1, 3)
LAST_DATE = datetime.date(2199, 12, 31)
DAY_BARS_MAX = 92
"""Longer spans are shown by week."""
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True, slots=True)
class Span:
    """From the first to the last day, both included."""

    first: datetime.date
    last: datetime.date
    zone_name: str
    length: int | None
    """One of LENGTHS if it was chosen so: such a span moves on with the days."""

    @property
    def zone(self) -> datetime.tzinfo:
        return time_zone(self.zone_name)

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    @property
    def period(self) -> Period:
        return Period(
            _midnight(self.first, self.zone),
            _midnight(self.last + datetime.timedelta(days=1), self.zone),
            self.zone,
        )

    @property
    def with_before(self) -> Period:
        """This span and as many days before it."""
        start = self.first - datetime.timedelta(days=self.days)
        return Period(_midnight(start, self.zone), self.period.until, self.zone)

    def minute(self, at: int) -> str:
        """YYYY-MM-DD HH:MM in the zone."""
        return minute_text(at, self.zone)

    def query(self, length: int | None = None, **more: str) -> str:
        """The query of an address that shows this span, or the last `length` days."""
        length = length or self.length
        days = {"days": length} if length else {"from": self.first, "to": self.last}
        return urlencode({**days, "zone": self.zone_name, **more})

    def bars(self) -> list[tuple[str, list[str]]]:
        """What each bar of a chart is of: (its first day, its days), a day or a calendar week each."""
        days = [self.first + datetime.timedelta(days=number) for number in range(self.days)]
        if len(days) <= DAY_BARS_MAX:
            return [(day.isoformat(), [day.isoformat()]) for day in days]
        weeks: dict[tuple[int, int], list[str]] = {}
        for day in days:
            weeks.setdefault(day.isocalendar()[:2], []).append(day.isoformat())
        return [(week[0], week) for week in weeks.values()]

    @property
    def by_week(self) -> bool:
        return self.days > DAY_BARS_MAX


def chosen_span(query: Mapping[str, str], *, now: int) -> tuple[Span, str]:
    """(span, key of the words that say what was wrong or ""). What is wrong is left at its default."""
    wrong = ""
    zone_name = query.get("zone", "") or "UTC"
    try:
        zone = time_zone(zone_name)
    except PeriodInvalid:
        zone_name, zone, wrong = "UTC", datetime.UTC, "span_zone_wrong"
    today = datetime.datetime.fromtimestamp(now, zone).date()
    default = _latest(today, LENGTH_DEFAULT, zone_name)
    start, end = query.get("from", "").strip(), query.get("to", "").strip()
    if start or end:
        first, last = _date(start), _date(end) if end else today
        if first is None or last is None:
            return default, "span_date_wrong"
        if first > last:
            return default, "span_order_wrong"
        if (last - first).days >= DAYS_MAX:
            return default, "span_too_long"
        return Span(first, last, zone_name, None), wrong
    length = query.get("days", str(LENGTH_DEFAULT))
    if length not in map(str, LENGTHS):
        return default, "span_days_wrong"
    return _latest(today, int(length), zone_name), wrong


def _latest(today: datetime.date, length: int, zone_name: str) -> Span:
    return Span(today - datetime.timedelta(days=length - 1), today, zone_name, length)


def _date(text: str) -> datetime.date | None:
    """YYYY-MM-DD, of the years in which there are bitcoins; None for anything else."""
    if not _DATE.fullmatch(text):
        return None
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError:
        return None
    return date if FIRST_DATE <= date <= LAST_DATE else None


def _midnight(day: datetime.date, zone: datetime.tzinfo) -> int:
    """Where the clocks skip midnight, the moment at which they do."""
    return int(datetime.datetime.combine(day, datetime.time(), zone).timestamp())
