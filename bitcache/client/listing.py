"""A seller's lists, all pages of them."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from bitcache.api import wire, wire_money
from bitcache.client.api import ServerApi
from bitcache.client.errors import ServerAnswerWrong

PAGE_LIMIT = 200
PAGES_MAX = 1_000
"""A server that never ends its list is not read for ever."""

T = TypeVar("T")


async def parcels(api: ServerApi) -> list[wire.ParcelView]:
    """Newest first."""

    async def page(after: str | None) -> tuple[list[wire.ParcelView], str | None]:
        answer = await api.get("/parcels", wire.ParcelList, query=_query(after))
        return answer.items, answer.next

    return await _all(page)


async def offers(api: ServerApi) -> list[wire.OfferSummary]:
    """Newest first."""

    async def page(after: str | None) -> tuple[list[wire.OfferSummary], str | None]:
        answer = await api.get("/offers", wire.OfferList, query=_query(after))
        return answer.items, answer.next

    return await _all(page)


async def refunds(api: ServerApi) -> list[wire_money.RefundSummary]:
    """Newest first."""

    async def page(after: str | None) -> tuple[list[wire_money.RefundSummary], str | None]:
        answer = await api.get("/refunds", wire_money.RefundList, query=_query(after))
        return answer.items, answer.next

    return await _all(page)


async def _all(page: Callable[[str | None], Awaitable[tuple[list[T], str | None]]]) -> list[T]:
    found: list[T] = []
    after: str | None = None
    for _ in range(PAGES_MAX):
        items, after = await page(after)
        found += items
        if after is None:
            return found
    raise ServerAnswerWrong(f"The server's list has more than {PAGES_MAX} pages.")


def _query(after: str | None) -> dict[str, str]:
    return {"limit": str(PAGE_LIMIT)} | ({} if after is None else {"after": after})
