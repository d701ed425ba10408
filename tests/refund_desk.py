"""What buyers and sellers do about money back, for tests: on a shop of `tests.hosted_shop`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update

from payments import tables
from payments.ports import Transaction
from storage import base64url
from tests.hosted_shop import HostedShop
from tests.till import Bought

AT_ONCE = {"depth": 2, "refund_delay_s": 0}
"""Keys of [hosted]: no waiting that is not tested."""


async def ask(
    shop: HostedShop, bought: Bought, address: str, *, secret: bytes | None = None
) -> tuple[int, dict[str, Any]]:
    body = {"claim_secret": base64url.encode(secret or bought.claim_secret), "address": address}
    async with shop.till.http.post(f"/api/v1/invoices/{bought.id}/refund", json=body) as answer:
        return answer.status, await answer.json()


async def refused(
    shop: HostedShop, bought: Bought, address: str, *, secret: bytes | None = None
) -> tuple[int, str]:
    status, problem = await ask(shop, bought, address, secret=secret)
    return status, str(problem["type"]).removeprefix("/problems/")


async def sellers(shop: HostedShop, path: str, body: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The answer to the seller, with its status."""
    headers = {"Authorization": f"Bearer {shop.till.account.token}"}
    method = "GET" if path == "/refunds" else "POST"
    async with shop.till.http.request(method, f"/api/v1{path}", json=body, headers=headers) as answer:
        return {**await answer.json(), "status": answer.status}


async def underpaid(shop: HostedShop, paid_sat: int, *, price_sat: int = 50_000) -> Bought:
    """Some of the price came, in a block, and the price is not held any more."""
    bought = await shop.till.buy(await shop.till.offer(price_sat=price_sat))
    await shop.till.pay(bought, amount_sat=paid_sat)
    await shop.mine()
    await expire(shop, bought.id)
    return bought


async def expire(shop: HostedShop, invoice_id: str) -> None:
    """What came so far came in time."""
    clock = shop.till.server.clock

    async def end(tx: Transaction) -> None:
        of_it = tables.invoice_terms.c.invoice_id == invoice_id
        await tx.execute(update(tables.invoice_terms).where(of_it).values(valid_until=clock()))

    await shop.services.database.write(end)
    clock.advance(2)

    async def see(tx: Transaction) -> None:
        await shop.services.registry.refresh(tx, [invoice_id], now=clock())

    await shop.services.database.write(see)


async def paid_out(shop: HostedShop) -> str:
    """One batch of what is ready, in a block; its txid."""
    batch_id = await shop.build()
    txid = await shop.send(batch_id)
    await shop.mine()
    return txid
