"""Parcels: put complete files together, seal them, list them, sell them no more."""

import asyncio

from aiohttp import web

from bitcache import catalog
from bitcache.api.bodies import octets
from bitcache.api.routing import PAGE_QUERY, Answer, Auth, Call, Route
from bitcache.api.wire import ParcelList, ParcelRequest, ParcelSeal, ParcelView
from bitcache.catalog import Parcel, WrappedFile
from payments.ports import Transaction

REQUEST_BYTES_MAX = 2 << 20
"""10,000 files with their wrapped keys are 1.5 MB."""
SEAL_BYTES_MAX = 6 << 20
"""4 MiB of metadata as base64url are 5.6 MB."""


async def create(call: Call) -> Answer | web.StreamResponse:
    asked = call.body(ParcelRequest)
    wrapped = [WrappedFile(file.file_id, octets(file.wrapped_key, "wrapped_key")) for file in asked.files]

    async def make(tx: Transaction) -> Answer:
        parcel = await catalog.create_parcel(
            tx, call.seller.account_id, wrapped, meterable=asked.meterable, now=call.services.clock()
        )
        return Answer(201, _view(parcel))

    return await call.create(make)


async def seal(call: Call) -> Answer:
    asked = call.body(ParcelSeal)
    # Megabytes of base64 take milliseconds.
    metadata = await asyncio.to_thread(octets, asked.metadata, "metadata")
    release_secret = octets(asked.release_secret, "release_secret")
    services = call.services

    async def sealed(tx: Transaction) -> Parcel:
        return await catalog.seal_parcel(
            tx,
            call.seller.account_id,
            call.path("parcel_id"),
            metadata=metadata,
            release_secret=release_secret,
            sealer=services.sealer,
            now=services.clock(),
        )

    return Answer(200, _view(await services.database.write(sealed)))


async def show(call: Call) -> Answer:
    async def look(tx: Transaction) -> Parcel:
        return await catalog.load_parcel(tx, call.seller.account_id, call.path("parcel_id"))

    return Answer(200, _view(await call.services.database.read(look)))


async def listed(call: Call) -> Answer:
    after, limit = call.page()

    async def look(tx: Transaction) -> list[Parcel]:
        return await catalog.parcels_page(tx, call.seller.account_id, after=after, limit=limit + 1)

    found = await call.services.database.read(look)
    items = [_view(parcel) for parcel in found[:limit]]
    return Answer(200, ParcelList(items=items, next=items[-1].parcel_id if len(found) > limit else None))


async def remove(call: Call) -> Answer:
    async def removed(tx: Transaction) -> None:
        await catalog.delete_parcel(
            tx, call.seller.account_id, call.path("parcel_id"), now=call.services.clock()
        )

    await call.services.database.write(removed)
    return Answer(204)


def _view(parcel: Parcel) -> ParcelView:
    return ParcelView(
        parcel_id=parcel.id,
        state="open" if parcel.sealed_at is None else "sealed",
        created_at=parcel.created_at,
        sealed_at=parcel.sealed_at,
        meterable=parcel.meterable,
        size_bytes=parcel.size_bytes,
        files_count=parcel.files_count,
        offers=list(parcel.offers),
    )


ROUTES = (
    Route(
        method="POST",
        path="/parcels",
        handler=create,
        operation_id="createParcel",
        summary="Put complete files together, each with its key wrapped under the parcel's",
        request=ParcelRequest,
        responses={201: ParcelView},
        problems=("not-found", "file-incomplete"),
        auth=Auth.SELLER,
        body_bytes_max=REQUEST_BYTES_MAX,
        idempotent=True,
    ),
    Route(
        method="GET",
        path="/parcels",
        handler=listed,
        operation_id="listParcels",
        summary="The seller's parcels, newest first",
        responses={200: ParcelList},
        problems=("not-found",),
        auth=Auth.SELLER,
        query=PAGE_QUERY,
    ),
    Route(
        method="POST",
        path="/parcels/{parcel_id}/seal",
        handler=seal,
        operation_id="sealParcel",
        summary="Fix a parcel for ever, with its sealed description and its release secret",
        request=ParcelSeal,
        responses={200: ParcelView},
        problems=("not-found", "parcel-sealed", "metadata-too-large"),
        auth=Auth.SELLER,
        body_bytes_max=SEAL_BYTES_MAX,
    ),
    Route(
        method="GET",
        path="/parcels/{parcel_id}",
        handler=show,
        operation_id="getParcel",
        summary="One parcel of the seller",
        responses={200: ParcelView},
        problems=("not-found",),
        auth=Auth.SELLER,
    ),
    Route(
        method="DELETE",
        path="/parcels/{parcel_id}",
        handler=remove,
        operation_id="deleteParcel",
        summary="Sell a parcel no more; who paid keeps the right to its bytes",
        responses={204: None},
        problems=("not-found",),
        auth=Auth.SELLER,
    ),
)
