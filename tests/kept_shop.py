"""A shop whose server is backed up and restored, without a node: what is sold is free."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitcache.backup import BackupDone, back_up
from bitcache.client.link import Link
from bitcache.config import CONFIG_FILE_NAME, Config
from bitcache.restore import Restored, restore
from tests.client_shop import SIZES, Shop, open_shop, tree
from tests.service import running_server

NOW = 1_800_000_000


@dataclass
class Kept:
    """A shop with one parcel on a free offer, and its backup."""

    shop: Shop
    link: Link
    folder: Path

    @property
    def config(self) -> Config:
        return self.shop.server.services.config

    @property
    def backup(self) -> Path:
        return self.folder / "backup"

    @property
    def key(self) -> Path:
        return self.config.master_key

    async def back_up(self, *, with_master_key: bool = False, into: Path | None = None) -> BackupDone:
        return await back_up(self.config, into or self.backup, with_master_key=with_master_key, now=NOW)

    async def restore(self, *, key: Path | None, **environment: str) -> Restored:
        return await restore(
            self.backup,
            self.folder / "restored",
            master_key_file=key,
            environment={f"BITCACHE_{name}": value for name, value in environment.items()},
            now=NOW + 60,
        )

    async def check_restored(self, restored: Restored) -> None:
        """A server on what was restored gives the same files for the old link."""
        config = restored.config
        async with running_server(config.data_folder, database_url=config.database_url) as server:
            await self.shop.fetch(self.link, self.folder / "fetched", server=server.url, force=True)
        assert tree(self.folder / "fetched" / "goods") == tree(self.folder / "goods")
        for path in config.data_folder.rglob("*"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@asynccontextmanager
async def open_kept(folder: Path, *, sizes: dict[str, int] = SIZES, **changes: Any) -> AsyncIterator[Kept]:
    """A shop in `folder` with one parcel; `changes` are fields of its Config."""
    async with open_shop(folder, **changes) as shop:
        (shop.server.services.config.data_folder / CONFIG_FILE_NAME).write_text('network = "regtest"\n')
        yield Kept(shop, await shop.sell(shop.files("goods", sizes)), folder)
