"""Counts who looks at an offer: everybody but its seller."""

from sqlalchemy import select

from bitcache.db.tables import offers
from bitcache.web.session_cookie import signed_in
from bitcache.web.visit import Visit


async def count_view(visit: Visit, offer_id: str) -> None:
    """One more view of this offer, which exists; unless its seller, signed in, looks at it."""
    services = visit.services
    seller = await signed_in(visit.call.http, services)
    if seller is not None:
        own = select(offers.c.id).where(offers.c.id == offer_id, offers.c.account_id == seller.account_id)
        if await services.database.read(lambda tx: tx.scalar(own)) is not None:
            return
    services.views.count(offer_id)
