"""Offers: terms for a sealed parcel, seen by anyone with the offer's id, changed by its seller."""

from aiohttp import web
from msgspec import UNSET, UnsetType

from bitcache.api.routing import PAGE_QUERY, Answer, Auth, Call, Route
from bitcache.api.wire import (
    FixedPrice,
    MeteredPrice,
    MeteredView,
    OfferList,
    OfferPatch,
    OfferRequest,
    OfferSummary,
    OfferView,
    PolicyView,
)
from bitcache.catalog import parcel_file_views
from bitcache.config import Config
from bitcache.offers import Changes, Offer, Terms, sealed_metadata
from payments.ports import Transaction
from storage import base64url
from storage.stream import CHUNK_SIZE_BYTES

METERED_PROBLEMS = ("channels-off", "hosted-sales-off", "payout-target-missing")


async def create(call: Call) -> Answer | web.StreamResponse:
    asked, services = call.body(OfferRequest), call.services
    terms = Terms(
        price_msat=_msat(asked.price),
        metered_msat=_msat(asked.metered),
        bytes_at=asked.policy.bytes_at,
        key_at=asked.policy.key_at,
        expires_at=asked.expires_at,
        max_downloads=asked.max_downloads,
    )

    async def make(tx: Transaction) -> Answer:
        offer = await services.offers.create(
            tx, call.seller.account_id, asked.parcel_id, terms, now=services.clock()
        )
        return Answer(201, _summary(offer))

    return await call.create(make)


async def show(call: Call) -> Answer:
    services = call.services

    async def look(tx: Transaction) -> OfferView:
        offer = await services.offers.load(tx, call.path("offer_id"), now=services.clock())
        return await _view(tx, offer, services.config)

    return Answer(200, await services.database.read(look))


async def listed(call: Call) -> Answer:
    services = call.services
    after, limit = call.page()

    async def look(tx: Transaction) -> list[Offer]:
        return await services.offers.page(
            tx, call.seller.account_id, after=after, limit=limit + 1, now=services.clock()
        )

    found = await services.database.read(look)
    items = [_summary(offer) for offer in found[:limit]]
    return Answer(200, OfferList(items=items, next=items[-1].offer_id if len(found) > limit else None))


async def change(call: Call) -> Answer:
    asked = call.body(OfferPatch)
    changes = Changes(
        price_msat=_changed_msat(asked.price),
        metered_msat=_changed_msat(asked.metered),
        expires_at=asked.expires_at,
        max_downloads=asked.max_downloads,
        close=asked.closed is not UNSET,
    )
    return Answer(200, _summary(await _changed(call, changes)))


async def close(call: Call) -> Answer:
    await _changed(call, Changes(close=True))
    return Answer(204)


async def _changed(call: Call, changes: Changes) -> Offer:
    services = call.services

    async def changed(tx: Transaction) -> Offer:
        return await services.offers.change(
            tx, call.seller.account_id, call.path("offer_id"), changes, now=services.clock()
        )

    return await services.database.write(changed)


async def _view(tx: Transaction, offer: Offer, config: Config) -> OfferView:
    metadata = await sealed_metadata(tx, offer.parcel_id)
    left = offer.terms.max_downloads
    return OfferView(
        offer_id=offer.id,
        parcel_id=offer.parcel_id,
        state=offer.state,
        seller_name=offer.seller_name,
        settlement=offer.settlement,
        network=config.network,
        price=_price(offer),
        metered=_metered(offer),
        policy=PolicyView(bytes_at=offer.terms.bytes_at, key_at=offer.terms.key_at),
        created_at=offer.created_at,
        expires_at=offer.terms.expires_at,
        downloads_left=None if left is None else max(0, left - offer.sales),
        paid_retention_days=config.paid_retention_days,
        price_hold_s=config.price_hold_s,
        size_bytes=offer.size_bytes,
        files=await parcel_file_views(tx, offer.parcel_id),
        metadata=base64url.encode(metadata),
    )


def _summary(offer: Offer) -> OfferSummary:
    return OfferSummary(
        offer_id=offer.id,
        parcel_id=offer.parcel_id,
        state=offer.state,
        price=_price(offer),
        metered=_metered(offer),
        policy=PolicyView(bytes_at=offer.terms.bytes_at, key_at=offer.terms.key_at),
        created_at=offer.created_at,
        expires_at=offer.terms.expires_at,
        max_downloads=offer.terms.max_downloads,
        sales=offer.sales,
        size_bytes=offer.size_bytes,
        files_count=offer.files_count,
    )


def _price(offer: Offer) -> FixedPrice | None:
    price_msat = offer.terms.price_msat
    return None if price_msat is None else FixedPrice(amount_msat=price_msat)


def _metered(offer: Offer) -> MeteredView | None:
    metered_msat, chunks = offer.terms.metered_msat, offer.chunks
    if metered_msat is None or chunks is None:
        return None
    return MeteredView(
        amount_msat=metered_msat,
        chunk_bytes=CHUNK_SIZE_BYTES,
        chunks=chunks,
        whole_msat=metered_msat * chunks,
    )


def _msat(price: FixedPrice | MeteredPrice | None) -> int | None:
    return None if price is None else price.amount_msat


def _changed_msat(price: FixedPrice | MeteredPrice | UnsetType | None) -> int | UnsetType | None:
    return UNSET if price is UNSET else _msat(price)


ROUTES = (
    Route(
        method="POST",
        path="/offers",
        handler=create,
        operation_id="createOffer",
        summary="Offer a sealed parcel",
        request=OfferRequest,
        responses={201: OfferSummary},
        problems=("not-found", "parcel-not-sealed", "taken-down", *METERED_PROBLEMS),
        auth=Auth.SELLER,
        idempotent=True,
    ),
    Route(
        method="GET",
        path="/offers",
        handler=listed,
        operation_id="listOffers",
        summary="The seller's offers, newest first",
        responses={200: OfferList},
        problems=("not-found",),
        auth=Auth.SELLER,
        query=PAGE_QUERY,
    ),
    Route(
        method="GET",
        path="/offers/{offer_id}",
        handler=show,
        operation_id="getOffer",
        summary="An offer as anyone may see it; names are sealed under the link's secret",
        responses={200: OfferView},
        problems=("not-found", "offer-gone"),
    ),
    Route(
        method="PATCH",
        path="/offers/{offer_id}",
        handler=change,
        operation_id="updateOffer",
        summary="Change an offer for new invoices, or close it",
        request=OfferPatch,
        responses={200: OfferSummary},
        problems=("not-found", "offer-not-open", *METERED_PROBLEMS),
        auth=Auth.SELLER,
    ),
    Route(
        method="DELETE",
        path="/offers/{offer_id}",
        handler=close,
        operation_id="closeOffer",
        summary="Close an offer: no new invoices",
        responses={204: None},
        problems=("not-found",),
        auth=Auth.SELLER,
    ),
)
