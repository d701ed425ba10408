"""A server that sells per chunk, a seller with goods on it, and a buyer with a wallet: all as users run it.

async with open_channel_market(world, folder) as market:
    link = await market.sell(30)
    channel = await market.open_channel()
    done = await market.get(link, "-o", str(out))
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from bitcache.cli.channel_words import own_facts, view_facts
from bitcache.client.api import ServerApi
from bitcache.client.channel_book import ChannelBook
from bitcache.client.channels import ChannelServer
from regtest.node import wait_until
from regtest.served import ServedBitcache
from regtest.wallet import OutsideWallet
from regtest.world import RegtestWorld
from tests.hosted_shop import operator_wallet

MIB = 1 << 20
PRICE_SAT = 10
DEPOSIT_SAT = 20_000
_names = count(1)


@dataclass
class ChannelMarket:
    server: ServedBitcache
    folder: Path
    seller: Path
    buyer: Path
    buyer_wallet: OutsideWallet
    wallet: str
    """For --wallet."""
    operator_wallet: OutsideWallet

    @property
    def world(self) -> RegtestWorld:
        return self.server.world

    @property
    def channels_folder(self) -> Path:
        return self.buyer / "data-home" / "bitcache" / "channels"

    def goods(self, chunks: int, *, name: str | None = None) -> Path:
        """A file of so many chunks of ciphertext: the first holds a header and every one a tag."""
        file = self.folder / (name or f"goods {next(_names)}.bin")
        file.write_bytes(random.Random(file.name).randbytes((chunks - 1) * MIB + 5))
        return file

    async def sell(self, file: Path, *options: str, price: str = f"{PRICE_SAT}sat/chunk") -> str:
        """The link."""
        words = ("upload", str(file), "--metered", price, "--yes", *options)
        return str((await self.server.command_json(*words, home=self.seller))["link"])

    async def open_channel(
        self, *words: str, deposit_sat: int = DEPOSIT_SAT, confirmations: int = 1, server: str | None = None
    ) -> Any:
        """One that is paid from the buyer's wallet, so deep; what the command printed."""
        command = ("channel", "open", server or self.server.url, "--deposit", f"{deposit_sat}sat")
        change = await self.buyer_wallet.new_address()
        document = await self.command(*command, "--change", change, "--wallet", self.wallet, "--yes", *words)
        if confirmations:
            await self.mine(confirmations)
            for channel in document["channels"]:
                await self.until_deep(channel["channel_id"], confirmations)
        return document

    async def until_deep(self, channel_id: str, confirmations: int) -> None:
        async def deep() -> bool:
            return bool((await self.standing(channel_id))["confirmations"] >= confirmations)

        await wait_until(deep, f"the server to see {confirmations} confirmations")

    async def get(self, link: str, *words: str) -> Any:
        return await self.command("get", link, "--yes", *words)

    async def command(self, *words: str, home: Path | None = None) -> Any:
        """As the buyer; the document it printed."""
        return await self.server.command_json(*words, home=home or self.buyer)

    async def start(self, *words: str, as_json: bool = True) -> asyncio.subprocess.Process:
        """As the buyer; a process whose output is read by the caller."""
        return await asyncio.create_subprocess_exec(
            type(self.server).command_program(),
            *words,
            *(("--json",) if as_json else ()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.server.environment(self.buyer),
            cwd=self.buyer,
        )

    async def channel(self, channel_id: str, *, home: Path | None = None) -> Any:
        """As `channel list --json` shows it, without a process for each look."""
        book = ChannelBook((home or self.buyer) / "data-home" / "bitcache" / "channels")
        own = book.channel(channel_id)
        async with ServerApi(own.contract.server) as api:
            (one,) = [s for s in await ChannelServer(api, book).mine(own.contract) if s.own.id == channel_id]
        facts = {**own_facts(own, book.glance(own)), "server_view": view_facts(one.view)}
        return msgspec.to_builtins(facts)

    async def standing(self, channel_id: str) -> Any:
        """The server's view of it."""
        return (await self.channel(channel_id))["server_view"]

    async def mine(self, blocks: int = 1) -> None:
        await self.world.mine(blocks)


@asynccontextmanager
async def open_channel_market(
    world: RegtestWorld, folder: Path, **settings: str
) -> AsyncIterator[ChannelMarket]:
    """`settings` are BITCACHE_* variables of the server without the prefix."""
    keys = await operator_wallet(world.outside)
    hosted = {
        "HOSTED_DESCRIPTOR": await keys.descriptor("wpkh"),
        "CHANNELS_ENABLED": "true",
        "CHANNELS_CLOSE_FEERATE_SAT_VB": "2",
        "LIMITS_CHANNEL_CONTRACTS_PER_MINUTE": "600",
        "LIMITS_INVOICES_PER_MINUTE": "600",
        **settings,
    }
    server = ServedBitcache(world, settings=hosted)
    try:
        await server.command("init", str(server.data_folder), "--channels")
        await server.start()
        seller_wallet = await OutsideWallet.create(world, f"channel-seller-{next(_names)}")
        buyer_wallet = await OutsideWallet.create(world, f"channel-buyer-{next(_names)}")
        for _ in range(6):
            await world.faucet(await buyer_wallet.new_address(), 1_000_000, confirmations=0)
        await world.mine()
        seller, buyer = folder / "seller", folder / "buyer"
        seller.mkdir()
        buyer.mkdir()
        words = ("account", "create", "Ada's music", "--data", str(server.data_folder))
        token = (await server.command_json(*words))["token"]
        await server.command("login", server.url, home=seller, stdin=token)
        address = await seller_wallet.new_address()
        await server.command("payout", "address", address, "--yes", home=seller)
        cookie = f"?cookie={world.outside.cookie_path}"
        url = f"bitcoind:{world.outside.rpc_url}/wallet/{buyer_wallet.name}{cookie}"
        yield ChannelMarket(server, folder, seller, buyer, buyer_wallet, url, keys)
    finally:
        await server.close()
