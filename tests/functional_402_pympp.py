"""An unmodified client of the `Payment` scheme buys a file on the real node, and pays exactly once.

The client is pympp's; all that is ours is a payment method of a dozen lines that pays a recipient once, from
an independent wallet. The server sees the payment through its own node and serves when the block is mined.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import mpp
import pytest
from mpp.client import Mpp
from mpp.methods import Method
from mpp.runtime import ClientMethod, CredentialParams
from pydantic import BaseModel

from bitcache.api.payment_gate import HELD_PER_INVOICE_MAX
from regtest.node import wait_until
from regtest.wallet import BitWallet, Payment
from regtest.world import RegtestWorld
from tests.till import Sold, Till, open_till

FEE_SAT = 5_000
CLIENT_S = 40
"""How long a client waits for an answer: longer than the server holds a request."""


class ChargeRequest(BaseModel):
    amount: str
    currency: str
    recipient: str


class ChargePayload(BaseModel):
    invoiceId: str  # noqa: N815


def credential_of(challenge: mpp.Challenge) -> str:
    payload = {"invoiceId": challenge.request["externalId"]}
    return str(mpp.Credential(challenge=challenge.to_echo(), payload=payload).to_authorization())


@dataclass
class OncePerRecipient:
    """A payment method as the protocol asks for it: paid recipients are not paid again."""

    wallet: BitWallet
    paid: dict[str, Payment] = field(default_factory=dict)
    asked: int = 0
    credential: str = ""
    """The last one made."""

    def method(self) -> ClientMethod:
        charge = Method(
            name="bitcoin", intent="charge", request_model=ChargeRequest, payload_model=ChargePayload
        )
        return ClientMethod(method=charge, create_credential=self._create_credential)

    async def _create_credential(self, params: CredentialParams) -> str:
        self.asked += 1
        request = params.challenge.request
        address, amount_sat = request["recipient"], int(request["amount"])
        if address not in self.paid:
            self.paid[address] = await self.wallet.pay([(address, amount_sat)], fee_sat=FEE_SAT)
        self.credential = credential_of(params.challenge)
        return self.credential


@pytest.fixture
async def till(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(world, tmp_path) as till:
        yield till


@pytest.fixture
async def payer(world: RegtestWorld) -> OncePerRecipient:
    return OncePerRecipient(await BitWallet.create(world))


def url(till: Till, sold: Sold) -> str:
    return till.server.url + sold.content


async def mine_when_seen(till: Till, payer: OncePerRecipient) -> None:
    """One block, as soon as our node has the payment."""
    assert till.world is not None

    async def paid() -> bool:
        return bool(payer.paid)

    await wait_until(paid, "the client to pay")
    await till.world.mempool_wait(next(iter(payer.paid.values())).txid)
    await till.world.mine()


async def node_is_seen(till: Till, challenge: mpp.Challenge, *, online: bool) -> None:
    """Wait until the server thinks so of its node."""

    async def told() -> bool:
        async with till.http.get(challenge.request["methodDetails"]["statusUrl"]) as answer:
            return bool((await answer.json())["node_online"]) is online

    await wait_until(told, f"the node to be {'online' if online else 'offline'}")


async def received(till: Till, address: str) -> Any:
    """(sat, number of outputs) that ever came to `address`, as the server's node sees the chain."""
    assert till.world is not None
    found = await till.world.server.rpc("scantxoutset", "start", [f"addr({address})"])
    return round(found["total_amount"] * 100_000_000), len(found["unspents"])


async def test_an_unmodified_client_buys_a_file_and_pays_once(till: Till, payer: OncePerRecipient) -> None:
    sold = await till.offer(price_sat=5_000)
    async with Mpp(methods=[payer.method()]) as client:
        mining = asyncio.create_task(mine_when_seen(till, payer))
        response = await client.fetch(url(till, sold))
        await mining
    assert response.status_code == 200
    assert response.content == sold.blobs[sold.file_id]
    assert (len(payer.paid), payer.asked) == (1, 1), "the held request spared the client a second challenge"
    address, payment = payer.paid.popitem()
    receipt = mpp.Receipt.from_payment_receipt(response.headers["payment-receipt"])
    assert receipt.reference == f"{payment.txid}:0"
    assert await received(till, address) == (5_000, 1)
    assert await _sales(till) == 1


async def test_unconfirmed_money_is_503_without_challenge_and_the_credential_stays_good(
    till: Till, payer: OncePerRecipient
) -> None:
    sold = await till.offer(price_sat=5_000)
    till.server.services.gate.hold_s = 2
    async with Mpp(methods=[payer.method()]) as client:
        response = await client.fetch(url(till, sold))
    assert response.status_code == 503
    assert response.json()["type"] == "/problems/payment-unconfirmed"
    assert int(response.headers["retry-after"]) > 0
    assert "www-authenticate" not in response.headers

    async with httpx.AsyncClient(headers={"Authorization": payer.credential}, timeout=CLIENT_S) as again:
        for _ in range(2):
            assert (await again.get(url(till, sold))).status_code == 503
        assert till.world is not None
        till.server.services.gate.hold_s = 20
        await till.world.mine()
        assert (await again.get(url(till, sold))).content == sold.blobs[sold.file_id]
        ranged = await again.get(url(till, sold), headers={"Range": "bytes=0-99"})
        assert (ranged.status_code, ranged.content) == (206, sold.blobs[sold.file_id][:100])
    assert len(payer.paid) == 1


