"""A seller and a buyer on the real server, through the client library. Free offers need no bitcoin node.

async with open_shop(tmp_path) as shop:
    link = await shop.sell(shop.folder_of_files())
    paths = await shop.fetch(link, tmp_path / "out")
"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitcache.api import wire
from bitcache.client.api import CHUNK_S_MAX, ServerApi
from bitcache.client.download import Download
from bitcache.client.link import Link
from bitcache.client.purchase import buy, look
from bitcache.client.receipts import ReceiptBook
from bitcache.client.sources import collect
from bitcache.client.target import choose_target
from bitcache.client.upload import Description, Upload, make_offer
from bitcache.client.upload_state import UploadState
from tests.service import RunningServer, running_server

SIZES = {
    "one.bin": 3 * 1024 * 1024 + 123,
    "two.bin": 3 * 1024 * 1024 + 123,
    "deep/er/three.txt": 11,
    "empty": 0,
}


@dataclass
class CountingProgress:
    """Remembers what it was told."""

    started: list[str] = field(default_factory=list)
    total_bytes: int = 0
    done_bytes: int = 0

    def start(self, what: str, total_bytes: int) -> None:
        self.started.append(what)
        self.total_bytes, self.done_bytes = total_bytes, 0

    def advance(self, length_bytes: int) -> None:
        self.done_bytes += length_bytes


@dataclass
class Shop:
    server: RunningServer
    token: str
    folder: Path

    def files(self, name: str = "goods", sizes: dict[str, int] = SIZES) -> Path:
        """A folder of pseudo-random files, always the same."""
        source = self.folder / name
        rng = random.Random(name)
        for path, size_bytes in sizes.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(rng.randbytes(size_bytes))
        return source

    async def sell(self, source: Path, *, price_sat: int = 0, policy: wire.PolicyView | None = None) -> Link:
        """Upload `source` and offer it."""
        state = UploadState(self.folder / "states" / f"{source.name}.db")
        try:
            async with ServerApi(self.server.url, self.token) as api:
                parcel_id = await Upload(
                    api,
                    state,
                    collect([source]),
                    Description(title=f"Parcel {source.name}"),
                    meterable=False,
                    progress=CountingProgress(),
                ).run()
                offer = await make_offer(
                    api,
                    wire.OfferRequest(
                        parcel_id=parcel_id,
                        price=wire.FixedPrice(amount_msat=price_sat * 1000),
                        policy=policy or wire.PolicyView(),
                    ),
                )
            return Link(self.server.url, offer.offer_id, state.link_secret)
        finally:
            state.close()

    async def fetch(
        self,
        link: Link,
        output: Path,
        *,
        server: str | None = None,
        force: bool = False,
        progress: CountingProgress | None = None,
        retry_for_s: float = 1.0,
        chunk_s_max: float = CHUNK_S_MAX,
    ) -> list[Path]:
        """Buy what is free and download it, from `server` if that is not the link's."""
        book = ReceiptBook(self.folder / "receipts")
        async with ServerApi(server or link.server, retry_for_s=retry_for_s, chunk_s_max=chunk_s_max) as api:
            offer, parcel = await look(api, link)
            purchase = await buy(api, link, offer, parcel, book)
            with choose_target(output, [file.path for file in parcel.files]) as target:
                return await Download(
                    api,
                    purchase.receipt,
                    purchase.invoice.offer_id,
                    parcel,
                    target,
                    progress=progress or CountingProgress(),
                    on_invoice=lambda invoice: None,
                    force=force,
                ).run()


@asynccontextmanager
async def open_shop(folder: Path, **changes: Any) -> AsyncIterator[Shop]:
    """A real server in `folder` with one seller; `changes` are fields of its Config."""
    data = folder / "server"
    data.mkdir()
    async with running_server(data, **changes) as server:
        seller = await server.new_seller()
        yield Shop(server, seller.token, folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
