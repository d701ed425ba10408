"""Every route x everybody: exactly the allowed ones pass; others are refused, change nothing, learn nothing.

MATRIX is the decision about each route. A route without a row fails: decide who may use it.
The operator has no row: nothing of theirs goes through the HTTP door, their commands open the data folder.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from bitcache.api.routing import Auth
from bitcache.api.table import ROUTES
from bitcache.ids import new_id
from regtest.world import RegtestWorld
from storage import base64url
from tests.authorisation import ADDRESS, Actor, Answered, Asked, Stage, fresh, open_stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

API = "/api/v1"
INVALID = "401 token-invalid"
BUYERS = ("buyer", "other buyer", "stale buyer", "suspended buyer", "buyer of what was taken down")
API_ACTORS = ("nobody", "cookie", "revoked", "stale web token", *BUYERS, "other seller", "owner")
PAGE_ACTORS = (
    "nobody",
    "ended session",
    "bearer",
    "buyer",
    "no form",
    "another's form",
    "other seller",
    "owner",
)
Expectation = Mapping[str, str]
"""Actor -> outcome."""
Prepare = Callable[[Stage], Awaitable[Mapping[str, str]]]


def anybody(outcome: str) -> Expectation:
    return dict.fromkeys(API_ACTORS, outcome)


def sellers(owner: str, other: str) -> Expectation:
    """API tokens only: neither cookies nor grants."""
    return {
        "nobody": "401 token-missing",
        "cookie": "401 token-missing",
        "revoked": INVALID,
        "stale web token": INVALID,
        **dict.fromkeys(BUYERS, INVALID),
        "other seller": other,
        "owner": owner,
    }


def own(outcome: str) -> Expectation:
    """The owner's; for another seller it is not there."""
    return sellers(outcome, "404 not-found")


def each_their_own(outcome: str) -> Expectation:
    """What the caller has: another seller gets theirs."""
    return sellers(outcome, outcome)


CONTENT: Expectation = {
    "nobody": "402 payment-required",
    "cookie": "402 payment-required",
    "revoked": INVALID,
    "stale web token": INVALID,
    "buyer": "200",
    "other buyer": "403 grant-foreign",
    "stale buyer": INVALID,
    "suspended buyer": "403 grant-suspended",
    "buyer of what was taken down": "451 taken-down",
    "other seller": INVALID,
    # Not even the seller: they have the files.
    "owner": INVALID,
}


def page(outcome: str) -> Expectation:
    """A page for everybody."""
    return dict.fromkeys(PAGE_ACTORS, outcome)


def form(outcome: str) -> Expectation:
    """A form for everybody, sent from its own page."""
    return {**page(outcome), "no form": "403", "another's form": "403"}


def sellers_page(outcome: str, refused: str = "200 sign-in") -> Expectation:
    """A page of who is signed in by a session's cookie, about what is theirs."""
    return {**page(outcome), **dict.fromkeys(("nobody", "ended session", "bearer", "buyer"), refused)}


def sellers_form(outcome: str, other: str) -> Expectation:
    return {
        **sellers_page(outcome, "401 sign-in"),
        "no form": "403",
        "another's form": "403",
        "other seller": other,
    }


def own_form(outcome: str) -> Expectation:
    return sellers_form(outcome, "404")


def each_their_own_form(outcome: str) -> Expectation:
    return sellers_form(outcome, outcome)


@dataclass(frozen=True)
class Row:
    expect: Expectation
    prepare: Prepare | None = None
    """Makes what the request is about."""
    body: Any = None
    octets: bytes | None = None
    headers: Mapping[str, str] | None = None
    form: str = "seller"
    fields: Mapping[str, str] | None = None


def of_stage(stage: Stage) -> Mapping[str, str]:
    return {"offer_id": stage.sold.offer_id, "file_id": stage.sold.file_id, "invoice_id": stage.bought.id}


async def wallet(stage: Stage) -> Mapping[str, str]:
    return {"descriptor": stage.descriptor}


async def sold(stage: Stage) -> Mapping[str, str]:
    return of_stage(stage)


async def empty_file(stage: Stage) -> Mapping[str, str]:
    return await stage.file(part=False)


