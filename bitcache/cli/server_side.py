"""What the operator's commands share: the server's services, whether it runs or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitcache.services import Services


@asynccontextmanager
async def server_services(data: Path, *, with_channels: bool = False) -> AsyncIterator[Services]:
    """Those of the server in this data folder, with its tables up to date."""
    from bitcache import config_file
    from bitcache.services import open_services
    from bitcache.setup import prepare_database

    settings = config_file.load(data)
    async with open_services(settings, with_channels=with_channels) as services:
        await prepare_database(settings, services.database)
        yield services
