"""Metered transfers in the demo: one channel pays for a thousand chunks, another is taken back without the
server. The operator's wallet is the one of the hosted act.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from regtest.demo_hosted import DEPTH, FEE_PERCENT, Office
from regtest.node import btc, sat, wait_until
from regtest.served import CommandFailed
from regtest.wallet import OutsideWallet

PRICE_SAT = 10
CHUNKS = 1_000
FEW_CHUNKS = 100
ROOM_BYTES = 5 << 30
"""For a thousand chunks, three times: the seller's file, the server's, the buyer's. Else a hundred do."""
CHUNK_BYTES = 1 << 20
DEPOSIT_SAT = 20_000
SECOND_DEPOSIT_SAT = 15_000
LIFE_BLOCKS = 300
FEW_SAT = 50
STOPPED_CODE = 3
"""Of a `get` that has spent what it may."""
KILLED_AT = 0.4
"""Of the file."""


class Meter:
    """What seller, buyer and operator do, one step after the other."""

    def __init__(self, office: Office, seller: OutsideWallet, buyer: OutsideWallet) -> None:
        self.office = office
        self.server, self.world, self.folder = office.server, office.server.world, office.folder
        self.seller_wallet, self.buyer_wallet = seller, buyer
        self.buyer_home = self.folder / "metered-buyer"
        free_bytes = shutil.disk_usage(self.folder).free
        self.chunks = CHUNKS if free_bytes > ROOM_BYTES else FEW_CHUNKS
        self.file = self.folder / "film.bin"
        self.link = ""
        self.channel_id = ""
        self.change_address = ""
        self.earned_before_sat = 0

    @classmethod
    async def open(cls, office: Office) -> Meter:
        wallets = [await OutsideWallet.create(office.server.world, name) for name in ("studio", "viewer")]
        for wallet in wallets:
            await office.server.world.faucet(await wallet.new_address(), 1_000_000)
        meter = cls(office, *wallets)
        meter.buyer_home.mkdir()
        return meter

    @property
    def price_sat(self) -> int:
        return self.chunks * PRICE_SAT

    async def buyer(self, *words: str) -> Any:
        return await self.server.command_json(*words, home=self.buyer_home)

    async def enable(self) -> str:
        made = await self.office.operator("channels", "seed")
        self.server.settings |= {
            "CHANNELS_ENABLED": "true",
            "CHANNELS_LIFE_BLOCKS": str(LIFE_BLOCKS),
            "CHANNELS_CLOSE_FEERATE_SAT_VB": "2",
        }
        await self.server.restart()
        return f"its keys follow from {Path(made['file']).name}, which only its owner can read"

    async def sell(self) -> str:
        # Of a file of so many chunks the header takes 40 bytes, and each chunk a tag of 16.
        _write_noise(self.file, self.chunks * (CHUNK_BYTES - 16) - 40)
        words = ("upload", str(self.file), "--metered", f"{PRICE_SAT}sat/chunk", "--yes")
        self.link = (await self.office.seller(*words))["link"]
        self.earned_before_sat = (await self.office.seller("balance"))["balance_sat"]
        return f"{self.chunks:,} chunks of 1 MiB, {PRICE_SAT} sat each"

    async def fund(self) -> str:
        self.change_address = await self.buyer_wallet.new_address()
        words = ("--deposit", f"{DEPOSIT_SAT}sat", "--change", self.change_address, "--no-wait")
        opened = await self.buyer("channel", "open", self.server.url, *words)
        await self.buyer_wallet.rpc("sendtoaddress", opened["address"], btc(DEPOSIT_SAT), fee_rate=2)
        self.channel_id = (await self._opened())["channel_id"]
        await self.world.mine()
        return f"{DEPOSIT_SAT:,} sat at {self.channel_id[:16]}..., opened before its block"

    async def watch(self) -> str:
        """The server is killed in the middle; the buyer's command goes on when it is back."""
        target = self.folder / "watched.bin"
        getting = asyncio.create_task(
            self.server.command("get", self.link, "--yes", "--json", "-o", str(target), home=self.buyer_home)
        )
        try:
            await wait_until(self._partly_sent, "some chunks")
            await self.server.kill()
            await self.server.start()
            done = json.loads(await getting)
        finally:
            getting.cancel()
        view = await self._view()
        assert view["spent_msat"] == self.price_sat * 1_000, view
        assert done["metered"]["chunks"] == self.chunks, done["metered"]
        assert _digest(target) == _digest(self.file), "the film is another one"
        target.unlink()
        return f"{self.chunks:,} chunks, {self.price_sat:,} sat, nothing twice; kill -9 in between"

    async def close(self) -> str:
        await self.buyer("channel", "close", self.server.url, "--yes")
        txid, vout = self.channel_id.split(":")

        async def spent() -> bool:
            return await self.world.outside.rpc("gettxout", txid, int(vout)) is None

        await wait_until(spent, "the close to reach the network")
        await self.world.mine(DEPTH)
        change_sat = await self._received(self.change_address)
        fee_sat = DEPOSIT_SAT - self.price_sat - change_sat
        reserved_sat = (await self._channel())["close_fee_sat"]
        assert 0 < fee_sat <= reserved_sat, f"the close took {fee_sat} of {reserved_sat} sat"
        expected = self.earned_before_sat + self.price_sat * (100 - FEE_PERCENT) // 100

        async def earned() -> bool:
            return bool((await self.office.seller("balance"))["balance_sat"] == expected)

        await wait_until(earned, "the seller's balance")
        operators = await self._received_by_close()
        assert operators == self.price_sat, f"the operator's wallet got {operators} sat"
        back = f"{change_sat:,} sat back to the buyer"
        return f"{self.price_sat:,} sat to the operator's wallet, {back}, {fee_sat} sat network fee"

    async def take_back(self) -> str:
        """The server is gone for good; the line of backup, another wallet, and a block beyond the expiry."""
        change = await self.buyer_wallet.new_address()
        words = ("--deposit", f"{SECOND_DEPOSIT_SAT}sat", "--change", change, "--no-wait")
        opened = await self.buyer("channel", "open", self.server.url, *words)
        await self.buyer_wallet.rpc("sendtoaddress", opened["address"], btc(SECOND_DEPOSIT_SAT), fee_rate=2)
        channel = await self._opened()
        await self.world.mine()
        await self._watch_a_little()
        await self.server.stop()
        await self.world.mine(LIFE_BLOCKS + 2)
        restored = OutsideWallet(self.world.outside, "restored")
        await self.world.outside.rpc("createwallet", "restored", blank=True)
        imported = await restored.rpc("importdescriptors", [{"desc": opened["backup"], "timestamp": 0}])
        assert imported[0]["success"], imported
        txid, vout = channel["channel_id"].split(":")
        expiry = channel["expiry_height"]
        drafted = await restored.rpc(
            "walletcreatefundedpsbt",
            [{"txid": txid, "vout": int(vout), "sequence": 0xFFFFFFFD}],
            [{change: btc(SECOND_DEPOSIT_SAT)}],
            expiry,
            {
                "subtractFeeFromOutputs": [0],
                "fee_rate": 2,
                "add_inputs": False,
                "solving_data": {"descriptors": [opened["backup"]]},
            },
        )
        signed = await restored.rpc("walletprocesspsbt", drafted["psbt"])
        final = await self.world.outside.rpc("finalizepsbt", signed["psbt"])
        assert final["complete"], signed
        await self.world.outside.rpc("sendrawtransaction", final["hex"])
        await self.world.mine(DEPTH)
        back_sat = await self._received(change)
        await self.server.start()
        back = f"{back_sat:,} of {SECOND_DEPOSIT_SAT:,} sat are back by the backup line alone"
        return f"{back}; {FEW_SAT} sat of chunks were never paid, the operator bears them"

    async def _watch_a_little(self) -> None:
        words = ("--yes", "--max-spend", f"{FEW_SAT}sat", "-o", str(self.folder / "begun.bin"))
        code = 0
        try:
            await self.buyer("get", self.link, *words)
        except CommandFailed as stopped:
            code = stopped.code
        assert code == STOPPED_CODE, f"it ended with code {code}"

    async def books(self) -> str:
        async def agreed() -> bool:
            try:
                report = await self.office.operator("reconcile")
            except CommandFailed:
                return False  # the server has not read all the blocks yet
            return bool(report["difference_sat"] == 0)

        await wait_until(agreed, "coins and ledger to agree")

        async def empty() -> bool:
            owed = (await self.office.operator("reconcile"))["liabilities_sat"]
            return not owed.get("channel") and not owed.get("pending")

        await wait_until(empty, "the accounts of channels to be at zero")
        return "every channel is at zero; coins and ledger agree to the satoshi"

    async def _opened(self) -> Any:
        """The channel that is neither closed nor closing, once the server has opened it."""
        found: list[Any] = []

        async def there() -> bool:
            listed = (await self.buyer("channel", "list"))["channels"]
            found[:] = [
                one["server_view"] for one in listed if (one["server_view"] or {}).get("state") == "open"
            ]
            return bool(found)

        await wait_until(there, "the channel to be open")
        (view,) = found
        return view

    async def _view(self) -> Any:
        return (await self._channel())["server_view"]

    async def _channel(self) -> Any:
        listed = (await self.buyer("channel", "list"))["channels"]
        return next(one for one in listed if one["channel_id"] == self.channel_id)

    async def _partly_sent(self) -> bool:
        """By the server's log: a command that asks would come too late."""
        sent = re.findall(r"/content 206 .* (\d+) bytes", self.server.log())
        return sum(map(int, sent)) >= KILLED_AT * self.chunks * CHUNK_BYTES

    async def _received(self, address: str) -> int:
        """What the chain holds unspent at this address, by the outside node."""
        found = await self.world.outside.rpc("scantxoutset", "start", [f"addr({address})"])
        return sat(found["total_amount"])

    async def _received_by_close(self) -> int:
        """By the operator's wallet, on the outside node, from the transaction that closed the channel."""
        close = (await self._view())["close"]["txid"]
        seen = await self.office.cold.rpc("gettransaction", close)
        return sat(seen["amount"])


def _write_noise(path: Path, size_bytes: int) -> None:
    block = os.urandom(min(size_bytes, 64 << 20))
    with path.open("wb") as out:
        for _ in range(size_bytes // len(block)):
            out.write(block)
        out.write(block[: size_bytes % len(block)])


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


STEPS: tuple[tuple[str, Callable[[Meter], Awaitable[str]]], ...] = (
    ("the operator turns payment channels on", Meter.enable),
    ("a seller sells a file per chunk", Meter.sell),
    ("a buyer opens a channel; any wallet funds it", Meter.fund),
    ("the buyer downloads, and the server is killed in the middle", Meter.watch),
    (f"the buyer closes together with the server, {DEPTH} blocks are mined", Meter.close),
    ("a second channel, and a server that never comes back", Meter.take_back),
    ("the books after all that", Meter.books),
)
