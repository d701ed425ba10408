"""A process that wants the channels of a database, and does what its standard input says, line by line.

    python -m tests.channel_process DATABASE_URL

    {"do": "pay", "channel": id, "cumulative": 3, "signature": hex, "unit": 0}    answered when it is durable
    {"do": "hold"}    writes wait from now on; {"do": "go"} lets them through
    {"do": "state"}   whether it has the channels

Every answer is the request with `said` added: what came of it, or the name of the error. End of input is a
clean stop.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from bitcache.db.engine import Database
from payments.channel import Voucher
from payments.channel_registry import ChannelRegistry
from tests.channel_house import EXPOSURE, FrailStore, charge

STARTED = "started"


class Process:
    """The other side, in the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._asked = 0
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, url: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.channel_process",
            url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert (await process.stdout.readline()).strip() == STARTED.encode()
        return cls(process)

    def ask(self, do: str, **words: Any) -> asyncio.Future[Any]:
        """Sent when this returns; what it said, in time."""
        self._asked += 1
        answer = self._waiting[self._asked] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"n": self._asked, "do": do, **words}).encode() + b"\n")
        return answer

    def pay(self, voucher: Voucher, unit: int) -> asyncio.Future[Any]:
        return self.ask(
            "pay",
            channel=voucher.channel_id,
            cumulative=voucher.cumulative_sat,
            signature=voucher.signature.hex(),
            unit=unit,
        )

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def stop(self) -> None:
        """A clean stop."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self.ended()

    async def ended(self) -> None:
        await self._process.wait()
        await self._reading

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self.ended()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            waiting = self._waiting.pop(answer["n"])
            if not waiting.done():
                waiting.set_result(answer["said"])


async def main(url: str) -> None:
    database = Database(url)
    store = FrailStore(database)
    registry = ChannelRegistry(store=store, exposure=EXPOSURE, clock=lambda: int(time.time()))
    running = asyncio.create_task(registry.run())
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print(STARTED, flush=True)
    working: set[asyncio.Task[None]] = set()
    while line := await lines.readline():
        task = asyncio.create_task(answer(json.loads(line), registry, store))
        working.add(task)
        task.add_done_callback(working.discard)
    running.cancel()
    await asyncio.wait([running])
    await database.close()


async def answer(asked: dict[str, Any], registry: ChannelRegistry, store: FrailStore) -> None:
    try:
        said = await work(asked, registry, store)
    except Exception as exc:
        said = type(exc).__name__
    print(json.dumps({**asked, "said": said}), flush=True)


async def work(asked: dict[str, Any], registry: ChannelRegistry, store: FrailStore) -> Any:
    match asked["do"]:
        case "pay":
            voucher = Voucher(asked["channel"], asked["cumulative"], bytes.fromhex(asked["signature"]))
            paid = await registry.pay(voucher, charge(asked["unit"]))
            return [paid.cost_msat, paid.balance.spent_msat]
        case "hold":
            store.open.clear()
        case "go":
            store.open.set()
        case "state":
            return registry.available
    return None


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
