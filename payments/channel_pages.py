"""Which units (chunks) of which item (file) a channel has paid for: a bit each, in pages.

A unit is charged once per channel. One that was paid for is sent again a few times in a day for nothing; how
often is counted in memory only.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import select

from payments.channel import RETRIES_FREE, RETRIES_S
from payments.channel_errors import RetriesExhausted
from payments.many_rows import ManyRows
from payments.ports import Transaction
from payments.tables import channel_pages

UNITS_PER_PAGE = 4096
PAGES_KEPT_MAX = 20_000
"""In memory, some 300 to 900 bytes each: the others are read again when they are asked for."""
RETRIES_KEPT_MAX = 50_000
"""Units of which retries are counted; of more, the oldest count is forgotten."""


class PageKey(NamedTuple):
    channel_id: str
    item: str
    page: int


class Page:
    """One page in memory."""

    __slots__ = ("octets", "unsaved")

    def __init__(self, octets: bytes = b"") -> None:
        self.octets = bytearray(octets)
        self.unsaved = 0
        """Batches under way that hold it: until they are written, the database knows less."""

    def paid(self, unit: int) -> bool:
        place, bit = divmod(unit % UNITS_PER_PAGE, 8)
        return place < len(self.octets) and bool(self.octets[place] >> bit & 1)

    def pay(self, unit: int) -> None:
        place, bit = divmod(unit % UNITS_PER_PAGE, 8)
        if place >= len(self.octets):
            self.octets.extend(bytes(place + 1 - len(self.octets)))
        self.octets[place] |= 1 << bit


class Pages:
    """The pages that were used last. One that holds what is not written yet stays."""

    def __init__(self, kept_max: int = PAGES_KEPT_MAX) -> None:
        self._pages: OrderedDict[PageKey, Page] = OrderedDict()
        self._of_channel: dict[str, set[PageKey]] = {}
        self._kept_max = kept_max
        self.dropped = 0
        """Rises when a page goes: what was read before may be older than what went."""

    def get(self, key: PageKey) -> Page | None:
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
        return page

    def put(self, key: PageKey, octets: bytes) -> None:
        self._pages[key] = Page(octets)
        self._of_channel.setdefault(key.channel_id, set()).add(key)
        for _ in range(len(self._pages) - self._kept_max):
            oldest = next(iter(self._pages))
            if self._pages[oldest].unsaved:
                self._pages.move_to_end(oldest)
            else:
                self._remove(oldest)

    def drop(self, channel_id: str) -> None:
        for key in self._of_channel.pop(channel_id, ()):
            del self._pages[key]
            self.dropped += 1

    def clear(self) -> None:
        self._pages.clear()
        self._of_channel.clear()
        self.dropped += 1

    def __len__(self) -> int:
        return len(self._pages)

    def _remove(self, key: PageKey) -> None:
        del self._pages[key]
        self.dropped += 1
        keys = self._of_channel[key.channel_id]
        keys.discard(key)
        if not keys:
            del self._of_channel[key.channel_id]


class RetryKey(NamedTuple):
    channel_id: str
    item: str
    unit: int


class Retries:
    """How often units that were paid for were sent again."""

    def __init__(self, kept_max: int = RETRIES_KEPT_MAX) -> None:
        self._counts: OrderedDict[RetryKey, tuple[int, int]] = OrderedDict()
        """How often, and since when."""
        self._kept_max = kept_max

    def check(self, keys: Iterable[RetryKey], now: int) -> None:
        """Raises RetriesExhausted if one of these was sent again as often as it is for nothing."""
        for key in keys:
            count, since = self._counts.get(key, (0, now))
            if count >= RETRIES_FREE and now < since + RETRIES_S:
                raise RetriesExhausted(retry_after_s=since + RETRIES_S - now)

    def count(self, keys: Iterable[RetryKey], now: int) -> None:
        for key in keys:
            count, since = self._counts.get(key, (0, now))
            self._counts[key] = (1, now) if now >= since + RETRIES_S else (count + 1, since)
        while len(self._counts) > self._kept_max:
            self._counts.popitem(last=False)

    def give_back(self, keys: Iterable[RetryKey]) -> None:
        """They were counted, and then nothing was sent."""
        for key in keys:
            count, since = self._counts.get(key, (0, 0))
            if count > 1:
                self._counts[key] = (count - 1, since)
            else:
                self._counts.pop(key, None)

    def __len__(self) -> int:
        return len(self._counts)


def pages_of(first_unit: int, units: int) -> Iterator[int]:
    """The pages on which these units are."""
    yield from range(first_unit // UNITS_PER_PAGE, (first_unit + units - 1) // UNITS_PER_PAGE + 1)


async def read_page(tx: Transaction, key: PageKey) -> bytes:
    found = await tx.scalar(
        select(channel_pages.c.paid).where(
            channel_pages.c.channel_id == key.channel_id,
            channel_pages.c.item == key.item,
            channel_pages.c.page == key.page,
        )
    )
    return found or b""


def page_row(key: PageKey, page: Page) -> dict[str, Any]:
    return {**key._asdict(), "paid": bytes(page.octets)}


def _saved(dialect: Any) -> Any:
    added = dialect.insert(channel_pages)
    return added.on_conflict_do_update(
        index_elements=["channel_id", "item", "page"], set_={"paid": added.excluded.paid}
    )


SAVE_PAGES = ManyRows(_saved)
"""Each page as it is now, whatever was kept of it before."""
