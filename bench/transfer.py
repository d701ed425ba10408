"""Bytes in and out: what a GiB costs the server and the command line, beside nginx, bare aiohttp and curl.

Each cost is the median of rounds in which all that is compared takes turns, so that a change of the machine's
mood meets all of them. Costs are processor seconds, not the time it took: the disk has no say, and what runs
beside has little.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.access_check import access_check
from bench.memory import BUYERS, memory
from bench.processes import Spent, cpu_s, run
from bench.raw_http import RawConnection, in_lanes
from bench.references import Reference, bare_aiohttp, nginx_in_front, plain_nginx
from bench.report import Line
from bench.stage import Claimed, Stage, open_stage
from regtest.served import BITCACHE
from storage import base64url, digests
from storage.ports import PART_SIZE_BYTES

MIB = 1 << 20
GIB = 1 << 30
LANES = 4
"""As many as a grant may have."""
PREFIX = "/bitcache-blobs"
SETTINGS = {
    "ACCEL_REDIRECT_PREFIX": PREFIX,
    "TRUSTED_PROXIES": "127.0.0.1",
    "DISK_RESERVE_BYTES": "0",
}
NO_NGINX = "nginx is not installed"


@dataclass(frozen=True)
class Scale:
    size_bytes: int
    large_bytes: int
    rounds: int
    access_checks: int
    buyers: int


FULL = Scale(size_bytes=GIB, large_bytes=4 * GIB, rounds=6, access_checks=20_000, buyers=BUYERS)
TINY = Scale(size_bytes=9 * MIB, large_bytes=9 * MIB, rounds=1, access_checks=100, buyers=5)


async def lines(*, tiny: bool = False) -> list[Line]:
    scale = TINY if tiny else FULL
    async with open_stage(SETTINGS) as stage:
        file = stage.file("goods.bin", scale.size_bytes)
        link, _ = await stage.upload(file, "5000sat")
        claimed = await stage.claim_paid(link)
        free_link, _ = await stage.upload(file)
        served = await _served(stage, claimed, scale)
        return [
            *served[:3],
            await access_check(scale.access_checks),
            *served[3:],
            *await _command_line(stage, free_link, file, scale),
            *await memory(stage, scale.large_bytes, buyers=scale.buyers),
        ]


# The server.


async def _served(stage: Stage, claimed: Claimed, scale: Scale) -> list[Line]:
    blobs = stage.server.data_folder / "blobs"
    file_id = claimed.content.split("/")[-2]
    shard = file_id[:2]
    server = Reference(stage.server.port, stage.server.pid)
    async with AsyncExitStack() as closing:
        bare = await closing.enter_async_context(bare_aiohttp(stage.folder, blobs / shard))
        nginx = await closing.enter_async_context(plain_nginx(stage.folder, blobs))
        front = await closing.enter_async_context(
            nginx_in_front(stage.folder, server=server.port, blobs=blobs)
        )
        cost: dict[str, list[float]] = defaultdict(list)

        async def spend(name: str, work: Callable[[], None], *of: Reference) -> None:
            before = sum(cpu_s(one.pid) for one in of)
            await asyncio.to_thread(work)
            spent = sum(cpu_s(one.pid) for one in of) - before
            cost[name].append(spent * GIB / scale.size_bytes)

        def download(from_: Reference, path: str, headers: dict[str, str]) -> Callable[[], None]:
            return lambda: _download(from_.port, path, headers, claimed.size_bytes)

        upload = _Upload(stage, scale.size_bytes)
        for number in range(scale.rounds):
            await spend("download", download(server, claimed.content, claimed.headers), server)
            await spend("bare download", download(bare, f"/{file_id}", {}), bare)
            if nginx is not None and front is not None:
                await spend("nginx download", download(nginx, f"/{shard}/{file_id}", {}), nginx)
                through = download(front, claimed.content, claimed.headers)
                await spend("front download", through, server, front)
            await upload.announce()
            await spend("upload", upload.send, server)
            await upload.remove()
            await spend("bare upload", lambda: upload.send_to(bare.port, "/"), bare)
            if nginx is not None:
                await spend("nginx upload", lambda: upload.send_to(nginx.port, "/dav/"), nginx)
            cost["sha256"].append(upload.hash() * GIB / scale.size_bytes)
            if number == 0 and scale.rounds > 1:
                cost.clear()  # everything is in memory and has grown to its size now
    return _served_lines({name: statistics.median(values) for name, values in cost.items()})


def _served_lines(cost: dict[str, float]) -> list[Line]:
    what = "paid download in ranges of 1 MiB, server"
    uploaded = "upload in parts of 8 MiB, server"
    reading = Line(
        "of it what aiohttp takes to read a body, and SHA-256",
        f"{cost['bare upload'] + cost['sha256']:.2f} s/GiB",
    )
    found = [_cost_line(what, cost["download"], cost["bare download"], "aiohttp FileResponse", 1.25)]
    if "nginx download" not in cost:
        return [
            *found,
            Line(what, f"{cost['download']:.2f} s/GiB", NO_NGINX),
            Line("the same through nginx (X-Accel-Redirect)", NO_NGINX),
            Line(uploaded, f"{cost['upload']:.2f} s/GiB", NO_NGINX),
            reading,
        ]
    return [
        *found,
        _cost_line(what, cost["download"], cost["nginx download"], "nginx", 2),
        _cost_line(
            "the same through nginx (X-Accel-Redirect), both",
            cost["front download"],
            cost["nginx download"],
            "nginx",
            None,
        ),
        _cost_line(
            uploaded,
            cost["upload"],
            cost["nginx upload"] + cost["sha256"],
            "nginx dav PUT + SHA-256",
            1.3,
        ),
        reading,
    ]


def _download(port: int, path: str, headers: dict[str, str], size_bytes: int) -> None:
    def fetch(first: int) -> Callable[[RawConnection], None]:
        last = min(first + MIB, size_bytes) - 1

        def job(connection: RawConnection) -> None:
            received = connection.get(path, {**headers, "Range": f"bytes={first}-{last}"})
            assert received == last - first + 1

        return job

    in_lanes(port, LANES, [fetch(first) for first in range(0, size_bytes, MIB)])


class _Upload:
    """One file of whole parts, all the same bytes, sent again and again."""

    def __init__(self, stage: Stage, size_bytes: int) -> None:
        self._server, self._token = stage.server, stage.token
        self._part_count = max(1, size_bytes // PART_SIZE_BYTES)
        self._part = memoryview(os.urandom(PART_SIZE_BYTES))
        self._digests = digests.chunk_digests(self._part)
        self._file_id = ""

    async def announce(self) -> None:
        body = {"size_bytes": self._part_count * PART_SIZE_BYTES}
        file = await self._server.http("POST", "/files", body=body, token=self._token)
        self._file_id = file.json()["file_id"]

    async def remove(self) -> None:
        await self._server.http("DELETE", f"/files/{self._file_id}", token=self._token)

    def send(self) -> None:
        self.send_to(self._server.port, f"/api/v1/files/{self._file_id}/parts/")

    def send_to(self, port: int, place: str) -> None:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Bitcache-Chunk-Digests": base64url.encode(self._digests),
        }

        def put(part_no: int) -> Callable[[RawConnection], None]:
            return lambda connection: connection.put(f"{place}{part_no}", headers, self._part)

        in_lanes(port, LANES, [put(part_no) for part_no in range(self._part_count)])

    def hash(self) -> float:
        """Processor seconds of one SHA-256 over all of it."""
        started_at = time.thread_time()
        for _ in range(self._part_count):
            hashlib.sha256(self._part).digest()
        return time.thread_time() - started_at


# The command line.


async def _command_line(stage: Stage, link: str, file: Path, scale: Scale) -> list[Line]:
    spent: dict[str, list[Spent]] = defaultdict(list)
    blobs = stage.server.data_folder / "blobs"
    async with plain_nginx(_made(stage.folder / "to"), blobs) as nginx:
        for number in range(scale.rounds // 2 + 1):
            spent["get"].append(await _get(stage, link, number))
            spent["curl"].append(await _curl(stage, link))
            spent["sha256"].append(await asyncio.to_thread(_hashed, file))
            spent["upload"].append(await _put(stage, file, number))
            if nginx is not None:
                target = f"http://127.0.0.1:{nginx.port}/dav/{number}"
                words = ("curl", "-sSf", "-T", file, target)
                spent["curl -T"].append(await asyncio.to_thread(run, words))
    size_gib = file.stat().st_size / GIB
    cpu = {name: statistics.median(one.cpu_s for one in all_) / size_gib for name, all_ in spent.items()}
    rate = {
        name: file.stat().st_size / statistics.median(one.took_s for one in all_) / 1e6
        for name, all_ in spent.items()
    }
    found = [
        _cost_line(
            "bitcache get: download, verify, decrypt, write",
            cpu["get"],
            cpu["curl"] + cpu["sha256"],
            "curl -o + SHA-256",
            2,
        ),
        _rate_line("bitcache get", rate["get"], rate["curl"], "curl -o"),
    ]
    if "curl -T" in cpu:
        found.append(
            _cost_line("bitcache upload: encrypt, send", cpu["upload"], cpu["curl -T"], "curl -T", None)
        )
        found.append(_rate_line("bitcache upload", rate["upload"], rate["curl -T"], "curl -T, no fsync"))
    return found


def _hashed(file: Path) -> Spent:
    cpu_before_s, started_at = time.thread_time(), time.monotonic()
    with file.open("rb") as opened:
        hashlib.file_digest(opened, "sha256")
    return Spent(time.thread_time() - cpu_before_s, time.monotonic() - started_at, peak_mib=0)


async def _get(stage: Stage, link: str, number: int) -> Spent:
    home, target = _made(stage.folder / f"buyer {number}"), stage.folder / f"got {number}"
    words = (BITCACHE, "get", link, "--yes", "--output", target)
    spent = await asyncio.to_thread(run, words, environment=stage.server.environment(home))
    target.unlink()
    return spent


async def _put(stage: Stage, file: Path, number: int) -> Spent:
    same = file.with_name(f"upload {number}.bin")
    same.hardlink_to(file)
    words = (BITCACHE, "upload", same, "--price", "0")
    return await asyncio.to_thread(run, words, environment=stage.server.environment(stage.home))


async def _curl(stage: Stage, link: str) -> Spent:
    claimed = await stage.claim_free(link)
    target = stage.folder / "curl.out"
    header = f"Authorization: {claimed.headers['Authorization']}"
    words = ("curl", "-sSf", "-o", target, "-H", header, stage.server.url + claimed.content)
    spent = await asyncio.to_thread(run, words)
    target.unlink()
    return spent


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# Lines.


def _cost_line(what: str, cost: float, reference: float, name: str, budget: float | None) -> Line:
    """Costs in processor seconds per GiB."""
    ratio = cost / reference
    return Line(
        f"{what}, CPU",
        f"{cost:.2f} s/GiB",
        f"{reference:.2f} s/GiB ({name})",
        f"{ratio:.2f}",
        f"<= {budget:g}x" if budget else "",
        budget is None or ratio <= budget,
    )


def _rate_line(what: str, rate: float, reference: float, name: str) -> Line:
    """Rates in MB/s: the disk of the machine has its say, so nothing is asked of them."""
    return Line(
        f"{what}, rate", f"{rate:.0f} MB/s", f"{reference:.0f} MB/s ({name})", f"{rate / reference:.2f}"
    )
