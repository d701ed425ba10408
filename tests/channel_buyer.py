"""A buyer through the client library, whose channel is funded by the miner: for servers that lie."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bitcache.client.api import ServerApi
from bitcache.client.channel_book import ChannelBook, OwnChannel
from bitcache.client.channel_count import ChannelCount
from bitcache.client.channels import ChannelServer
from bitcache.client.link import Link, parse
from bitcache.client.meter import Meter
from bitcache.client.metered_download import MeteredDownload
from bitcache.client.purchase import look
from bitcache.client.purses import open_purses
from bitcache.client.target import choose_target
from regtest.world import MINER, RegtestWorld
from tests.client_shop import CountingProgress

DEPOSIT_SAT = 20_000


class ChannelBuyer:
    """`url`: of the server, or of one that lies in its name."""

    def __init__(self, world: RegtestWorld, folder: Path, url: str) -> None:
        self.world = world
        self.folder = folder
        self.url = url
        self.book = ChannelBook(folder / "channels")
        self.told: list[str] = []

    async def open(self, *, deposit_sat: int = DEPOSIT_SAT) -> OwnChannel:
        """Without a confirmation."""
        change = await self.world.outside.rpc("getnewaddress", address_type="bech32", wallet=MINER)
        async with ServerApi(self.url) as api:
            talk = ChannelServer(api, self.book)
            contract = talk.agree(await talk.terms(), change)
            await talk.announce(contract)
            await self.world.faucet(contract.address, deposit_sat, confirmations=0)
            async with asyncio.timeout(30):
                while not (owns := await talk.announce(contract)):
                    await asyncio.sleep(0.05)
            await talk.open(owns[0])
            return owns[0]

    async def get(
        self,
        link: str,
        *,
        retry_for_s: float = 1.0,
        chunk_s_max: float = 30.0,
        price_msat: int | None = None,
        on_meter: Callable[[Meter], None] = lambda meter: None,
    ) -> Path:
        """The file. `price_msat`: what the buyer agreed to, if not what the offer says."""
        where = parse(link)
        assert isinstance(where, Link)
        async with ServerApi(self.url, retry_for_s=retry_for_s, chunk_s_max=chunk_s_max) as api:
            offer, parcel = await look(api, where)
            assert offer.metered is not None
            with ExitStack() as stack:
                file_ids = [file.file_id for file in parcel.files]
                purses = await open_purses(
                    stack, ChannelServer(api, self.book), self.book, self.url, file_ids
                )
                meter = Meter(
                    ChannelServer(api, self.book),
                    purses,
                    price_msat=price_msat or offer.metered.amount_msat,
                    wait=False,
                    tell=self.told.append,
                )
                on_meter(meter)
                target = stack.enter_context(choose_target(self.folder / "file", ["file"]))
                download = MeteredDownload(api, where, parcel, target, meter, progress=CountingProgress())
                (path,) = await download.run()
                return path

    def count(self, own: OwnChannel) -> ChannelCount:
        return self.book.glance(own)
