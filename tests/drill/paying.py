"""The many ways in which buyers pay, and do not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.drill.buyers import Buyer
from tests.drill.schedule import Paying
from tests.drill.server import PRICE_HOLD_S

LATE_TIMEOUT_S = 3 * PRICE_HOLD_S
TIP_SAT = 500
OVER_SAT = 3_000
BUMPED = 3
"""Times the fee, of who raises it."""


async def _exact(buyer: Buyer) -> None:
    await buyer.pay(buyer.price_sat)


async def _exact_and_seen(buyer: Buyer) -> None:
    """What a reorg takes back, later, should have been believed before."""
    await buyer.pay(buyer.price_sat)
    await buyer.seen()


async def _two_payments(buyer: Buyer) -> None:
    await buyer.pay(buyer.price_sat // 2)
    await buyer.pay(buyer.price_sat - buyer.price_sat // 2, coin=1)


async def _top_up(buyer: Buyer) -> None:
    await buyer.pay(buyer.price_sat // 2)
    await buyer.seen()
    await buyer.pay(buyer.price_sat - buyer.price_sat // 2, coin=1)


async def _too_little(buyer: Buyer) -> None:
    await buyer.pay(buyer.price_sat - 400)


async def _tip(buyer: Buyer) -> None:
    await buyer.pay(buyer.price_sat + TIP_SAT)


async def _over(buyer: Buyer) -> None:
    await buyer.pay(buyer.price_sat + OVER_SAT)


async def _late(buyer: Buyer) -> None:
    if not await buyer.comes_to(lambda invoice: invoice.status == "expired", timeout_s=LATE_TIMEOUT_S):
        buyer.drill.say(f"{buyer.name}: the price still holds; outages have moved its end")
    await buyer.pay(buyer.price_sat)


async def _fee_bump(buyer: Buyer) -> None:
    first = await buyer.pay(buyer.price_sat)
    await buyer.seen()
    await buyer.pay(buyer.price_sat, fee_sat=first.fee_sat * BUMPED)


async def _taken_away(buyer: Buyer) -> None:
    payment = await buyer.pay(buyer.price_sat)
    await buyer.seen()
    await buyer.drill.payer.send(await buyer.drill.payer.robbery(payment))


async def _double_spend(buyer: Buyer) -> None:
    # Under the lock no block comes between the two.
    async with buyer.drill.chain.lock:
        payment = await buyer.pay(buyer.price_sat)
        await buyer.seen()
        rival = await buyer.drill.payer.robbery(payment)
        await buyer.drill.world.mine_exactly([rival.raw], sync=False)


async def _nothing(buyer: Buyer) -> None:
    return


WAYS: dict[Paying, Callable[[Buyer], Awaitable[None]]] = {
    Paying.EXACT: _exact,
    Paying.TWO_PAYMENTS: _two_payments,
    Paying.TOP_UP: _top_up,
    Paying.TOO_LITTLE: _too_little,
    Paying.TIP: _tip,
    Paying.OVER: _over,
    Paying.LATE: _late,
    Paying.FEE_BUMP: _fee_bump,
    Paying.TAKEN_AWAY: _taken_away,
    Paying.DOUBLE_SPEND: _double_spend,
    Paying.REORG_ROBBERY: _exact_and_seen,
    Paying.NOTHING: _nothing,
}
