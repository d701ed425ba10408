"""The server of a soak: `bitcache serve` with channels, as a process that dies when told to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bitcache.config import DATABASE_FILE_NAME
from regtest.served import ServedBitcache
from regtest.world import RegtestWorld
from tests.payout_soak.server import PROGRAM, ROOT
from tests.service import blank_database

DEPTH = 3
FEE_PERCENT = "1"
FEE_PPM = 10_000


class ChannelServer(ServedBitcache):
    def __init__(self, world: RegtestWorld, descriptor: str, *, life_blocks: int) -> None:
        super().__init__(world)
        self.program = PROGRAM
        self.settings = {
            "NODE_POLL_INTERVAL_S": "1",
            "DISK_RESERVE_BYTES": "0",
            # All payers come from one address.
            "LIMITS_CLAIMS_PER_MINUTE": "100000",
            "LIMITS_CHANNEL_CONTRACTS_PER_MINUTE": "100000",
            "LIMITS_INVOICES_PER_MINUTE": "100000",
            "LIMITS_INVOICES_PER_MINUTE_IN_TOTAL": "100000",
            "HOSTED_DESCRIPTOR": descriptor,
            "HOSTED_DEPTH": str(DEPTH),
            "HOSTED_FEE_PERCENT": FEE_PERCENT,
            "CHANNELS_ENABLED": "true",
            "CHANNELS_LIFE_BLOCKS": str(life_blocks),
            "CHANNELS_CLOSE_FEERATE_SAT_VB": "2",
        }
        self._serial = 0
        (self.folder / "clock").write_text("0")

    @property
    def database_file(self) -> Path:
        return self.data_folder / DATABASE_FILE_NAME

    async def prepare(self) -> None:
        """The data folder, with a channel seed and a database."""
        await self.command("init", str(self.data_folder), "--channels")
        if not self.database_file.exists():
            self.database_file.touch(mode=0o600)
            self.database_file.write_bytes(await blank_database())

    def doom(self, moment: int) -> None:
        """It dies at its so many-th moment from now."""
        self._serial += 1
        self._doom_file.write_text(f"{self._serial} {moment}")

    def spare(self) -> None:
        self._doom_file.unlink(missing_ok=True)

    def environment(self, home: Path | None = None) -> dict[str, str]:
        doomed: Mapping[str, str] = {
            "CLOCK_FILE": str(self.folder / "clock"),
            "DOOM_FILE": str(self._doom_file),
            "PYTHONPATH": str(ROOT),
        }
        return {**super().environment(home), **doomed}

    @property
    def exit_code(self) -> int | None:
        """Of a server that ended; None while it runs."""
        return None if self._process is None or self._process.running else self._process.kill()

    @property
    def _doom_file(self) -> Path:
        return self.folder / "doom"
