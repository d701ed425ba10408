"""Memory of the server while many buyers stream a large file, and of the command line for the same file."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable

from bench.processes import Peak, Spent, resident_mib, run
from bench.raw_http import RawConnection, in_lanes
from bench.report import Line
from bench.stage import Claimed, Stage
from regtest.served import BITCACHE

GIB = 1 << 30
BUYERS = 50
STREAMED_S = 15
SERVER_MIB_MAX = 200
CLIENT_MIB_MAX = 150


async def memory(stage: Stage, size_bytes: int, *, buyers: int = BUYERS) -> list[Line]:
    """A file of `size_bytes` without a written block goes in, is streamed to many, and comes out."""
    source, target = stage.folder / "sparse.bin", stage.folder / "whole.bin"
    with source.open("wb") as file:
        file.truncate(size_bytes)
    environment = stage.server.environment(stage.home)
    link_file = stage.folder / "large.json"
    upload = await asyncio.to_thread(
        run, (BITCACHE, "upload", source, "--price", "0", "--json"), environment=environment, output=link_file
    )
    link = str(json.loads(link_file.read_text())["link"])
    claims = [await stage.claim_free(link) for _ in range(buyers)]
    before_mib = resident_mib(stage.server.pid)
    with Peak(lambda: resident_mib(stage.server.pid)) as peak:
        streamed_bytes = await asyncio.to_thread(_stream, stage.server.port, claims)
    words = (BITCACHE, "get", link, "--yes", "--output", target)
    get = await asyncio.to_thread(run, words, environment=environment)
    assert target.stat().st_size == size_bytes
    target.unlink()
    large = f"{size_bytes / GIB:.3g} GiB"
    return [
        Line(
            f"server memory, {buyers} buyers streaming {large} at a time",
            f"{peak.peak_mib:.0f} MiB",
            f"{before_mib:.0f} MiB (before; {streamed_bytes / GIB:.0f} GiB were streamed)",
            "",
            f"<= {SERVER_MIB_MAX} MiB",
            peak.peak_mib <= SERVER_MIB_MAX,
        ),
        _client_line("bitcache upload", large, upload),
        _client_line("bitcache get", large, get),
    ]


def _client_line(what: str, large: str, spent: Spent) -> Line:
    return Line(
        f"{what}, memory for {large}",
        f"{spent.peak_mib:.0f} MiB",
        budget=f"<= {CLIENT_MIB_MAX} MiB",
        kept=spent.peak_mib <= CLIENT_MIB_MAX,
    )


def _stream(port: int, claims: list[Claimed]) -> int:
    """Bytes that reached all buyers, each with a connection and a grant of its own, asking for the whole."""
    received = [0] * len(claims)
    enough = threading.Event()
    timer = threading.Timer(STREAMED_S, enough.set)

    def buyer(number: int) -> Callable[[RawConnection], None]:
        def job(connection: RawConnection) -> None:
            claimed = claims[number]
            received[number] = connection.get(claimed.content, claimed.headers, until=enough.is_set)

        return job

    timer.start()
    in_lanes(port, len(claims), [buyer(number) for number in range(len(claims))])
    timer.cancel()
    return sum(received)
