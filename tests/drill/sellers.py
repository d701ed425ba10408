"""Sellers: an account, a wallet of their own, and uploads by the real command, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.link import Link, parse
from bitcache.client.upload import make_offer
from regtest.node import wait_until
from regtest.wallet import OutsideWallet
from tests.drill.schedule import ParcelPlan
from tests.drill.world import Drill

SIGNERS = 2
ATTEMPT_PAUSE_S = 1.0
WalletKind = Literal["wpkh", "tr", "sh(wpkh", "pkh", "wsh"]


@dataclass
class Seller:
    number: int
    home: Path
    token: str


@dataclass(frozen=True)
class OnSale:
    """A parcel whose upload was acknowledged, and what its seller knows of it."""

    link: Link
    parcel_id: str
    seller: Seller
    plan: ParcelPlan
    contents: dict[str, str]
    """SHA-256 of each file by its name."""


async def open_seller(drill: Drill, number: int, kind: str) -> Seller:
    """An account, signed in, whose wallet the server never sees."""
    server = drill.server
    home = drill.folder / f"seller-{number}"
    home.mkdir()
    made = (await server.http("POST", "/accounts", body={"name": f"Seller {number}"})).json()
    descriptor = await _descriptor(drill, number, cast(WalletKind, kind))
    body = {"payout_descriptor": descriptor}
    answer = await server.http("PATCH", "/account", body=body, token=made["token"])
    assert answer.status == 200, answer.body
    drill.say(f"seller {number} has a wallet {descriptor.split('[')[0]}...")
    return Seller(number, home, made["token"])


async def _descriptor(drill: Drill, number: int, kind: WalletKind) -> str:
    if kind != "wsh":
        wallet = await OutsideWallet.create(drill.world, f"seller-{number}")
        return await wallet.descriptor(kind)
    signers = [await OutsideWallet.create(drill.world, f"seller-{number}-{n}") for n in range(SIGNERS)]
    shared = await OutsideWallet.create_multisig(
        drill.world, f"seller-{number}", signers=signers, threshold=SIGNERS
    )
    return await shared.descriptor("wsh")


async def upload(drill: Drill, seller: Seller, number: int, plan: ParcelPlan) -> OnSale | None:
    """Upload and offer, again and again until it is acknowledged; None if the drill ends first."""
    folder = seller.home / f"goods {number}"
    contents = _make_files(folder, plan, seed=f"{drill.seed} {number}")
    who = f"upload {number}"
    words = ["upload", str(folder), "--price", f"{plan.price_sat}sat", "--title", folder.name, "--json"]
    words += ["--confirmations", str(plan.confirmations), *(["--prefetch"] if plan.prefetch else [])]
    await drill.at(plan.at_s)
    if plan.abandoned:
        await _begin_and_leave(drill, seller, who, words)
        return None
    while not drill.over.is_set():
        code, out, err = await drill.client(who, *words, home=seller.home, token=seller.token)
        if code == 0:
            report = json.loads(out)
            link = parse(report["link"])
            assert isinstance(link, Link)
            drill.say(f"{who} by seller {seller.number}: on sale for {plan.price_sat:,} sat")
            return OnSale(link, report["parcel_id"], seller, plan, contents)
        drill.say(f"{who} stopped with code {code}: {last_words(out, err)}")
        await drill.pause(ATTEMPT_PAUSE_S)
    return None


async def free_link(on_sale: OnSale, *, server: str) -> Link:
    """The same parcel for nothing, so that every byte of it can be looked at."""
    async with ServerApi(server, on_sale.seller.token) as api:
        offer = await make_offer(
            api, wire.OfferRequest(parcel_id=on_sale.parcel_id, price=wire.FixedPrice(amount_msat=0))
        )
    return Link(server, offer.offer_id, on_sale.link.link_secret)


def contents_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below `folder` by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def _begin_and_leave(drill: Drill, seller: Seller, who: str, words: list[str]) -> None:
    """Kill the upload as soon as the server has an unfinished file."""
    known = set(drill.server.data_folder.rglob("*.uploading"))
    running = asyncio.create_task(drill.client(who, *words, home=seller.home, token=seller.token))

    async def begun() -> bool:
        return running.done() or bool(set(drill.server.data_folder.rglob("*.uploading")) - known)

    try:
        await wait_until(begun, "the upload to begin", timeout_s=60, poll_s=0.01)
    finally:
        if who in drill.clients:
            drill.clients[who].kill()
        code, _, _ = await running
    drill.say(f"{who} by seller {seller.number} is left for ever (code {code})")


def _make_files(folder: Path, plan: ParcelPlan, *, seed: str) -> dict[str, str]:
    folder.mkdir()
    rng = random.Random(seed)
    for position, size_bytes in enumerate(plan.sizes_bytes):
        (folder / f"{position}.bin").write_bytes(rng.randbytes(size_bytes))
    return contents_of(folder)


def last_words(out: str, err: str) -> str:
    """Why a command ended, in one line."""
    return " ".join((out + err).split())[-200:] or "not a word"
