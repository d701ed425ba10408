"""What the authorisation matrix is played with: a shop, everybody who may come, fresh things per request.

    async with open_stage(world, folder) as stage:
        for actor in stage.api_actors(): await stage.ask(asked, actor)

Each request has a client address of its own, so that no limit answers in place of an authorisation.
"""

import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from string import Template
from typing import Any

import aiohttp
from sqlalchemy import select

from bitcache import accounts, sessions, takedown
from bitcache.accounts import IssuedToken
from bitcache.db.tables import metadata as our_tables
from bitcache.ids import new_id
from bitcache.node_state import node_state
from bitcache.sessions import MAC_PURPOSE, SESSION_LIFETIME_S
from bitcache.web.forms import Forms
from bitcache.web.sign_in import SELLER_FORM
from bitcache.web.visit import API_FORM, bound_form
from payments import books, ledger
from payments.money import Sat
from payments.payout import Kind, Payout, State, desired_payout
from payments.payout_store import insert_payout
from payments.ports import Transaction
from payments.tables import metadata as payments_tables
from regtest.node import wait_until
from regtest.wallet import BitWallet, OutsideWallet
from regtest.world import RegtestWorld
from storage import base64url
from tests.till import Bought, Sold, Till, open_till

# What changes by itself: the node's side, and the count of looks at an offer, which anybody may take.
NOT_COMPARED = {"watcher_state", "blocks", "outages", "offer_views"}
WITHDRAWN_FEE_SAT = 400_000
ADDRESS = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
SIGN_IN_MARK = "Seller token"


@dataclass(frozen=True)
class Actor:
    """Who asks. `session` is a cookie; `mark` the browser's, to which its forms are bound."""

    name: str
    bearer: str = ""
    session: str = ""
    account_id: str = ""
    """Whose forms its page has; empty for who is not signed in."""
    mark: str = "A" * 22
    forms_of: str = "itself"
    """`nobody`: it sends no form token; `another`: one of another account on another browser."""


@dataclass(frozen=True)
class Asked:
    """A request. `$name` in path, body and form stands for the thing of that name in `things`."""

    method: str
    path: str
    body: Any = None
    octets: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    form: str = SELLER_FORM
    fields: Mapping[str, str] = field(default_factory=dict)
    things: Mapping[str, str] = field(default_factory=dict)
    per_actor: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Other things, for an actor whose own they are."""


@dataclass(frozen=True)
class Answered:
    """`outcome`: the status, with the problem's name or `sign-in` for a page that asks for it."""

    outcome: str
    text: str


