"""A server on which sellers may sell per chunk, and one who can be paid; without a node nobody can buy.

async with open_metered_till(tmp_path) as shop:
    offer = await shop.offer(metered_msat=10_000)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bitcache import payout_targets
from bitcache.channel_seed import write_channel_seed
from bitcache.config import ChannelsConfig, Config, HostedConfig
from payments.ports import Transaction
from storage.stream import CHUNK_SIZE_BYTES
from tests.till import Sold, Till, open_nodeless_till

HOSTED = HostedConfig(descriptor="wpkh(of nobody)", fee_percent="1")
"""No node reads it here."""
NOBODYS_ADDRESS = payout_targets.Target("bcrt1qnobody", bytes.fromhex("0014") + bytes(20))
SIZES = (CHUNK_SIZE_BYTES + 1, 100)
"""Two chunks and one."""


@dataclass
class MeteredCounter:
    till: Till
    seller: aiohttp.ClientSession

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """As the seller: (status, document)."""
        async with self.seller.request(method, f"/api/v1{path}", json=body) as answer:
            return answer.status, await answer.json()

    async def parcel(self, *, meterable: bool = True, sizes: tuple[int, ...] = SIZES) -> Sold:
        """With an offer that costs nothing, and is closed."""
        return await self.till.offer(price_sat=0, sizes=sizes, meterable=meterable, closed_at=1)

    async def make(
        self, parcel: Sold, *, price_msat: int | None = None, metered_msat: int | None = None, **terms: Any
    ) -> tuple[int, Any]:
        """Offer this parcel; what is None is left out."""
        body = {"parcel_id": parcel.parcel_id, **prices(price_msat, metered_msat), **terms}
        return await self.ask("POST", "/offers", body)

    async def offer(self, *, price_msat: int | None = None, metered_msat: int | None = 10_000) -> Any:
        """The offer of a new parcel; fails unless there is one."""
        status, offer = await self.make(await self.parcel(), price_msat=price_msat, metered_msat=metered_msat)
        assert status == 201, offer
        return offer

    async def set_target(self) -> None:
        """An address that earnings are paid out to."""
        now, account_id = self.till.server.clock(), self.till.account.account_id

        async def put(tx: Transaction) -> None:
            await payout_targets.set_target(tx, account_id, NOBODYS_ADDRESS, delay_s=0, now=now)

        await self.till.server.services.database.write(put)


def prices(price_msat: int | None, metered_msat: int | None) -> dict[str, Any]:
    """The members of a request."""
    body: dict[str, Any] = {}
    if price_msat is not None:
        body["price"] = {"kind": "fixed", "amount_msat": price_msat}
    if metered_msat is not None:
        body["metered"] = {"kind": "per_chunk", "amount_msat": metered_msat}
    return body


def with_seed(config: Config) -> Config:
    """A channel seed where one will be read."""
    if config.channels.enabled and not config.channel_seed.exists():
        write_channel_seed(config.channel_seed)
    return config


@asynccontextmanager
async def open_metered_till(
    folder: Path, *, target: bool = True, changes: Mapping[str, Any] | None = None
) -> AsyncIterator[MeteredCounter]:
    """`changes` are fields of the configuration; `target`: whether the seller has said where to be paid."""
    settings: dict[str, Any] = {"hosted": HOSTED, "channels": ChannelsConfig(enabled=True), **(changes or {})}
    async with (
        open_nodeless_till(folder, prepare=with_seed, **settings) as till,
        till.server.session(till.account.token) as http,
    ):
        shop = MeteredCounter(till, http)
        if target:
            await shop.set_target()
        yield shop