async def whole_file(stage: Stage) -> Mapping[str, str]:
    return await stage.file(complete=True)


async def owners_token(stage: Stage) -> Mapping[str, str]:
    return {"token": stage.owner.token}


ZERO_PART = {"Bitcache-Chunk-Digests": "zQDiksWXDTxeLw_6UXHlVbxGv8T63ftKQYtoQLhueaM"}
SESSION = dict.fromkeys(("id", "realm", "method", "intent", "request", "expires"), "x")
PRICE = {"kind": "fixed", "amount_msat": 0}
TERMS = {"price_sat": "0", "confirmations": "1"}
MATRIX: Mapping[str, Row] = {
    "GET /healthz": Row(anybody("200")),
    "GET /readyz": Row(anybody("200")),
    "GET /metrics": Row(anybody("200")),
    f"GET {API}/openapi.json": Row(anybody("200")),
    # Accounts. Registration is closed here, so opening one is the operator's.
    f"POST {API}/accounts": Row(anybody("403 registration-closed"), body={"name": "me"}),
    f"POST {API}/tokens": Row(each_their_own("201"), body={"label": "x"}),
    f"DELETE {API}/tokens/{{token_id}}": Row(own("204"), Stage.token),
    f"GET {API}/account": Row(each_their_own("200")),
    f"PATCH {API}/account": Row(each_their_own("200"), wallet, body={"payout_descriptor": "$descriptor"}),
    f"POST {API}/account/payout-preview": Row(
        each_their_own("200"), wallet, body={"payout_descriptor": "$descriptor"}
    ),
    # Goods.
    f"POST {API}/files": Row(each_their_own("201"), body={"size_bytes": 100}),
    f"GET {API}/files/{{file_id}}": Row(own("200"), Stage.file),
    f"PUT {API}/files/{{file_id}}/parts/{{part_no}}": Row(
        own("204"), empty_file, octets=bytes(100), headers=ZERO_PART
    ),
    f"POST {API}/files/{{file_id}}/complete": Row(own("200"), Stage.file, body={"root": "$root"}),
    f"DELETE {API}/files/{{file_id}}": Row(own("204"), Stage.file),
    f"POST {API}/parcels": Row(
        own("201"), whole_file, body={"files": [{"file_id": "$file_id", "wrapped_key": "A" * 80}]}
    ),
    f"GET {API}/parcels": Row(each_their_own("200"), Stage.open_parcel),
    f"POST {API}/parcels/{{parcel_id}}/seal": Row(
        own("200"),
        Stage.open_parcel,
        body={"metadata": "AAAA", "release_secret": base64url.encode(bytes(32))},
    ),
    f"GET {API}/parcels/{{parcel_id}}": Row(own("200"), Stage.open_parcel),
    f"DELETE {API}/parcels/{{parcel_id}}": Row(own("204"), Stage.open_parcel),
    f"POST {API}/offers": Row(own("201"), Stage.offer, body={"parcel_id": "$parcel_id", "price": PRICE}),
    f"GET {API}/offers": Row(each_their_own("200"), Stage.offer),
    f"GET {API}/offers/{{offer_id}}": Row(anybody("200"), sold),
    f"PATCH {API}/offers/{{offer_id}}": Row(own("200"), Stage.offer, body={"price": PRICE}),
    f"DELETE {API}/offers/{{offer_id}}": Row(own("204"), Stage.offer),
    # Buying: an invoice's id is the right to see it, the claim secret the right to claim.
    f"POST {API}/offers/{{offer_id}}/invoices": Row(
        anybody("201"), sold, body={"claim_hash": "$fresh_secret"}
    ),
    f"GET {API}/invoices/{{invoice_id}}": Row(anybody("200"), sold),
    f"GET {API}/invoices/{{invoice_id}}/events": Row(anybody("200"), sold),
    f"POST {API}/invoices/{{invoice_id}}/claim": Row(
        anybody("200"), Stage.invoice, body={"claim_secret": "$claim_secret"}
    ),
    f"POST {API}/invoices/{{invoice_id}}/claim (another secret)": Row(
        anybody("403 claim-refused"), Stage.invoice, body={"claim_secret": "$fresh_secret"}
    ),
    f"POST {API}/invoices/{{invoice_id}}/renew": Row(anybody("409 invoice-not-renewable"), Stage.invoice),
    f"GET {API}/invoices": Row(each_their_own("200"), Stage.invoice),
    # Money back: the claim secret asks, and the seller of that sale decides.
    f"POST {API}/invoices/{{invoice_id}}/refund": Row(
        anybody("409 nothing-owed"),
        Stage.invoice,
        body={"claim_secret": "$claim_secret", "address": ADDRESS},
    ),
    f"POST {API}/invoices/{{invoice_id}}/refund (another secret)": Row(
        anybody("403 claim-refused"),
        Stage.invoice,
        body={"claim_secret": "$fresh_secret", "address": ADDRESS},
    ),
    f"GET {API}/refunds": Row(each_their_own("200"), Stage.refund),
    f"POST {API}/refunds/{{refund_id}}/approve": Row(own("200"), Stage.refund),
    f"POST {API}/refunds/{{refund_id}}/decline": Row(own("200"), Stage.refund, body={"reason": "no"}),
    f"GET {API}/offers/{{offer_id}}/files/{{file_id}}/content": Row(CONTENT, sold),
    f"HEAD {API}/offers/{{offer_id}}/files/{{file_id}}/content": Row(CONTENT, sold),
    f"GET {API}/offers/{{offer_id}}/files/{{file_id}}/digests": Row(anybody("200"), sold),
    # Channels know no accounts: a payer's signature is all. What is refused to whom is in
    # functional_channels_attacks.py; this server has none.
    f"GET {API}/channels/terms": Row(anybody("409 channels-off")),
    f"POST {API}/channels/deposits": Row(
        anybody("409 channels-off"),
        body={"challenge": SESSION, "payer_key": "02" + "11" * 32, "change_script": "0014" + "22" * 20},
    ),
    f"POST {API}/channels": Row(anybody("409 channels-off")),
    f"POST {API}/channels/mine": Row(
        anybody("409 channels-off"), body={"payer_key": "02" + "11" * 32, "at": 1, "signature": "11" * 64}
    ),
    f"POST {API}/channels/refund": Row(
        anybody("409 channels-off"), body={"channel_id": f"{'11' * 32}:0", "transaction": "00"}
    ),
    f"GET {API}/balance": Row(each_their_own("200"), Stage.payout),
    f"POST {API}/payouts": Row(
        sellers("409 balance-negative", "422 payout-below-minimum"), Stage.payout, body={"all": True}
    ),
    f"GET {API}/payouts": Row(each_their_own("200"), Stage.payout),
    f"GET {API}/payouts/{{payout_id}}": Row(own("200"), Stage.payout),
    f"DELETE {API}/payouts/{{payout_id}}": Row(own("204"), Stage.payout),
    f"GET {API}/earnings": Row(each_their_own("200"), Stage.invoice),
    f"GET {API}/earnings.csv": Row(each_their_own("200"), Stage.invoice),
    f"GET {API}/statement": Row(each_their_own("200"), Stage.invoice),
    f"GET {API}/statement.csv": Row(each_their_own("200"), Stage.invoice),
    f"GET {API}/ledger.csv": Row(each_their_own("200"), Stage.invoice),
    # Pages for everybody.
    "GET /": Row(page("200")),
    "GET /static/{static_name}": Row(page("200")),
    "GET /sw.js": Row(page("200")),
    "GET /d/{offer_id}": Row(page("200"), sold),
    "POST /d/{offer_id}/pay": Row(form("200"), sold, form="pay"),
    "GET /r/{invoice_id}": Row(page("200"), sold),
    "POST /r/{invoice_id}/renew": Row(form("409"), Stage.invoice, form="renew"),
    "GET /d/{offer_id}/report": Row(page("200"), sold),
    "POST /d/{offer_id}/report": Row(
        form("200"), sold, form="report", fields={"reason": "other", "message": "I made this"}
    ),
    "GET /sign-in": Row(page("200")),
    "POST /sign-in": Row(form("303"), owners_token, form="sign-in", fields={"token": "$token"}),
    "GET /sign-up": Row(page("403")),
    "POST /sign-up": Row(
        form("403"), form="sign-up", fields={"name": "me", "password": "correct horse battery"}
    ),
    # Of who is signed in: by the session's cookie alone, and forms of this account on this browser.
    "POST /sign-out": Row(
        {**each_their_own_form("303"), **dict.fromkeys(("nobody", "ended session", "bearer", "buyer"), "303")}
    ),
    "POST /session/token": Row(
        {
            **dict.fromkeys(("nobody", "ended session", "bearer", "buyer"), "401 token-missing"),
            **dict.fromkeys(("no form", "another's form"), "403 form-expired"),
            "other seller": "200",
            "owner": "200",
        }
    ),
    "GET /account": Row(sellers_page("200")),
    "POST /account/wallet": Row(each_their_own_form("200"), wallet, fields={"descriptor": "$descriptor"}),
    "POST /account/wallet/set": Row(each_their_own_form("303"), wallet, fields={"descriptor": "$descriptor"}),
    "POST /account/gap": Row(each_their_own_form("303"), fields={"gap_limit": "100"}),
    "POST /account/tokens": Row(each_their_own_form("200"), fields={"label": "x"}),
    "POST /account/tokens/{token_id}/revoke": Row(own_form("303"), Stage.token),
    "POST /account/password": Row(each_their_own_form("422"), fields={"new_password": "short"}),
    "POST /account/sign-out-everywhere": Row(each_their_own_form("303")),
    "GET /upload": Row(sellers_page("200")),
    "GET /dashboard": Row(sellers_page("200"), Stage.invoice),
    "GET /dashboard/earnings.csv": Row(sellers_page("200"), Stage.invoice),
    "GET /dashboard/events": Row(sellers_page("200", "401")),
    "POST /dashboard/payments/{invoice_id}/done": Row(own_form("303"), Stage.invoice),
    "GET /dashboard/money": Row(sellers_page("200"), Stage.payout),
    "GET /dashboard/statement.csv": Row(sellers_page("200"), Stage.invoice),
    "GET /dashboard/ledger.csv": Row(sellers_page("200"), Stage.invoice),
    "POST /dashboard/money/payout": Row(each_their_own_form("422"), Stage.payout, fields={"amount_sat": "1"}),
    "POST /dashboard/money/payouts/{payout_id}/cancel": Row(own_form("303"), Stage.payout),
    "POST /dashboard/money/settlement": Row(each_their_own_form("303"), fields={"settlement": "direct"}),
    "POST /dashboard/money/target": Row(each_their_own_form("303"), fields={"address": ""}),
    "POST /dashboard/money/plan": Row(each_their_own_form("303"), fields={"every": "week"}),
    "POST /dashboard/money/refunds/{refund_id}/approve": Row(own_form("303"), Stage.refund),
    "POST /dashboard/money/refunds/{refund_id}/decline": Row(
        own_form("303"), Stage.refund, fields={"reason": "no"}
    ),
    "GET /dashboard/offers": Row(sellers_page("200"), Stage.offer),
    "POST /dashboard/offers/{offer_id}/price": Row(own_form("303"), Stage.offer, fields=TERMS),
    "POST /dashboard/offers/{offer_id}/close": Row(own_form("303"), Stage.offer),
    "POST /dashboard/parcels/{parcel_id}/offer": Row(own_form("303"), Stage.offer, fields=TERMS),
    "POST /dashboard/parcels/{parcel_id}/delete": Row(own_form("303"), Stage.offer),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(world: RegtestWorld, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with open_stage(world, tmp_path_factory.mktemp("stage")) as stage:
        yield stage


async def test_every_route_has_a_row_and_every_row_everybody() -> None:
    routes = {f"{route.method} {route.path}": route for route in ROUTES}
    assert {key.partition(" (")[0] for key in MATRIX} == set(routes)
    for key, row in MATRIX.items():
        assert set(row.expect) in (set(API_ACTORS), set(PAGE_ACTORS)), key
        # What the routes declare of themselves is what is decided here.
        declared = {Auth.SELLER: "401 token-missing", Auth.GRANT: "402 payment-required"}
        route = routes[key.partition(" (")[0]]
        if route.auth in declared:
            assert row.expect["nobody"] == declared[route.auth], key


@pytest.mark.parametrize("key", MATRIX)
async def test_exactly_the_allowed_ones_pass(stage: Stage, key: str) -> None:
    row = MATRIX[key]
    asked = await _asked(stage, key, row)
    actors = {
        actor.name: actor
        for actor in (stage.api_actors() if "cookie" in row.expect else await stage.page_actors())
    }
    assert actors.keys() == row.expect.keys()
    allowed = row.expect["owner"] if row.expect is not CONTENT else row.expect["buyer"]
    before = await stage.dump()
    for name, actor in actors.items():
        if row.expect[name] != allowed:
            answered = await _ask(stage, asked, actor)
            assert answered.outcome == _outcome(asked, row.expect[name]), (name, answered.text)
            await _tells_nothing(stage, asked, actor, answered)
    assert await stage.dump() == before, "a refused request changed something"
    for name, actor in actors.items():  # the owner comes last, as what is deleted is gone
        if row.expect[name] == allowed:
            answered = await _ask(stage, asked, actor)
            assert answered.outcome == _outcome(asked, allowed), (name, answered.text)
            if name == "other seller" and row.expect["nobody"] != allowed:
                await _has_nothing_of_the_owner(stage, asked, answered)


async def _asked(stage: Stage, key: str, row: Row) -> Asked:
    method, path = key.partition(" (")[0].split()
    return Asked(
        method=method,
        path=re.sub(r"\{(\w+)\}", r"$\1", path),
        body=row.body,
        octets=row.octets,
        headers=row.headers or {},
        form=row.form,
        fields=row.fields or {},
        things={
            "part_no": "0",
            "static_name": "app.css",
            **(await row.prepare(stage) if row.prepare else {}),
        },
        per_actor=stage.things_of if row.expect is CONTENT else {},
    )


async def _ask(stage: Stage, asked: Asked, actor: Actor, **things: str) -> Answered:
    return await stage.ask(asked, actor, things={"fresh_secret": base64url.encode(_secret()), **things})


def _secret() -> bytes:
    return new_id().encode() + b"......"


def _outcome(asked: Asked, expected: str) -> str:
    """Answers to HEAD have no body to say more in."""
    return expected.partition(" ")[0] if asked.method == "HEAD" else expected


async def _tells_nothing(stage: Stage, asked: Asked, actor: Actor, answered: Answered) -> None:
    """What is not there is refused in the same words, but for the id that was asked for."""
    if "$offer_id/files" in asked.path or "claim" in asked.path:
        return  # offers and invoices are seen by whoever has their id
    absent = fresh(asked.things)
    other = await _ask(stage, asked, actor, **absent)
    assert other.outcome == answered.outcome
    assert _without(other.text, absent) == _without(answered.text, asked.things), actor.name


def _without(text: str, things: Mapping[str, str]) -> str:
    """Without ids, and what is new on every page."""
    text = re.sub(r"[0-9]{10}\.[\w-]{22}\.[\w-]{43}", "form token", text)
    for name, thing in things.items():
        text = text.replace(thing, "thing") if name.endswith("_id") else text
    return text


async def _has_nothing_of_the_owner(stage: Stage, asked: Asked, answered: Answered) -> None:
    marks = {stage.owner.account_id, "seller 1", stage.sold.offer_id, stage.sold.parcel_id, stage.bought.id}
    marks |= {thing for name, thing in asked.things.items() if name.endswith("_id")}
    assert not [mark for mark in marks if mark in answered.text]


@pytest.mark.parametrize(
    ("buyer", "outcome"),
    [("suspended buyer", "200"), ("buyer of what was taken down", "451 taken-down")],
)
async def test_the_right_secret_claims_no_more_than_stands(stage: Stage, buyer: str, outcome: str) -> None:
    asked = Asked(
        "POST",
        f"{API}/invoices/$invoice_id/claim",
        body={"claim_secret": "$claim_secret"},
        things=stage.things_of[buyer],
    )
    answered = await stage.ask(asked, Actor(buyer))
    assert answered.outcome == outcome
    claimed = json.loads(answered.text)
    assert not claimed.get("bytes_allowed")
    assert not claimed.get("key_allowed")
    assert not claimed.get("release_secret")
