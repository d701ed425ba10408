"""The server of a drill: the real program, with a clock that a file sets and a disk that can be full."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from regtest.errors import RegtestError
from regtest.processes import GuardedProcess
from regtest.served import ServedBitcache, ServerFailed
from regtest.world import RegtestWorld
from tests.drill.proxy import Proxy

ROOT = Path(__file__).parents[2]
DISK_BYTES = 512 << 20
NO_ROOM_RESERVE_BYTES = 1 << 60
PRICE_HOLD_S = 20
START_TIMEOUT_S = 60.0


class DrillServer(ServedBitcache):
    """`bitcache serve` as a process, its data on a disk that can be full, its clock set by a file."""

    def __init__(self, world: RegtestWorld, front: Proxy, zmq: Proxy, disk: Path, *, tmpfs: bool) -> None:
        super().__init__(world, data_folder=disk / "data")
        self.tmpfs = tmpfs
        self.lock = asyncio.Lock()
        self.full = False
        self._clock_file = self.folder / "clock"
        self.set_clock(0)
        self._disk = disk
        disk.mkdir()
        if tmpfs:
            _mount(self._disk, f"size={DISK_BYTES}")
        front.target_port = self.port
        self.settings = {
            "PUBLIC_URL": f"http://localhost:{front.port}",
            "NODE_ZMQ_SEQUENCE_URL": f"tcp://127.0.0.1:{zmq.port}",
            "NODE_POLL_INTERVAL_S": "1",
            "PRICE_HOLD_S": str(PRICE_HOLD_S),
            "OPEN_INVOICES_PER_CLIENT_MAX": "100000",
            # All come from one address.
            "LIMITS_CLAIMS_PER_MINUTE": "100000",
            "ZERO_CONF_KEY_CAP_SAT": "10000000",
            "DISK_RESERVE_BYTES": "0",
            "REGISTRATION": "open",
        }

    @property
    def public_url(self) -> str:
        return self.settings["PUBLIC_URL"]

    def set_clock(self, ahead_s: int) -> None:
        draft = self._clock_file.with_suffix(".draft")
        draft.write_text(str(ahead_s))
        draft.replace(self._clock_file)

    async def start(self) -> None:
        """As a supervisor would: again, while the disk has no room for the start. Waits until it answers."""
        if not self.data_folder.exists():
            await self.command("init", str(self.data_folder))
        deadline = time.monotonic() + START_TIMEOUT_S
        self._spawn()
        while not await self._answers():
            assert self._process is not None
            if time.monotonic() > deadline or not (self._process.running or self.full):
                raise ServerFailed(f"the server did not start:\n{self._process.log_tail(lines=40)}")
            if not self._process.running:
                self._spawn()
            await asyncio.sleep(0.1)

    @property
    def exit_code(self) -> int | None:
        """Of a server that ended; None while it runs."""
        return None if self._process is None or self._process.running else self._process.kill()

    def log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-40:])

    async def fill_disk(self) -> str:
        """Leave no room. Says how."""
        self.full = True
        if not self.tmpfs:
            self.settings["DISK_RESERVE_BYTES"] = str(NO_ROOM_RESERVE_BYTES)
            await self.restart()
            return "restarted with a reserve larger than the disk"
        for _ in range(10):
            # Never below what is used: the system refuses that, and somebody may be writing.
            used = os.statvfs(self._disk)
            used_bytes = (used.f_blocks - used.f_bfree) * used.f_frsize
            assert used_bytes, "the server's data is on another disk"
            if _mount(self._disk, f"remount,size={used_bytes + used.f_frsize}", may_fail=True):
                return f"a tmpfs shrunk to the {used_bytes >> 10:,} KiB in use"
        return "the tmpfs could not be shrunk: nothing was done"

    async def make_room(self) -> None:
        if self.tmpfs:
            _mount(self._disk, f"remount,size={DISK_BYTES}")
        else:
            self.settings["DISK_RESERVE_BYTES"] = "0"
            await self.restart()
        self.full = False

    async def close(self) -> None:
        await self.kill()
        if self.tmpfs:
            await asyncio.to_thread(subprocess.run, ["umount", "-l", str(self._disk)], check=False)
        await super().close()

    def _spawn(self) -> None:
        environment = self.environment() | {"CLOCK_FILE": str(self._clock_file), "PYTHONPATH": str(ROOT)}
        self._process = GuardedProcess(
            [sys.executable, "-m", "tests.drill.clocked_serve", "serve", "--data", str(self.data_folder)],
            log=self.folder / "server.log",
            environment=environment,
            folder=self.folder,
        )

    async def _answers(self) -> bool:
        def ask() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5):
                    return True
            except OSError:
                return False

        return await asyncio.to_thread(ask)


def _mount(folder: Path, options: str, *, may_fail: bool = False) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise RegtestError(f"mount -o {options}: {done.stderr}")
    return done.returncode == 0
