"""The shipped deploy/Caddyfile before the real server, with the real Caddy: only name and ports differ."""

import asyncio
import io
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from regtest.node import wait_until
from regtest.processes import GuardedProcess, free_ports
from regtest.world import RegtestWorld
from storage import base64url, digests
from storage.ports import PART_SIZE_BYTES
from tests.test_bitcache_sse import Reader
from tests.till import Till, open_till

CADDYFILE = Path(__file__).parent.parent / "deploy" / "Caddyfile"
CADDY = shutil.which("caddy")

pytestmark = pytest.mark.skipif(
    CADDY is None, reason="Caddy is not installed (Debian: apt-get install caddy)"
)


def shipped_site(folder: Path, *, port: int, server: int) -> Path:
    """The shipped file, on loopback and without certificates, which Caddy would fetch from outside."""
    shipped = CADDYFILE.read_text()
    assert shipped.count("files.example.org {") == 1
    assert shipped.count("127.0.0.1:8421") == 1
    site = shipped.replace("files.example.org {", f"http://127.0.0.1:{port} {{")
    site = site.replace("127.0.0.1:8421", f"127.0.0.1:{server}")
    site = re.sub(r"^\{\n", "{\n\tadmin off\n", site, count=1, flags=re.MULTILINE)
    path = folder / "Caddyfile"
    path.write_text(site)
    return path


@asynccontextmanager
async def through_caddy(till: Till, folder: Path) -> AsyncIterator[aiohttp.ClientSession]:
    folder.mkdir()
    (port,) = free_ports(1)
    site = shipped_site(folder, port=port, server=till.server.services.config.listen_port)
    assert CADDY is not None
    log = folder / "log"
    # Its own folders: it would keep certificates in the home.
    home = [f"{name}={folder}" for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")]
    command = ["env", *home, CADDY, "run", "--adapter", "caddyfile", "--config", str(site)]
    process = GuardedProcess(command, log=log, doomed_folder=folder)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:

            async def answers() -> bool:
                assert process.running, process.log_tail()
                try:
                    async with http.get("/healthz") as answer:
                        return answer.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            await wait_until(answers, "Caddy to answer")
            yield http
        for secret in (till.account.token, "/api/v1/invoices/"):
            assert secret not in log.read_text()
    finally:
        process.kill()


async def test_paid_through_caddy(world: RegtestWorld, tmp_path: Path) -> None:
    """An upload, 402, an invoice with its events, ranges of what was paid; metrics stay inside."""
    changes = {"trusted_proxies": ("127.0.0.1",), "open_invoices_per_client_max": 2}
    async with open_till(world, tmp_path, **changes) as till, through_caddy(till, tmp_path / "caddy") as http:
        await upload(till, http)
        async with http.get("/metrics") as answer:
            assert answer.status == 403
        sold = await till.offer()
        async with http.get(sold.content) as answer:
            assert answer.status == 402
        till.http = http
        bought = await till.buy(sold)
        async with http.get(f"/api/v1/invoices/{bought.id}/events") as answer:
            events = Reader(answer.content)
            await events.until("open")
            await till.pay(bought)
            await events.until("seen")
            await world.mine()
            await events.until("settled")
        part = await till.token(bought) | {"Range": "bytes=3-1002"}
        async with http.get(sold.content, headers=part) as answer:
            assert answer.status == 206
            assert await answer.read() == sold.blobs[sold.file_id][3:1003]
            assert answer.headers["ETag"].startswith('"')
        # Whoever invents an X-Forwarded-For is no other client: the third unpaid invoice is refused.
        statuses = []
        for number in range(3):
            async with till.ask(sold, os.urandom(32), forwarded_for=f"203.0.113.{number}") as answer:
                statuses.append(answer.status)
        assert statuses == [201, 201, 429]


async def upload(till: Till, http: aiohttp.ClientSession) -> None:
    """A part of the greatest size goes through, and comes as it is sent."""
    seller = {"Authorization": f"Bearer {till.account.token}"}
    blob = os.urandom(PART_SIZE_BYTES)
    async with http.post("/api/v1/files", json={"size_bytes": len(blob)}, headers=seller) as answer:
        file_id = (await answer.json())["file_id"]
    named = {"Bitcache-Chunk-Digests": base64url.encode(digests.chunk_digests(blob))}
    part = f"/api/v1/files/{file_id}/parts/0"
    async with asyncio.timeout(60), http.put(part, data=io.BytesIO(blob), headers=seller | named) as answer:
        assert answer.status == 204, await answer.text()
