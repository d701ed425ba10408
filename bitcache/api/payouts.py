"""What the operator holds of a seller's hosted sales, and paying it out."""

from functools import partial

from aiohttp import web
from msgspec import UNSET

from bitcache.api import idempotency
from bitcache.api.routing import PAGE_QUERY, Answer, Auth, Call, Route
from bitcache.api.wire_money import BalanceView, PayoutList, PayoutRequest, PayoutView
from bitcache.errors import ValueRefused
from bitcache.ids import new_id
from bitcache.payout_views import balance_view, payout_views
from bitcache.seller_payouts import find_own, payout_id_of
from payments import payout_store
from payments.payout import Kind
from payments.ports import Transaction


async def balance(call: Call) -> Answer:
    services = call.services
    look = partial(
        balance_view,
        config=services.config,
        desk=services.seller_payouts,
        account_id=call.seller.account_id,
        now=services.clock(),
    )
    return Answer(200, await services.database.read(look))


async def request(call: Call) -> Answer | web.StreamResponse:
    asked, desk, account_id = call.body(PayoutRequest), call.services.seller_payouts, call.seller.account_id
    if (asked.amount_sat is UNSET) == (asked.all is UNSET):
        raise ValueRefused("Give `amount_sat`, or `all`: true.", field="amount_sat")
    key = call.http.headers.get(idempotency.HEADER)
    payout_id = payout_id_of(account_id, key) if key is not None else new_id()

    async def make(tx: Transaction) -> Answer:
        now = call.services.clock()
        made = await desk.request(
            tx,
            account_id,
            payout_id=payout_id,
            amount_sat=None if asked.amount_sat is UNSET else asked.amount_sat,
            now=now,
        )
        (view,) = await payout_views(tx, [made], depth=desk.depth, now=now)
        return Answer(201, view)

    return await desk.deriving(partial(call.create, make))


async def listed(call: Call) -> Answer:
    services, account_id = call.services, call.seller.account_id
    after, limit = call.page()

    async def look(tx: Transaction) -> list[PayoutView]:
        if after is not None:
            await find_own(tx, account_id, after)
        found = await payout_store.page(
            tx, after=after, limit=limit + 1, seller_id=account_id, kind=Kind.SELLER
        )
        return await payout_views(tx, found, depth=services.seller_payouts.depth, now=services.clock())

    found = await services.database.read(look)
    items = found[:limit]
    return Answer(200, PayoutList(items=items, next=items[-1].payout_id if len(found) > limit else None))


async def show(call: Call) -> Answer:
    services = call.services

    async def look(tx: Transaction) -> PayoutView:
        found = await find_own(tx, call.seller.account_id, call.path("payout_id"))
        (view,) = await payout_views(tx, [found], depth=services.seller_payouts.depth, now=services.clock())
        return view

    return Answer(200, await services.database.read(look))


async def cancel(call: Call) -> Answer:
    services = call.services

    async def cancelled(tx: Transaction) -> None:
        await services.seller_payouts.cancel(
            tx, call.seller.account_id, call.path("payout_id"), now=services.clock()
        )

    await services.database.write(cancelled)
    return Answer(204)


ROUTES = (
    Route(
        method="GET",
        path="/balance",
        handler=balance,
        operation_id="getBalance",
        summary="What the operator holds of the seller's hosted sales, and what of it can be paid out now",
        responses={200: BalanceView},
        auth=Auth.SELLER,
    ),
    Route(
        method="POST",
        path="/payouts",
        handler=request,
        operation_id="createPayout",
        summary="Have so much of the balance, or all, paid out to the target in force",
        request=PayoutRequest,
        responses={201: PayoutView},
        problems=(
            "balance-negative",
            "node-offline",
            "payout-above-payable",
            "payout-below-dust",
            "payout-below-minimum",
            "payout-refused",
            "payout-target-missing",
            "payouts-stopped",
        ),
        auth=Auth.SELLER,
        idempotent=True,
    ),
    Route(
        method="GET",
        path="/payouts",
        handler=listed,
        operation_id="listPayouts",
        summary="The seller's payouts, newest first",
        responses={200: PayoutList},
        problems=("not-found",),
        auth=Auth.SELLER,
        query=PAGE_QUERY,
    ),
    Route(
        method="GET",
        path="/payouts/{payout_id}",
        handler=show,
        operation_id="getPayout",
        summary="One of the seller's payouts",
        responses={200: PayoutView},
        problems=("not-found",),
        auth=Auth.SELLER,
    ),
    Route(
        method="DELETE",
        path="/payouts/{payout_id}",
        handler=cancel,
        operation_id="cancelPayout",
        summary="Call a payout off while it is in no batch; the amount goes back to the balance",
        responses={204: None},
        problems=("not-found", "payout-final"),
        auth=Auth.SELLER,
    ),
)
