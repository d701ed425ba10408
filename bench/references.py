"""What the server is compared with, as processes beside it: nginx, and aiohttp with nothing around it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.raw_http import RawConnection
from bench.report import PROJECT
from regtest.node import wait_until
from regtest.processes import GuardedProcess, free_ports
from tests.nginx import Nginx, find_nginx, shipped_site

PLAIN_SITE = """\
server {{
    listen 127.0.0.1:{port};
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_max_body_size 0;
    root {blobs};
    location /dav/ {{
        alias {uploads}/;
        dav_methods PUT;
    }}
}}
"""


@dataclass(frozen=True)
class Reference:
    port: int
    pid: int


@asynccontextmanager
async def bare_aiohttp(folder: Path, files: Path) -> AsyncIterator[Reference]:
    """`bench.bare`: `FileResponse` of `files`, and a PUT that only reads."""
    async with beside("bench.bare", files, log=folder / "bare.log") as reference:
        yield reference


@asynccontextmanager
async def beside(module: str, *words: str | Path, log: Path) -> AsyncIterator[Reference]:
    """`python -m MODULE PORT WORDS`, which serves at that port."""
    (port,) = free_ports(1)
    process = GuardedProcess([sys.executable, "-m", module, str(port), *words], log=log, folder=PROJECT)
    try:

        async def listening() -> bool:
            try:
                with RawConnection(port):
                    return True
            except OSError:
                assert process.running, process.log_tail()
                return False

        await wait_until(listening, f"{module} to listen")
        yield Reference(port, process.pid)
    finally:
        process.kill()


@asynccontextmanager
async def plain_nginx(folder: Path, blobs: Path) -> AsyncIterator[Reference | None]:
    """Files of `blobs` by sendfile, and WebDAV's PUT below /dav/; None where there is no nginx."""
    (port,) = free_ports(1)
    uploads = folder / "dav"
    uploads.mkdir()
    async with _nginx(
        folder / "nginx", PLAIN_SITE.format(port=port, blobs=blobs, uploads=uploads), port
    ) as it:
        yield it


@asynccontextmanager
async def nginx_in_front(folder: Path, *, server: int, blobs: Path) -> AsyncIterator[Reference | None]:
    """The shipped configuration, without TLS; None where there is no nginx."""
    (port,) = free_ports(1)
    place = folder / "front"
    site = shipped_site(place, server=server, port=port, blobs=blobs, tls=False)
    async with _nginx(place, site, port) as it:
        yield it


@asynccontextmanager
async def _nginx(folder: Path, site: str, port: int) -> AsyncIterator[Reference | None]:
    if find_nginx() is None:
        yield None
        return
    folder.mkdir()
    nginx = Nginx(folder, site)
    try:
        await nginx.start(port)
        yield Reference(port, nginx.pid)
    finally:
        nginx.close()