@dataclass
class Stage:
    till: Till
    other: IssuedToken
    grants: dict[str, str]
    """Name of a buyer -> their grant token."""
    stale: dict[str, str]
    """revoked token, stale web token, ended session."""
    sold: Sold
    bought: Bought
    things_of: dict[str, Mapping[str, str]]
    """Of buyers whose grant is of an offer of its own."""
    descriptor: str
    http: aiohttp.ClientSession
    _clients: Any = field(default_factory=lambda: count(1))

    @property
    def owner(self) -> IssuedToken:
        return self.till.account

    def api_actors(self) -> list[Actor]:
        return [
            Actor("nobody"),
            Actor("revoked", bearer=self.stale["token"]),
            Actor("stale web token", bearer=self.stale["web token"]),
            Actor("cookie", session=self.stale["live session"]),
            *(Actor(name, bearer=token) for name, token in self.grants.items()),
            Actor("other seller", bearer=self.other.token),
            Actor("owner", bearer=self.owner.token),
        ]

    async def page_actors(self) -> list[Actor]:
        """With fresh sessions: some requests end them."""
        owner_id, other_id = self.owner.account_id, self.other.account_id
        owner = await self.session(self.owner)
        other = await self.session(self.other)
        return [
            Actor("nobody"),
            Actor("ended session", session=self.stale["session"], account_id=owner_id),
            Actor("bearer", bearer=self.owner.token, account_id=owner_id),
            Actor("buyer", bearer=self.grants["buyer"]),
            Actor("no form", session=owner, account_id=owner_id, forms_of="nobody"),
            Actor("another's form", session=owner, account_id=owner_id, forms_of="another"),
            Actor("other seller", session=other, account_id=other_id, mark="B" * 22),
            Actor("owner", session=owner, account_id=owner_id),
        ]

    async def session(self, of: IssuedToken) -> str:
        services, now = self.till.server.services, self.till.server.clock()
        opened = await services.database.write(
            lambda tx: sessions.open_session(tx, of.account_id, token_id=of.token_id, now=now)
        )
        return opened.secret

    def form_token(self, form: str, actor: Actor) -> str:
        """As the actor's own page would have it."""
        services = self.till.server.services
        account_id, mark = actor.account_id, actor.mark
        if actor.forms_of == "nobody":
            return ""
        if actor.forms_of == "another":
            account_id, mark = self.other.account_id, "B" * 22
        bound = bound_form(form, account_id) if form in (SELLER_FORM, API_FORM) else form
        return Forms(services.sealer.mac_key("form"), secure=False).token(bound, mark, services.clock())

    async def ask(self, asked: Asked, actor: Actor, *, things: Mapping[str, str] | None = None) -> Answered:
        named = {**asked.things, **asked.per_actor.get(actor.name, {}), **(things or {})}
        number = next(self._clients)
        headers = {"X-Forwarded-For": f"10.0.{number >> 8}.{number & 255}", **asked.headers}
        headers["Cookie"] = f"bitcache_form={actor.mark}"
        if actor.session:
            headers["Cookie"] += f"; bitcache_session={actor.session}"
        if actor.bearer:
            headers["Authorization"] = f"Bearer {actor.bearer}"
        data: Any = asked.octets
        if asked.body is not None:
            data, headers["Content-Type"] = _filled(json.dumps(asked.body), named), "application/json"
        elif asked.path == "/session/token":
            headers["Bitcache-Form-Token"] = self.form_token(API_FORM, actor)
        elif asked.method == "POST" and data is None:
            data = {name: _filled(text, named) for name, text in asked.fields.items()}
            data["form_token"] = self.form_token(asked.form, actor)
        url = self.till.server.url + _filled(asked.path, named)
        async with self.http.request(
            asked.method, url, headers=headers, data=data, allow_redirects=False
        ) as answer:
            if answer.content_type == "text/event-stream":
                return Answered(str(answer.status), "")  # it has no end
            text = (await answer.read()).decode("utf-8", "replace")
            outcome = str(answer.status)
            if answer.content_type == "application/problem+json" and text:
                outcome += f" {json.loads(text)['type'].removeprefix('/problems/')}"
            elif SIGN_IN_MARK in text and asked.path != "/sign-in":
                outcome += " sign-in"
            return Answered(outcome, text)

    async def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table but NOT_COMPARED."""

        async def read(tx: Transaction) -> dict[str, list[tuple[Any, ...]]]:
            tables = [*our_tables.tables.values(), *payments_tables.tables.values()]
            return {
                table.name: sorted((tuple(row) for row in await tx.execute(select(table))), key=repr)
                for table in tables
                if table.name not in NOT_COMPARED
            }

        return await self.till.server.services.database.read(read)

    # Things of the owner, fresh for a request

    async def file(self, *, part: bool = True, complete: bool = False) -> dict[str, str]:
        octets = os.urandom(100)
        digest = hashlib.sha256(octets).digest()
        root = base64url.encode(hashlib.sha256(digest).digest())
        made = await self._made("/files", {"size_bytes": len(octets)})
        file_id = made["file_id"]
        if part or complete:
            headers = {"Bitcache-Chunk-Digests": base64url.encode(digest)}
            async with self._as_owner("PUT", f"/files/{file_id}/parts/0", data=octets, headers=headers):
                pass
        if complete:
            await self._made(f"/files/{file_id}/complete", {"root": root})
        return {"file_id": file_id, "root": root}

    async def open_parcel(self) -> dict[str, str]:
        file_id = (await self.file(complete=True))["file_id"]
        made = await self._made("/parcels", {"files": [{"file_id": file_id, "wrapped_key": "A" * 80}]})
        return {"parcel_id": made["parcel_id"]}

    async def offer(self) -> dict[str, str]:
        sold = await self.till.offer(price_sat=0, sizes=(100,))
        return {"offer_id": sold.offer_id, "parcel_id": sold.parcel_id, "file_id": sold.file_id}

    async def token(self) -> dict[str, str]:
        return {"token_id": (await self._made("/tokens", {"label": "fresh"}))["token_id"]}

    async def invoice(self) -> dict[str, str]:
        sold = await self.till.offer(price_sat=0, sizes=(100,))
        bought = await self.till.buy(sold)
        return {
            "offer_id": sold.offer_id,
            "invoice_id": bought.id,
            "claim_secret": base64url.encode(bought.claim_secret),
        }

    async def refund(self) -> dict[str, str]:
        """One that waits for the seller."""
        invoice, now = await self.invoice(), self.till.server.clock()
        payout = Payout(
            id=new_id(),
            kind=Kind.REFUND,
            seller_id=self.owner.account_id,
            invoice_id=invoice["invoice_id"],
            account=ledger.owed(invoice["invoice_id"]),
            amount_sat=Sat(10_000),
            address=ADDRESS,
            script_pubkey=bytes(22),
            state=State.REQUESTED,
            requested_at=now,
            ready_at=now,
        )

        async def put(tx: Transaction) -> None:
            await insert_payout(tx, payout)
            held = desired_payout(payout, None)
            await books.append_missing(tx, held, (), reference=payout.id, now=now)

        await self.till.server.services.database.write(put)
        return {"refund_id": payout.id}

    async def payout(self) -> dict[str, str]:
        """One of the owner's earnings, in no batch yet."""
        now, seller_id = self.till.server.clock(), self.owner.account_id
        payout = Payout(
            id=new_id(),
            kind=Kind.SELLER,
            seller_id=seller_id,
            invoice_id=None,
            account=ledger.seller(seller_id),
            amount_sat=Sat(10_000),
            address=ADDRESS,
            script_pubkey=bytes(22),
            state=State.APPROVED,
            requested_at=now,
            ready_at=now,
        )

        async def put(tx: Transaction) -> None:
            await insert_payout(tx, payout)
            held = desired_payout(payout, None)
            await books.append_missing(tx, held, (), reference=payout.id, now=now)

        await self.till.server.services.database.write(put)
        return {"payout_id": payout.id}

    async def _made(self, path: str, body: object) -> dict[str, Any]:
        async with self._as_owner("POST", path, json=body) as answer:
            assert answer.ok, await answer.text()
            made: dict[str, Any] = await answer.json()
            return made

    def _as_owner(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.owner.token}", **options.pop("headers", {})}
        return self.http.request(method, self.till.server.api + path, headers=headers, **options)


