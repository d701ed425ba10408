"""What `make serve` has to show: a seller with things to sell, and some who bought them."""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from regtest.node import wait_until
from regtest.served import ServedBitcache
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld

SELLER_NAME = "Sample seller"
SOLD = 4


@dataclass(frozen=True)
class Samples:
    """Links of what is for sale, and how to sign in as who sells it."""

    link: str
    prefetch_link: str
    slow_link: str
    free_link: str
    metered_link: str
    password: str
    token_file: Path

    @classmethod
    async def make(
        cls, world: RegtestWorld, server: ServedBitcache, folder: Path, buyer: OutsideWallet
    ) -> Samples:
        """Set up the seller with the command line, sell with the API. `buyer` needs confirmed coins."""
        seller = await OutsideWallet.create(world, "seller")
        home = folder / "seller"
        home.mkdir()
        data = ("--data", str(server.data_folder))
        made = await server.command_json("account", "create", SELLER_NAME, *data)
        password = secrets.token_urlsafe(12)
        await server.command("account", "password", SELLER_NAME, *data, stdin=password + "\n")
        token_file = folder / "seller.token"
        token_file.touch(mode=0o600)
        token_file.write_text(made["token"])
        await server.command("login", server.url, home=home, stdin=made["token"])
        await server.command("payout", "set", await seller.descriptor("wpkh"), "--yes", home=home)
        await server.command("payout", "address", await seller.new_address(), "--yes", home=home)
        upload = ("upload", str(_goods(folder)), "--title", "Sample goods")
        offers = {
            "link": ("--price", "5000sat"),
            "prefetch_link": ("--price", "2000sat", "--prefetch"),
            "slow_link": ("--price", "21000sat", "--confirmations", "3"),
            "free_link": ("--price", "0"),
            "metered_link": ("--metered", "10sat/chunk", "--yes"),
        }
        links = {}
        for name, terms in offers.items():
            uploaded = await server.command_json(*upload, *terms, home=home)
            links[name] = str(uploaded["link"])
        await _sell(world, server, buyer, links["link"])
        return cls(**links, password=password, token_file=token_file)

    def words(self) -> dict[str, object]:
        return {**self.__dict__, "seller_name": SELLER_NAME}


def _goods(folder: Path) -> Path:
    goods = folder / "Sample goods"
    (goods / "Noise").mkdir(parents=True)
    (goods / "Read me.txt").write_text("You paid for this. Thank you.\n")
    for number in range(1, 4):
        (goods / "Noise" / f"Track {number}.bin").write_bytes(bytes(range(256)) * 8_000 * number)
    return goods


async def _sell(world: RegtestWorld, server: ServedBitcache, buyer: OutsideWallet, link: str) -> None:
    """Some sales that are done, one that waits for a block, and one that was paid too little."""
    offer_id = urlsplit(link).path.rpartition("/")[2]
    invoices = [await _invoice(server, offer_id) for _ in range(SOLD + 2)]
    for invoice in invoices[:SOLD]:
        await buyer.pay([(invoice["address"], invoice["due_sat"])])
    await world.mine()
    await buyer.pay([(invoices[SOLD]["address"], invoices[SOLD]["due_sat"])])
    await buyer.pay([(invoices[SOLD + 1]["address"], invoices[SOLD + 1]["due_sat"] // 2)])

    async def seen() -> bool:
        last = await server.http("GET", f"/invoices/{invoices[-1]['invoice_id']}")
        return bool(last.json()["received_sat"])

    await wait_until(seen, "the sample payments")


async def _invoice(server: ServedBitcache, offer_id: str) -> dict[str, Any]:
    claim_hash = hashlib.sha256(secrets.token_bytes(32)).digest()
    text = base64.urlsafe_b64encode(claim_hash).decode().rstrip("=")
    answer = await server.http("POST", f"/offers/{offer_id}/invoices", body={"claim_hash": text})
    invoice: dict[str, Any] = answer.json()
    return invoice
