"""Every way a payment can go, seen through the HTTP API. Each case says what happened, or raises."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from regtest.node import wait_until
from regtest.served import Answer, ServedBitcache
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld

PRICE_SAT = 5_000
SHORT_PRICE_HOLD_S = 5
NOT_PAID = (402, 503)
"""402: nothing came. 503 `payment-unconfirmed`: something did, so the buyer is not asked to pay again."""

State = Mapping[str, Any]


@dataclass(frozen=True)
class Sale:
    """One invoice of the stall, and the secret that claims it."""

    invoice_id: str
    claim_secret: str
    address: str


class Stall:
    """One small offer that buyers pay in every way. Each case buys it anew."""

    def __init__(
        self, server: ServedBitcache, seller_home: Path, content: str, offer_id: str, payer: BitWallet
    ) -> None:
        self.server = server
        self.payer = payer
        self.earned_sat = 0
        """What the cases so far settled, by their own count."""
        self._seller_home = seller_home
        self._content = content
        self._invoices = f"/offers/{offer_id}/invoices"

    @classmethod
    async def open(cls, server: ServedBitcache, seller_home: Path, folder: Path) -> Stall:
        file = folder / "small.txt"
        file.write_text("A small file, sold many times.\n")
        upload = await server.command_json(
            "upload", str(file), "--price", f"{PRICE_SAT}sat", home=seller_home
        )
        offer_id = urlsplit(upload["link"]).path.rsplit("/", 1)[-1]
        offer = (await server.http("GET", f"/offers/{offer_id}")).json()
        content = f"/offers/{offer_id}/files/{offer['files'][0]['file_id']}/content"
        # Deep enough that no case undoes the payer's own coins.
        payer = await BitWallet.create(server.world, coin_sat=200_000, coin_count=40)
        await server.world.mine(6)
        stall = cls(server, seller_home, content, offer_id, payer)
        stall.earned_sat = await stall.received_sat()
        return stall

    @property
    def world(self) -> RegtestWorld:
        return self.server.world

    async def buy(self) -> Sale:
        secret = secrets.token_bytes(32)
        answer = await self.request_invoice(secret)
        assert answer.status == 201, f"no invoice: {answer.status} {answer.body!r}"
        invoice = answer.json()
        return Sale(invoice["invoice_id"], _text(secret), invoice["address"])

    async def request_invoice(self, secret: bytes) -> Answer:
        claim_hash = _text(hashlib.sha256(secret).digest())
        return await self.server.http("POST", self._invoices, body={"claim_hash": claim_hash})

    async def state(self, sale: Sale) -> State:
        state: State = (await self.server.http("GET", f"/invoices/{sale.invoice_id}")).json()
        return state

    async def until(self, sale: Sale, holds: Callable[[State], bool], what: str) -> State:
        """The invoice once it holds."""
        latest: State = {}

        async def check() -> bool:
            nonlocal latest
            latest = await self.state(sale)
            return holds(latest)

        await wait_until(check, f"the invoice to be {what}")
        return latest

    async def settle(self, sale: Sale) -> State:
        """Mine a block and wait for the sale to settle; the books must follow."""
        await self.world.mine()
        state = await self.until(sale, lambda s: bool(s["status"] == "settled"), "settled")
        assert await self.download_status(sale) == 200, "settled, but no download"
        return state

    async def download_status(self, sale: Sale) -> int:
        """What the server answers to who claims and asks for the bytes now."""
        claimed = await self.server.http(
            "POST", f"/invoices/{sale.invoice_id}/claim", body={"claim_secret": sale.claim_secret}
        )
        if claimed.status != 200:
            return claimed.status
        answer = await self.server.http("GET", self._content, token=claimed.json()["grant_token"])
        return answer.status

    async def received_sat(self) -> int:
        earnings = await self.server.command_json("earnings", home=self._seller_home)
        return int(earnings["received_sat"])

    async def check_books(self) -> str:
        received = await self.received_sat()
        assert received == self.earned_sat, (
            f"earnings show {received} sat, the cases settled {self.earned_sat}"
        )
        return f"{received:,} sat received, exactly what was settled"


async def underpaid(stall: Stall) -> str:
    sale = await stall.buy()
    await stall.payer.pay([(sale.address, PRICE_SAT - 2_000)])
    state = await stall.until(sale, lambda s: "partial" in s["flags"], "partly paid")
    assert state["due_sat"] == 2_000, state
    assert state["address"] == sale.address, "the same address"
    await stall.payer.pay([(sale.address, 2_000)])
    await stall.settle(sale)
    stall.earned_sat += PRICE_SAT
    return "2,000 sat due on the same address; topped up, settled"


async def overpaid(stall: Stall) -> str:
    sale = await stall.buy()
    await stall.payer.pay([(sale.address, PRICE_SAT + 3_000)])
    state = await stall.settle(sale)
    assert state["owed_sat"] == 3_000, state
    stall.earned_sat += PRICE_SAT
    return "settled; 3,000 sat owed to the buyer"


async def two_outputs(stall: Stall) -> str:
    sale = await stall.buy()
    await stall.payer.pay([(sale.address, 2_000), (sale.address, PRICE_SAT - 2_000)])
    state = await stall.settle(sale)
    assert len(state["outputs"]) == 2, state
    stall.earned_sat += PRICE_SAT
    return "summed, settled"


async def fee_bump(stall: Stall) -> str:
    sale = await stall.buy()
    first = await stall.payer.pay([(sale.address, PRICE_SAT)], fee_sat=500)
    await stall.until(sale, lambda s: bool(s["status"] == "seen"), "seen")
    bumped = await stall.payer.pay([(sale.address, PRICE_SAT)], fee_sat=5_000, inputs=first.inputs)
    state = await stall.until(
        sale,
        lambda s: any(o["txid"] == bumped.txid and o["presence"] == "mempool" for o in s["outputs"]),
        "paid by the replacement",
    )
    assert (state["status"], state["received_sat"]) == ("seen", PRICE_SAT), state
    await stall.settle(sale)
    stall.earned_sat += PRICE_SAT
    return "never counted twice, settled"


async def replaced(stall: Stall) -> str:
    sale = await stall.buy()
    first = await stall.payer.pay([(sale.address, PRICE_SAT)], fee_sat=500)
    await stall.until(sale, lambda s: bool(s["status"] == "seen"), "seen")
    await stall.payer.pay([(stall.payer.address, PRICE_SAT)], fee_sat=5_000, inputs=first.inputs)
    state = await stall.until(sale, lambda s: "replaced" in s["flags"], "replaced")
    assert (state["status"], state["received_sat"]) == ("open", 0), state
    await stall.world.mine()
    assert await stall.download_status(sale) in NOT_PAID
    return "falls back to open, nothing unlocked"


async def double_spend(stall: Stall) -> str:
    sale = await stall.buy()
    first = await stall.payer.pay([(sale.address, PRICE_SAT)])
    await stall.until(sale, lambda s: bool(s["status"] == "seen"), "seen")
    rival = await stall.payer.pay(
        [(stall.payer.address, PRICE_SAT)], inputs=first.inputs, fee_sat=2_000, broadcast=False
    )
    await stall.world.mine_exactly([rival.raw])
    state = await stall.until(sale, lambda s: "conflicted" in s["flags"], "double-spent")
    assert state["received_sat"] == 0, state
    assert await stall.download_status(sale) in NOT_PAID
    return "payment gone, nothing unlocked, nothing booked"


async def evicted(stall: Stall) -> str:
    sale = await stall.buy()
    payment = await stall.payer.pay([(sale.address, PRICE_SAT)])
    await stall.until(sale, lambda s: bool(s["status"] == "seen"), "seen")
    await stall.world.evict(payment.txid, everywhere=True)
    await stall.world.mempool_wait(payment.txid)
    await stall.world.mempool_wait(payment.txid, node=stall.world.outside)
    await stall.settle(sale)
    stall.earned_sat += PRICE_SAT
    return "both nodes forgot it; the server sent it again, settled"


async def reorg_and_back(stall: Stall) -> str:
    sale = await stall.buy()
    payment = await stall.payer.pay([(sale.address, PRICE_SAT)])
    await stall.world.mempool_wait(payment.txid)
    await stall.settle(sale)
    before = await stall.received_sat()
    await stall.world.reorg(1, drop=[payment.txid])
    state = await stall.until(sale, lambda s: bool(s["suspended"]), "suspended")
    assert "reorged" in state["flags"], state
    assert await stall.download_status(sale) == 403, "the grant was not withdrawn"
    reversed_sat = before - await stall.received_sat()
    assert reversed_sat == PRICE_SAT, f"the ledger reversed {reversed_sat} sat"
    await stall.world.mempool_wait(payment.txid, node=stall.world.outside)
    await stall.settle(sale)
    stall.earned_sat += PRICE_SAT
    return "grant withdrawn (403), ledger reversed; mined again: restored"


async def node_out(stall: Stall) -> str:
    paid_before = await stall.buy()
    await stall.payer.pay([(paid_before.address, PRICE_SAT)])
    await stall.settle(paid_before)
    stall.earned_sat += PRICE_SAT
    await stall.world.server_out()
    try:
        await stall.until(paid_before, lambda s: not s["node_online"], "warned of the outage")
        refused = await stall.request_invoice(secrets.token_bytes(32))
        assert (refused.status, refused.json()["type"]) == (503, "/problems/node-offline"), refused
        assert await stall.download_status(paid_before) == 200, "a paid download stopped with the node"
    finally:
        await stall.world.server_in()
    sale = await _as_soon_as_possible(stall)
    await stall.payer.pay([(sale.address, PRICE_SAT)])
    await stall.settle(sale)
    stall.earned_sat += PRICE_SAT
    return "no new invoices (503), paid downloads go on; back: sells again"


async def paid_while_down(stall: Stall) -> str:
    sale = await stall.buy()
    await stall.server.stop()
    await stall.payer.pay([(sale.address, PRICE_SAT)])
    await stall.world.mine(2)
    await stall.server.start()
    await stall.until(sale, lambda s: bool(s["status"] == "settled"), "settled")
    assert await stall.download_status(sale) == 200
    stall.earned_sat += PRICE_SAT
    return "found in the blocks it missed, settled"


async def late(stall: Stall) -> str:
    stall.server.settings["PRICE_HOLD_S"] = str(SHORT_PRICE_HOLD_S)
    await stall.server.restart()
    sale = await stall.buy()
    state = await stall.until(sale, lambda s: bool(s["status"] == "expired"), "expired")
    assert state["address"] is None, "an expired invoice that got nothing hides its address"
    await stall.payer.pay([(sale.address, PRICE_SAT)])
    await stall.until(sale, lambda s: "late" in s["flags"], "paid late")
    await stall.settle(sale)
    stall.earned_sat += PRICE_SAT
    return "expired, address hidden; late money got today's price, settled"


async def _as_soon_as_possible(stall: Stall) -> Sale:
    async with asyncio.timeout(30):
        while True:
            try:
                return await stall.buy()
            except AssertionError:
                await asyncio.sleep(0.1)


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


CASES: tuple[tuple[str, Callable[[Stall], Awaitable[str]]], ...] = (
    ("underpaid, then topped up", underpaid),
    ("overpaid", overpaid),
    ("two outputs", two_outputs),
    ("a fee bump that still pays", fee_bump),
    ("a replacement that no longer pays", replaced),
    ("a double spend in a block", double_spend),
    ("evicted from the mempool", evicted),
    ("a reorg after unlocking, then mined again", reorg_and_back),
    ("the node is stopped and comes back", node_out),
    ("paid while the server was down", paid_while_down),
    ("paid late", late),
)