def fresh(things: Mapping[str, str]) -> dict[str, str]:
    """Ids of things that are not there."""
    return {name: new_id() if name.endswith("_id") else text for name, text in things.items()}


def _filled(text: str, things: Mapping[str, str]) -> str:
    return Template(text).safe_substitute(things)


@asynccontextmanager
async def open_stage(world: RegtestWorld, folder: Path) -> AsyncIterator[Stage]:
    """The shop, with buyers of every kind. What is stale was good once."""
    async with (
        open_till(world, folder, trusted_proxies=("127.0.0.1",)) as till,
        aiohttp.ClientSession() as http,
    ):
        other = await till.server.new_seller("Another")
        sold = await till.offer(price_sat=0, sizes=(100,))
        stage = Stage(till, other, {}, {}, sold, await till.buy(sold), {}, "", http)
        # Before the clock jumps: the node's does not.
        suspended = await _suspended(stage, world)
        await _grow_stale(stage)
        stage.stale["live session"] = await stage.session(till.account)
        stage.descriptor = await (await OutsideWallet.create(world, f"payout-{new_id()}")).descriptor()
        async with till.server.session(other.token) as others:
            wallet = {"payout_descriptor": stage.descriptor}
            async with others.patch("/api/v1/account", json=wallet) as answer:
                assert answer.status == 200, await answer.text()
        stage.grants["buyer"] = await _grant(till, stage.bought)
        elsewhere = await till.offer(price_sat=0, sizes=(100,))
        stage.grants["other buyer"] = await _grant(till, await till.buy(elsewhere))
        stage.grants["suspended buyer"] = await _grant(till, suspended)
        await _taken_down(stage)
        yield stage


