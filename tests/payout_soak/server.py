"""The server of a soak: `bitcache serve` as a process that dies when told to, its clock set by a file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from bitcache.config import DATABASE_FILE_NAME
from regtest.processes import GuardedProcess
from regtest.served import ServedBitcache, ServerFailed
from regtest.world import RegtestWorld
from tests.service import Clock, blank_database

ROOT = Path(__file__).parents[2]
WALLET = "operator"
PRICE_HOLD_S = 45
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
PROGRAM = (sys.executable, "-m", "tests.payout_soak.doomed")
HOSTED = {
    "FEE_PERCENT": "5",
    "FEE_SAT": "100",
    "WALLET": WALLET,
    "PAYOUT_MIN_SAT": "2000",
    "FEE_SHARE_PERCENT_MAX": "40",
    "REFUND_DELAY_S": "3600",
}


class SoakServer(ServedBitcache):
    """And the operator's commands beside it."""

    def __init__(self, world: RegtestWorld, descriptor: str, *, depth: int) -> None:
        super().__init__(world)
        self.program = PROGRAM
        self.clock = Clock()
        self.settings = {
            "NODE_POLL_INTERVAL_S": "1",
            "PRICE_HOLD_S": str(PRICE_HOLD_S),
            "OPEN_INVOICES_PER_CLIENT_MAX": "100000",
            # All come from one address.
            "LIMITS_CLAIMS_PER_MINUTE": "100000",
            "DISK_RESERVE_BYTES": "0",
            **{f"HOSTED_{name}": value for name, value in HOSTED.items()},
            "HOSTED_DESCRIPTOR": descriptor,
            "HOSTED_DEPTH": str(depth),
        }
        self._serial = 0
        self.moved_at = 0
        """When the clock was last set, by what it was set to."""
        self.advance(0)

    @property
    def database_file(self) -> Path:
        return self.data_folder / DATABASE_FILE_NAME

    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.moved_at = self.clock()
        draft = self.folder / "clock.draft"
        draft.write_text(str(self.clock.ahead_s))
        draft.replace(self.folder / "clock")

    def doom(self, moment: int, *, whom: str = "server") -> None:
        """It dies at its so many-th moment from now."""
        self._serial += 1
        self._doom_file(whom).write_text(f"{self._serial} {moment}")

    def spare(self, whom: str = "server") -> None:
        self._doom_file(whom).unlink(missing_ok=True)

    def environment(self, home: Path | None = None, *, whom: str = "server") -> dict[str, str]:
        return super().environment(home) | {
            "CLOCK_FILE": str(self.folder / "clock"),
            "DOOM_FILE": str(self._doom_file(whom)),
            "PYTHONPATH": str(ROOT),
        }

    async def start(self) -> None:
        """Wait until it answers, whether its node is there or not."""
        if not self.data_folder.exists():
            await self.command("init", str(self.data_folder))
            self.database_file.touch(mode=0o600)
            self.database_file.write_bytes(await blank_database())
        self._process = GuardedProcess(
            [*self.program, "serve", "--data", str(self.data_folder)],
            log=self.folder / "server.log",
            environment=self.environment(),
            folder=self.folder,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await self._answers():
            if not self._process.running or time.monotonic() > deadline:
                raise ServerFailed(f"the server did not start:\n{self._process.log_tail(lines=4)}")
            await asyncio.sleep(0.05)

    async def admin(self, *words: str, stdin: str = "") -> tuple[int, str]:
        """A command of the operator, in a process that may be doomed; (exit code, what it said)."""

        def run() -> tuple[int, str]:
            done = subprocess.run(
                [*PROGRAM, *words, "--data", str(self.data_folder)],
                env=self.environment(whom="admin"),
                cwd=self.folder,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
            )
            return done.returncode, done.stdout + done.stderr

        return await asyncio.to_thread(run)

    @property
    def exit_code(self) -> int | None:
        """Of a server that ended; None while it runs."""
        return None if self._process is None or self._process.running else self._process.kill()

    async def _answers(self) -> bool:
        def ask() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5):
                    return True
            except OSError:
                return False

        return await asyncio.to_thread(ask)

    def _doom_file(self, whom: str) -> Path:
        return self.folder / f"doom-{whom}"
