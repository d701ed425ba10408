"""Sellers and buyers of a soak. A buyer's request that a dead server cut off is made again, as it was."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from regtest.errors import RpcRefused
from tests.drill.payer import Payment
from tests.payout_soak.house import RETRY_S, TRIES_MAX, House
from tests.payout_soak.server import PRICE_HOLD_S
from tests.payout_soak.steps import Buys, Paying
from tests.till import Bought, Sold, Till

OVER_SAT = 7_000
TIP_SAT = 500
BUMPED = 3
"""Times the fee, of who raises it."""
# (price in sats, confirmations until the key), by the seller's number.
OFFERS = ((50_000, 1), (23_457, 1), (61_000, 3), (9_999, 1), (35_000, 2))
BYTES = 100


class NodeOffline(Exception):
    """No invoice is given now."""


@dataclass
class Seller:
    number: int
    till: Till
    sold: Sold

    @property
    def id(self) -> str:
        return self.till.account.account_id

    @property
    def token(self) -> str:
        return self.till.account.token


@dataclass
class Buyer:
    number: int
    seller: Seller
    plan: Buys
    bought: Bought
    payments: list[Payment] = field(default_factory=list)
    robbed: bool = False
    refund_address: str | None = None
    """The first that it asked for, and was told to be taken."""

    @property
    def invoice_id(self) -> str:
        return self.bought.id

    @property
    def address(self) -> str:
        return str(self.bought.invoice["address"])

    @property
    def price_sat(self) -> int:
        return int(self.bought.invoice["price_sat"])


async def open_seller(house: House, number: int, session: aiohttp.ClientSession) -> Seller:
    """One with hosted sales, an address for payouts, and an offer."""
    admin = house.admins[0]
    account = await admin.new_seller(f"seller {number}")
    till = Till(admin, account, house.world)
    till.http = session
    wants = {"settlement": "hosted", "payout_address": await house.new_address()}
    async with session.patch(
        "/api/v1/account", json=wants, headers={"Authorization": f"Bearer {account.token}"}
    ) as answer:
        assert answer.status == 200, await answer.text()
    price_sat, key_at = OFFERS[number % len(OFFERS)]
    sold = await till.offer(price_sat=price_sat, bytes_at=key_at, key_at=key_at, sizes=(BYTES,))
    return Seller(number, till, sold)


async def buy(house: House, seller: Seller, number: int, plan: Buys) -> Buyer:
    """An invoice. Raises NodeOffline."""
    secret = os.urandom(32)
    for _ in range(TRIES_MAX):
        await house.supervise()
        try:
            async with seller.till.ask(seller.sold, secret) as answer:
                said: dict[str, Any] = await answer.json()
                if answer.status in (200, 201):
                    return Buyer(number, seller, plan, Bought(said, secret))
                if answer.status == 503:
                    raise NodeOffline
                raise AssertionError(f"no invoice: {answer.status} {said}")
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(RETRY_S)
    raise AssertionError("the server never answered")


async def pay(house: House, buyer: Buyer) -> None:
    """In the planned way; what a conflict in the mempool refuses is left."""
    try:
        await _WAYS[buyer.plan.paying](house, buyer)
    except RpcRefused as exc:
        house.say(f"      buyer {buyer.number} could not go on paying: {exc}")


async def pay_late(house: House, buyer: Buyer) -> None:
    await _send(house, buyer, buyer.price_sat)


async def _send(
    house: House, buyer: Buyer, amount_sat: int, *, coin: int = 0, fee_sat: int = 3_000
) -> Payment:
    spent = [house.payer.coins(buyer.number)[coin]]
    payment = await house.payer.build(spent, [(buyer.address, amount_sat)], fee_sat=fee_sat)
    buyer.payments.append(payment)
    await house.payer.send(payment)
    if buyer.plan.waits:
        await house.seen(payment.txid)
    return payment


async def _exact(house: House, buyer: Buyer) -> None:
    await _send(house, buyer, buyer.price_sat)


async def _too_little(house: House, buyer: Buyer) -> None:
    await _send(house, buyer, buyer.price_sat - 2_000)


async def _top_up(house: House, buyer: Buyer) -> None:
    await _send(house, buyer, buyer.price_sat // 2)
    await _send(house, buyer, buyer.price_sat - buyer.price_sat // 2, coin=1)


async def _over(house: House, buyer: Buyer) -> None:
    await _send(house, buyer, buyer.price_sat + OVER_SAT)


async def _tip(house: House, buyer: Buyer) -> None:
    await _send(house, buyer, buyer.price_sat + TIP_SAT)


async def _fee_bump(house: House, buyer: Buyer) -> None:
    first = await _send(house, buyer, buyer.price_sat)
    await _send(house, buyer, buyer.price_sat, fee_sat=first.fee_sat * BUMPED)


async def _taken_away(house: House, buyer: Buyer) -> None:
    payment = await _send(house, buyer, buyer.price_sat)
    await house.payer.send(await house.payer.robbery(payment))


async def _double_spend(house: House, buyer: Buyer) -> None:
    payment = await _send(house, buyer, buyer.price_sat)
    rival = await house.payer.robbery(payment)
    await house.world.mine_exactly([rival.raw], sync=house.node_there)


async def _nothing(house: House, buyer: Buyer) -> None:
    """`LATE` comes again, when the price holds no longer."""


LATE_S = PRICE_HOLD_S
_WAYS = {
    Paying.EXACT: _exact,
    Paying.TOO_LITTLE: _too_little,
    Paying.TOP_UP: _top_up,
    Paying.OVER: _over,
    Paying.TIP: _tip,
    Paying.LATE: _nothing,
    Paying.FEE_BUMP: _fee_bump,
    Paying.TAKEN_AWAY: _taken_away,
    Paying.DOUBLE_SPEND: _double_spend,
    Paying.NOTHING: _nothing,
}