async def test_underpaid_is_never_asked_from_the_start_again(till: Till, payer: OncePerRecipient) -> None:
    sold = await till.offer(price_sat=5_000)
    till.server.services.gate.hold_s = 0.1
    assert till.world is not None
    async with httpx.AsyncClient(timeout=CLIENT_S) as http:
        first = await http.get(url(till, sold), headers={"Accept-Payment": "bitcoin/charge"})
        challenge = mpp.Challenge.from_www_authenticate(first.headers["www-authenticate"])
        paid = {"Authorization": credential_of(challenge), "Accept-Payment": "bitcoin/charge"}

        other = await till.offer()
        foreign = await http.get(url(till, other), headers=paid)
        assert foreign.json()["type"] == "/problems/grant-foreign"

        # Nothing came: the very same challenge.
        same = await http.get(url(till, sold), headers=paid)
        assert same.status_code == 402
        assert same.headers["www-authenticate"] == first.headers["www-authenticate"]

        payment = await payer.wallet.pay([(challenge.request["recipient"], 3_000)])
        await till.world.mempool_wait(payment.txid)
        till.server.services.gate.hold_s = 5
        partial = await http.get(url(till, sold), headers=paid)
        assert partial.status_code == 503
        assert "2000 sat" in partial.json()["detail"]


async def test_one_unpaid_challenge_cannot_take_every_waiting_place(till: Till) -> None:
    sold = await till.offer(price_sat=5_000)
    async with httpx.AsyncClient(timeout=CLIENT_S) as http:
        first = await http.get(url(till, sold), headers={"Accept-Payment": "bitcoin/charge"})
        credential = credential_of(mpp.Challenge.from_www_authenticate(first.headers["www-authenticate"]))
        till.server.services.gate.hold_s = 3

        async def answered_after() -> float:
            started_at = time.monotonic()
            response = await http.get(url(till, sold), headers={"Authorization": credential})
            assert response.status_code == 402
            return time.monotonic() - started_at

        waits = sorted(await asyncio.gather(*(answered_after() for _ in range(HELD_PER_INVOICE_MAX + 2))))
    assert [wait < 2 for wait in waits] == [True, True] + [False] * HELD_PER_INVOICE_MAX


async def test_expires_ends_paying_and_never_claiming(till: Till, payer: OncePerRecipient) -> None:
    sold = await till.offer(price_sat=5_000)
    till.server.services.gate.hold_s = 0.1
    assert till.world is not None
    async with httpx.AsyncClient(timeout=CLIENT_S) as http:
        asked = [
            await http.get(url(till, sold), headers={"Accept-Payment": "bitcoin/charge"}) for _ in range(2)
        ]
        challenges = [mpp.Challenge.from_www_authenticate(one.headers["www-authenticate"]) for one in asked]
        credentials = [credential_of(challenge) for challenge in challenges]
        await payer.wallet.pay([(challenges[0].request["recipient"], 5_000)])
        await till.world.mine()
        till.server.services.gate.hold_s = 20
        paid = await http.get(url(till, sold), headers={"Authorization": credentials[0]})
        assert paid.status_code == 200

        till.server.clock.advance(till.server.services.config.price_hold_s + 60)
        till.server.services.gate.hold_s = 0.1
        again = await http.get(url(till, sold), headers={"Authorization": credentials[0]})
        assert again.status_code == 200, "what is paid stays paid"
        await node_is_seen(till, challenges[1], online=True)
        stale = await http.get(url(till, sold), headers={"Authorization": credentials[1]})
        assert stale.status_code == 402
        fresh = mpp.Challenge.from_www_authenticate(stale.headers["www-authenticate"])
        assert "externalId" not in fresh.request, "paying begins anew, with an invitation"


async def test_while_the_node_is_blind_nobody_is_told_that_nothing_came(
    own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_till(own_world, tmp_path) as till, httpx.AsyncClient(timeout=CLIENT_S) as http:
        sold = await till.offer(price_sat=5_000)
        till.server.services.gate.hold_s = 0.1
        first = await http.get(url(till, sold), headers={"Accept-Payment": "bitcoin/charge"})
        challenge = mpp.Challenge.from_www_authenticate(first.headers["www-authenticate"])
        paid = {"Authorization": credential_of(challenge)}
        await own_world.server_out()
        await node_is_seen(till, challenge, online=False)
        blind = await http.get(url(till, sold), headers=paid)
        assert (blind.status_code, blind.json()["type"]) == (503, "/problems/node-offline")
        assert "www-authenticate" not in blind.headers
        await own_world.server_in()
        await node_is_seen(till, challenge, online=True)
        assert (await http.get(url(till, sold), headers=paid)).status_code == 402


async def test_challenges_fall_under_the_same_cap_as_invoices(world: RegtestWorld, tmp_path: Path) -> None:
    async with open_till(world, tmp_path, open_invoices_per_client_max=2) as till:
        sold = await till.offer(price_sat=5_000)
        async with httpx.AsyncClient(headers={"Accept-Payment": "bitcoin/charge"}) as http:
            statuses = [(await http.get(url(till, sold))).status_code for _ in range(3)]
    assert statuses == [402, 402, 429]


async def _sales(till: Till) -> int:
    headers = {"Authorization": f"Bearer {till.account.token}"}
    async with till.http.get("/api/v1/invoices", headers=headers) as answer:
        return len((await answer.json())["items"])
