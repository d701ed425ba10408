"""What sellers and buyers ask for over HTTP, and what they were told.

Every request has its key before it is made, so that one cut off by a death is made again and is the same.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import aiohttp

from bitcache.ids import new_id
from payments import ledger
from payments.payout import Kind, Payout
from storage import base64url
from tests.payout_soak.evidence import AskedPayout
from tests.payout_soak.house import RETRY_S, TRIES_MAX, House
from tests.payout_soak.people import Buyer, Seller
from tests.payout_soak.steps import Bad


class Answer(NamedTuple):
    status: int
    body: Any

    @property
    def problem(self) -> str:
        return str(self.body["type"]).removeprefix("/problems/")


class FrontDesk:
    """Where people stand who want money out."""

    def __init__(self, house: House, http: aiohttp.ClientSession) -> None:
        self._house = house
        self._http = http
        self.asked: dict[str, AskedPayout] = {}
        """Payouts that somebody asked for and was told to have been taken."""
        self.refused = 0

    async def ask(self, seller: Seller, *, percent: int, twice: bool, bad: Bad | None, ours: str) -> str:
        """A seller's payout; `ours` is an address of the operator's wallet."""
        balance = await self._call("GET", "/balance", seller=seller)
        payable = int(balance.body["payable_sat"])
        amount_sat = payable * percent // 100
        if bad is Bad.OURS:
            patched = await self._call("PATCH", "/account", seller=seller, body={"payout_address": ours})
            if patched.status < 400:
                self._house.blame(f"seller {seller.number} may be paid to {ours}, which is the operator's")
            return f"payouts to {ours}: {patched.status} {patched.problem}"
        wrong = {Bad.ABOVE: max(payable, 0) + 1_000, Bad.DUST: 200, Bad.NEGATIVE: -1_000}
        if bad is not None:
            amount_sat = wrong[bad]
        key, body = new_id(), {"amount_sat": amount_sat}
        calls = [self._call("POST", "/payouts", seller=seller, body=body, key=key) for _ in range(1 + twice)]
        told = await asyncio.gather(*calls)
        ids = {one.body["payout_id"] for one in told if one.status == 201}
        for one in told:
            if one.status == 201:
                self.note(one.body["payout_id"], Kind.SELLER, ledger.seller(seller.id), one.body)
        if len(ids) > 1:
            self._house.blame(f"seller {seller.number} asked once, and has the payouts {ids}")
        if ids and bad is not None:
            self._house.blame(f"a payout of {amount_sat:,} of {payable:,} sat was taken: {bad}")
        self.refused += not ids
        words = [one.body["payout_id"] if one.status == 201 else one.problem for one in told]
        return f"{amount_sat:,} of {payable:,} sat: {words}"

    async def plan(self, seller: Seller, threshold_sat: int | None) -> str:
        body = {"payout_threshold_sat": threshold_sat}
        return f"{(await self._call('PATCH', '/account', seller=seller, body=body)).status}"

    async def claim(self, buyer: Buyer, *, elsewhere: bool) -> str:
        told = await self._claim(buyer, buyer.refund_address or await self._house.new_address())
        if elsewhere and buyer.refund_address is not None:
            first = buyer.refund_address
            told += "; again: " + await self._claim(buyer, await self._house.new_address())
            if buyer.refund_address != first:
                self._house.blame(f"buyer {buyer.number} could change the address of a refund")
        return told

    async def cancel(self, payout: Payout, seller: Seller | None) -> str:
        if seller is None or payout.kind is not Kind.SELLER:
            return "not a seller's"
        answer = await self._call("DELETE", f"/payouts/{payout.id}", seller=seller)
        return f"{answer.status}" + ("" if answer.status == 204 else f" {answer.problem}")

    async def decide_refund(self, payout: Payout, seller: Seller, *, approves: bool) -> str:
        what, body = ("approve", None) if approves else ("decline", {"reason": "not my fault"})
        answer = await self._call("POST", f"/refunds/{payout.id}/{what}", seller=seller, body=body)
        return str(answer.body["state"]) if answer.status == 200 else f"{answer.status} {answer.problem}"

    def note(self, payout_id: str, kind: Kind, account: str, body: Any) -> None:
        """It was told to have been taken."""
        asked = AskedPayout(payout_id, kind, account, int(body["amount_sat"]), str(body["address"]))
        if self.asked.setdefault(payout_id, asked) != asked:
            self._house.blame(f"{asked} was {self.asked[payout_id]}")

    async def _call(
        self,
        method: str,
        path: str,
        *,
        seller: Seller | None = None,
        body: object = None,
        key: str | None = None,
    ) -> Answer:
        """Of the HTTP API. One that a dead server cut off is made again; only a bug is answered 500."""
        headers = {"Authorization": f"Bearer {seller.token}"} if seller else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        for _ in range(TRIES_MAX):
            await self._house.supervise()
            try:
                async with self._http.request(method, f"/api/v1{path}", json=body, headers=headers) as answer:
                    if answer.status == 500:
                        self._house.blame(f"{method} {path} was answered 500: {await answer.text()}")
                    return Answer(answer.status, await answer.json() if answer.status != 204 else None)
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(RETRY_S)
        raise AssertionError("the server never answered")

    async def _claim(self, buyer: Buyer, address: str) -> str:
        secret = base64url.encode(buyer.bought.claim_secret)
        body = {"address": address, "claim_secret": secret}
        answer = await self._call("POST", f"/invoices/{buyer.invoice_id}/refund", body=body)
        if answer.status != 200:
            self.refused += 1
            return f"{answer.status} {answer.problem}"
        refund = answer.body["refund"]
        buyer.refund_address = str(refund["address"])
        for one in refund["refunds"]:
            asked = {"amount_sat": one["amount_sat"], "address": refund["address"]}
            self.note(one["refund_id"], Kind.REFUND, ledger.owed(buyer.invoice_id), asked)
        return f"{[(one['amount_sat'], one['state']) for one in refund['refunds']]} to {refund['address']}"
