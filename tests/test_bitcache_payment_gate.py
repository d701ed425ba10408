"""What the gate answers where no money moves: invitations, bound challenges, forgeries, free offers."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import mpp
import pytest
from sqlalchemy import func, select

from bitcache.api.payment_gate import Ask, Verdict, reference_of, verdict
from bitcache.api.wire import InvoiceView, PolicyView, ReceivedOutputView
from payments.ports import Transaction
from payments.tables import invoices
from storage import base64url
from tests.till import Sold, Till, open_nodeless_till, pretend_node_online

ACCEPT = {"Accept-Payment": "bitcoin/charge"}


@pytest.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        till.server.services.gate.hold_s = 0.05
        yield till


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Any
    body: bytes

    @property
    def problem(self) -> str:
        return str(json.loads(self.body)["type"]).removeprefix("/problems/")

    @property
    def challenge(self) -> mpp.Challenge:
        return mpp.Challenge.from_www_authenticate(self.headers["WWW-Authenticate"])


async def get(till: Till, sold: Sold, *, method: str = "GET", **headers: str) -> Answered:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with till.http.request(method, sold.content, headers=named) as answer:
        return Answered(answer.status, answer.headers, await answer.read())


def credential(challenge: mpp.Challenge, **payload: str) -> str:
    paid = {"invoiceId": str(challenge.request.get("externalId", "")), **payload}
    return str(mpp.Credential(challenge=challenge.to_echo(), payload=paid).to_authorization())


# --- invitations ------------------------------------------------------------------------------------------


async def test_without_accept_payment_nothing_is_created(till: Till) -> None:
    sold = await till.offer(price_sat=5_000)
    answer = await get(till, sold)
    assert (answer.status, answer.problem) == (402, "payment-required")
    assert answer.challenge.request == {
        "amount": "5000",
        "currency": "sat",
        "methodDetails": {
            "confirmations": 1,
            "invoiceUrl": f"{till.server.api}/offers/{sold.offer_id}/invoices",
            "network": "regtest",
        },
    }
    assert await till.server.services.database.read(_count_invoices) == 0


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("HEAD", {}),
        ("GET", {"Range": "bytes=0-1"}),
        ("GET", {"Accept-Payment": "tempo/charge, bitcoin/session"}),
    ],
)
async def test_neither_head_nor_range_nor_others_get_an_invoice(
    till: Till, method: str, headers: dict[str, str]
) -> None:
    await pretend_node_online(till)
    sold = await till.offer(price_sat=0)
    answer = await get(till, sold, method=method, **{**ACCEPT, **headers})
    assert answer.status == 402
    assert "externalId" not in answer.challenge.request
    assert await till.server.services.database.read(_count_invoices) == 0


async def test_an_invitation_is_no_credential(till: Till) -> None:
    sold = await till.offer(price_sat=5_000)
    challenge = (await get(till, sold)).challenge
    answer = await get(till, sold, Authorization=credential(challenge))
    assert (answer.status, answer.problem) == (401, "credential-invalid")


async def test_an_offer_that_does_not_sell_demands_nothing(till: Till) -> None:
    closed = await till.offer(closed_at=1)
    assert (await get(till, closed)).problem == "offer-unavailable"
    assert (await get(till, closed, **ACCEPT)).problem == "offer-unavailable"
    taken_down = await till.offer(taken_down_at=1)
    assert (await get(till, taken_down)).status == 451


async def test_no_challenge_that_nobody_could_see_paid(till: Till) -> None:
    sold = await till.offer(price_sat=5_000)
    answer = await get(till, sold, **ACCEPT)
    assert (answer.status, answer.problem) == (503, "node-offline")
    assert "WWW-Authenticate" not in answer.headers


# --- a free offer goes the whole way ----------------------------------------------------------------------


async def test_a_free_challenge_opens_content_and_key_again_and_again(till: Till) -> None:
    sold = await till.offer(price_sat=0)
    challenge = (await get(till, sold, **ACCEPT)).challenge
    assert challenge.request["amount"] == "0"
    assert "recipient" not in challenge.request
    paid = credential(challenge)
    for headers in ({}, {}, {"Range": "bytes=0-9"}):
        answer = await get(till, sold, Authorization=paid, **headers)
        assert answer.status == (206 if headers else 200)
        assert answer.body == sold.blobs[sold.file_id][: len(answer.body)]
        receipt = mpp.Receipt.from_payment_receipt(answer.headers["Payment-Receipt"])
        assert receipt.external_id == receipt.reference == challenge.request["externalId"]
    assert (await get(till, sold, method="HEAD", Authorization=paid)).status == 200
    assert await till.server.services.database.read(_count_invoices) == 1


async def test_the_echoed_challenge_claims_the_release_secret(till: Till) -> None:
    sold = await till.offer(price_sat=0)
    challenge = (await get(till, sold, **ACCEPT)).challenge
    other = (await get(till, sold, **ACCEPT)).challenge
    path = f"/api/v1/invoices/{challenge.request['externalId']}/claim"
    claims = [await _claim(till.http, path, credential(challenge)) for _ in range(2)]
    assert [status for status, _ in claims] == [200, 200]
    assert claims[0][1]["grant_id"] == claims[1][1]["grant_id"]
    assert claims[0][1]["release_secret"] is not None
    status, problem = await _claim(till.http, path, credential(other))
    assert (status, problem["type"]) == (403, "/problems/claim-refused")
    status, problem = await _claim(till.http, path, "Bearer x")
    assert (status, problem["type"]) == (422, "/problems/invalid-value")


async def test_a_credential_opens_its_own_offer_only(till: Till) -> None:
    sold, other = await till.offer(price_sat=0), await till.offer(price_sat=0)
    challenge = (await get(till, sold, **ACCEPT)).challenge
    assert (await get(till, other, Authorization=credential(challenge))).problem == "grant-foreign"


@pytest.mark.parametrize("wrong", ["id", "amount", "invoice", "garbage", "scheme"])
async def test_forgeries_are_401_and_never_a_challenge_to_pay(till: Till, wrong: str) -> None:
    sold = await till.offer(price_sat=0)
    challenge = (await get(till, sold, **ACCEPT)).challenge
    forged = {
        "id": credential(replace(challenge, id=base64url.encode(bytes(32)))),
        "amount": credential(
            mpp.Challenge.create(
                secret_key="guess",
                realm=challenge.realm,
                method="bitcoin",
                intent="charge",
                request=challenge.request,
                expires=challenge.expires,
            )
        ),
        "invoice": credential(challenge, invoiceId="a" * 26),
        "garbage": "Payment !!!",
        "scheme": "Basic Zm9vOmJhcg==",
    }[wrong]
    answer = await get(till, sold, Authorization=forged, **ACCEPT)
    assert answer.status == 401
    assert "Payment" not in answer.headers["WWW-Authenticate"]
    assert await till.server.services.database.read(_count_invoices) == 1


# --- the pure decisions -----------------------------------------------------------------------------------


def a_view(**changes: Any) -> InvoiceView:
    facts: dict[str, Any] = dict.fromkeys(InvoiceView.__struct_fields__, 0)
    facts.update(invoice_id="i" * 26, policy=PolicyView(), outputs=[], bytes_allowed=False, suspended=False)
    return InvoiceView(**{**facts, **changes})


def an_output(presence: Any, vout: int = 0) -> ReceivedOutputView:
    return ReceivedOutputView(
        txid="ab" * 32,
        vout=vout,
        amount_sat=1,
        confirmations=0,
        presence=presence,
        first_seen_at=0,
        height=None,
    )


@pytest.mark.parametrize("presence", ["block", "mempool", "missing", "conflicted", "gone"])
def test_any_output_at_all_means_never_402_again(presence: str) -> None:
    assert verdict(a_view(outputs=[an_output(presence)])) is Verdict.UNCONFIRMED


def test_verdicts() -> None:
    assert verdict(a_view()) is Verdict.UNPAID
    assert verdict(a_view(bytes_allowed=True)) is Verdict.ADMITTED
    assert verdict(a_view(suspended=True)) is Verdict.SUSPENDED
    for money in ([], [an_output("block")]):
        assert verdict(a_view(taken_down=True, outputs=money)) is Verdict.TAKEN_DOWN
    assert verdict(a_view(suspended=True, outputs=[an_output("gone")])) is Verdict.SUSPENDED


def test_the_receipt_names_the_deepest_kind_of_output() -> None:
    outputs = [an_output("gone", 0), an_output("mempool", 1), an_output("block", 2)]
    assert reference_of(a_view(outputs=outputs)) == f"{'ab' * 32}:2"
    assert reference_of(a_view(outputs=outputs[:2])) == f"{'ab' * 32}:1"
    assert reference_of(a_view(outputs=outputs[:1])) == "i" * 26


def test_only_a_whole_get_may_cost_an_address() -> None:
    def wants(method: str, **headers: str) -> bool:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Ask.of(method=method, headers=named, offer_id="o", client="c").wants_invoice

    assert wants("GET", Accept_Payment="bitcoin/charge")
    assert not wants("HEAD", Accept_Payment="bitcoin/charge")
    assert not wants("GET", Accept_Payment="bitcoin/charge", Range="bytes=0-")
    assert not wants("GET")


async def _claim(http: aiohttp.ClientSession, path: str, authorization: str) -> tuple[int, dict[str, Any]]:
    async with http.post(path, json={}, headers={"Authorization": authorization}) as answer:
        return answer.status, await answer.json()


async def _count_invoices(tx: Transaction) -> int:
    return int(await tx.scalar(select(func.count()).select_from(invoices)) or 0)