async def _grow_stale(stage: Stage) -> None:
    """Let a grant, a session and a session's token run out, and revoke a token. Half a day passes."""
    till, account = stage.till, stage.owner
    services, clock = till.server.services, till.server.clock
    database, key = services.database, services.sealer.mac_key(MAC_PURPOSE)
    stage.grants["stale buyer"] = await _grant(till, stage.bought)
    stage.stale["session"] = await stage.session(account)
    (live,) = await database.read(lambda tx: sessions.list_live(tx, account.account_id, now=clock()))
    stage.stale["web token"], _ = await database.read(
        lambda tx: sessions.issue_web_token(tx, key, live.id, now=clock())
    )

    async def revoked(tx: Transaction) -> str:
        issued = await accounts.issue_token(tx, account.account_id, label="revoked", now=clock())
        await accounts.revoke_token(tx, account.account_id, issued.token_id, now=clock())
        return issued.token

    stage.stale["token"] = await database.write(revoked)
    clock.advance(SESSION_LIFETIME_S + 1)

    async def online() -> bool:
        return (await database.read(lambda tx: node_state(tx, clock()))).online

    await wait_until(online, "the watcher to see the node after the jump of the clock")


async def _grant(till: Till, bought: Bought) -> str:
    return (await till.token(bought))["Authorization"].removeprefix("Bearer ")


async def _taken_down(stage: Stage) -> None:
    till = stage.till
    services, now = till.server.services, till.server.clock()
    sold = await till.offer(price_sat=0, sizes=(100,))
    bought = await till.buy(sold)
    stage.grants["buyer of what was taken down"] = await _grant(till, bought)
    await services.database.write(
        lambda tx: takedown.take_down(
            tx, services.registry, services.access, sold.offer_id, reason="a reason", now=now
        )
    )
    _remember(stage, "buyer of what was taken down", sold, bought)


async def _suspended(stage: Stage, world: RegtestWorld) -> Bought:
    """Unlocked by an unconfirmed payment, which its buyer then takes back."""
    till = stage.till
    sold = await till.offer(price_sat=1_000, bytes_at=0, key_at=0, sizes=(100,))
    bought = await till.buy(sold)
    wallet = await BitWallet.create(world, coin_sat=1_000_000)
    due = [(str(bought.invoice["address"]), int(bought.invoice["due_sat"]))]
    payment = await wallet.pay(due, fee_sat=WITHDRAWN_FEE_SAT // 2)
    await till.until(bought, lambda view: bool(view["key_allowed"]), "the key before a block")
    assert (await till.status_of(sold.content, await till.token(bought)))[0] == 200
    await wallet.pay([(wallet.address, 10_000)], fee_sat=WITHDRAWN_FEE_SAT, inputs=payment.inputs)
    await till.until(bought, lambda view: bool(view["suspended"]), "the payment to be taken back")
    _remember(stage, "suspended buyer", sold, bought)
    return bought


def _remember(stage: Stage, name: str, sold: Sold, bought: Bought) -> None:
    stage.things_of[name] = {
        "offer_id": sold.offer_id,
        "file_id": sold.file_id,
        "invoice_id": bought.id,
        "claim_secret": base64url.encode(bought.claim_secret),
    }
