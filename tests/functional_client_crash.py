"""kill -9 in the middle of an upload and of a download: run again, and hardly a byte is sent twice.

Real processes: the server, and the `bitcache` command as users run it. A counting proxy stands between them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bitcache.client import upload as uploading
from storage.ports import PART_SIZE_BYTES
from tests.client_shop import Shop, open_shop
from tests.command_server import quick_bitcache

SIZE_BYTES = 96 << 20
HALF_BYTES = SIZE_BYTES // 2
BITCACHE = Path(sys.executable).with_name("bitcache")


@dataclass
class Wire:
    """A TCP relay to the server that counts bytes, and calls when so many have passed one way."""

    up_bytes: int = 0
    down_bytes: int = 0
    up_watch: int | None = None
    down_watch: int | None = None
    passed: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self, *, up: int = 0, down: int = 0) -> None:
        self.up_bytes += up
        self.down_bytes += down
        if (self.up_watch is not None and self.up_bytes >= self.up_watch) or (
            self.down_watch is not None and self.down_bytes >= self.down_watch
        ):
            self.passed.set()

    def restart(self) -> None:
        self.up_bytes = self.down_bytes = 0
        self.up_watch = self.down_watch = None
        self.passed.clear()


@asynccontextmanager
async def relay(port: int, wire: Wire) -> AsyncIterator[str]:
    """The address of a relay to the loopback `port`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
            try:
                while piece := await source.read(1 << 16):
                    sink.write(piece)
                    await sink.drain()
                    wire.count(up=len(piece) if up else 0, down=0 if up else len(piece))
            except ConnectionError:
                pass
            finally:
                sink.close()

        await asyncio.gather(pump(reader, far_writer, up=True), pump(far_reader, writer, up=False))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def environment(home: Path, changes: Mapping[str, str]) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("BITCACHE_", "XDG_"))
    }
    return {**inherited, "HOME": str(home), **changes}


async def bitcache(home: Path, *words: str, **changes: str) -> asyncio.subprocess.Process:
    """A command that nobody sends a signal."""
    return await _started(quick_bitcache(), home, *words, **changes)


async def installed_bitcache(home: Path, *words: str, **changes: str) -> asyncio.subprocess.Process:
    return await _started(BITCACHE, home, *words, **changes)


async def _started(program: Path, home: Path, *words: str, **changes: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        program,
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(home, changes),
        cwd=home,
    )


async def finished(process: asyncio.subprocess.Process) -> dict[str, object]:
    """The JSON document of a command that must succeed."""
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode() + out.decode()
    document: dict[str, object] = json.loads(out)
    return document


async def killed_half_way(process: asyncio.subprocess.Process, wire: Wire) -> None:
    await asyncio.wait_for(wire.passed.wait(), 120)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert process.returncode == -signal.SIGKILL


def port_of(shop: Shop) -> int:
    return int(shop.server.url.rsplit(":", 1)[1])


async def test_killed_half_way_both_go_on(tmp_path: Path) -> None:
    wire = Wire()
    async with open_shop(tmp_path) as shop, relay(port_of(shop), wire) as url:
        file = tmp_path / "big file.bin"
        file.write_bytes(random.Random(1).randbytes(SIZE_BYTES))
        seller = {"BITCACHE_SERVER": url, "BITCACHE_TOKEN": shop.token}
        command = ("upload", str(file), "--price", "0", "--json")

        wire.up_watch = HALF_BYTES + PART_SIZE_BYTES // 2
        await killed_half_way(await installed_bitcache(tmp_path, *command, **seller), wire)
        first_bytes = wire.up_bytes
        wire.restart()
        upload = await finished(await bitcache(tmp_path, *command, **seller))
        sent_again = first_bytes + wire.up_bytes - SIZE_BYTES
        # Headers and small requests are some kilobytes.
        assert HALF_BYTES <= first_bytes < SIZE_BYTES
        assert sent_again <= uploading.LANES * PART_SIZE_BYTES + (1 << 20)
        states = tmp_path / ".local" / "state" / "bitcache" / "uploads"
        assert not list(states.glob("*.db"))

        link = str(upload["link"])
        target = tmp_path / "out"
        target.mkdir()
        command = ("get", link, "-o", str(target), "--json")
        wire.restart()
        wire.down_watch = HALF_BYTES
        await killed_half_way(await installed_bitcache(tmp_path, *command), wire)
        first_bytes = wire.down_bytes
        assert not list(target.glob("*.bin"))
        wire.restart()
        await finished(await bitcache(tmp_path, *command))
        fetched_again = first_bytes + wire.down_bytes - SIZE_BYTES
        # Chunks under way, and what the sockets had swallowed.
        assert fetched_again <= 4 * PART_SIZE_BYTES
        assert (target / "big file.bin").read_bytes() == file.read_bytes()
        assert [path.name for path in target.iterdir()] == ["big file.bin"]
        print(f"sent again: {sent_again >> 20} MiB up, {fetched_again >> 20} MiB down")


async def test_two_uploads_of_the_same_are_not_mixed(tmp_path: Path) -> None:
    async with open_shop(tmp_path) as shop:
        file = tmp_path / "file.bin"
        file.write_bytes(random.Random(2).randbytes(SIZE_BYTES))
        seller = {"BITCACHE_SERVER": shop.server.url, "BITCACHE_TOKEN": shop.token}
        both = [
            await bitcache(tmp_path, "upload", str(file), "--price", "0", "--json", **seller) for _ in "ab"
        ]
        ends = [await process.communicate() for process in both]
        codes = sorted(process.returncode or 0 for process in both)
        assert codes == [0, 1], ends
        (refused,) = [out for (out, _), process in zip(ends, both, strict=True) if process.returncode]
        assert json.loads(refused)["error"]["name"] == "AlreadyRunning"
