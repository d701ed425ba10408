"""A short drill (`make soak-drill` is the long one): SIGKILL, a reorg, a double spend, and right books.

And its checks are worth something: whatever is taken from what a drill leaves, they name it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec

from regtest.install import BitcoindInstallation
from tests.drill import checks
from tests.drill.checks import Evidence
from tests.drill.schedule import Fault, Paying, Schedule, schedule

SIZE = {"SECONDS": "7", "SEED": "2165", "SELLERS": "2", "BUYERS": "6", "PARCELS": "1"}
TIMEOUT_S = 240
ROOT = Path(__file__).parents[1]


def plan(seed: int) -> Schedule:
    return schedule(seed, seconds=600, sellers=10, buyers=100, parcels_each=3)


def test_a_seed_is_a_schedule() -> None:
    assert plan(1) == plan(1)
    assert list(plan(1).lines()) == list(plan(1).lines())
    assert plan(1).faults != plan(2).faults
    assert {one.fault for one in plan(1).faults} == set(Fault)
    assert {one.depth for one in plan(1).faults if one.fault is Fault.REORG} <= set(range(1, 7))
    assert {one.paying for one in plan(1).buyers} == set(Paying)


def drilled(kept: Path) -> str:
    """What a short drill printed; what it left is in `kept`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.drill"],
        env=os.environ | SIZE | {"KEEP": str(kept)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def edited(statement: str) -> Callable[[Path, Evidence], None]:
    def edit(data: Path, evidence: Evidence) -> None:
        with closing(sqlite3.connect(data / "bitcache.db")) as rows, rows:
            assert rows.execute(statement).rowcount > 0, "the drill left nothing to tamper with"

    return edit


def first_blob(data: Path, evidence: Evidence) -> Path:
    file_id = min(evidence.roots)
    return data / "blobs" / file_id[:2] / file_id


def blob_deleted(data: Path, evidence: Evidence) -> None:
    first_blob(data, evidence).unlink()


def bit_flipped(data: Path, evidence: Evidence) -> None:
    blob = first_blob(data, evidence)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)


ONE_RECEIVED = "(SELECT id FROM transfers WHERE code = 'received' ORDER BY id LIMIT 1)"
UNPAID = "(SELECT id FROM invoices WHERE status IN ('open', 'expired') AND address NOT NULL LIMIT 1)"


TAMPERING: tuple[tuple[Callable[[Path, Evidence], None], str], ...] = (
    (edited(f"UPDATE transfers SET amount_msat = amount_msat + 1 WHERE id = {ONE_RECEIVED}"), ".001 sat"),
    (edited(f"DELETE FROM transfers WHERE id = {ONE_RECEIVED}"), ".000 sat, the chain says"),
    (edited("DELETE FROM transfers WHERE code = 'settled'"), "0.000 sat earned, must be"),
    (edited("UPDATE transfers SET debit = 'chain' WHERE code = 'settled'"), "the chain says"),
    (edited("UPDATE invoices SET status = 'open' WHERE status = 'settled'"), "is open"),
    (edited(f"UPDATE grants SET key_allowed = 1 WHERE invoice_id = {UNPAID}"), "a right to the files"),
    (edited("UPDATE grants SET key_allowed = 0"), "no right to the files"),
    (edited(f"UPDATE invoices SET released_at = 1, key_at = 1 WHERE id = {UNPAID}"), "forbade"),
    (edited("DELETE FROM invoices WHERE status = 'settled'"), "was told to pay"),
    (edited("DELETE FROM files"), "is not in the database"),
    (blob_deleted, "is missing"),
    (bit_flipped, "not its seller's"),
)


def test_a_short_drill(bitcoind: BitcoindInstallation, tmp_path: Path) -> None:
    """One test, since another worker would have to play the drill again."""
    kept = tmp_path / "kept"
    said = drilled(kept)
    for fault in (Fault.SERVER_KILLED, Fault.REORG, Fault.CLOCK):
        assert f"FAULT {fault}" in said
    assert Paying.DOUBLE_SPEND in said
    evidence = msgspec.json.decode((kept / "evidence.json").read_bytes(), type=Evidence)
    assert evidence.outputs
    assert evidence.roots
    assert any(one.has_files for one in evidence.bought)
    assert checks.everything(kept / "data", evidence) == []

    for number, (tamper, named) in enumerate(TAMPERING):
        data = tmp_path / f"tampered-{number}"
        shutil.copytree(kept / "data", data)
        tamper(data, evidence)
        found = checks.everything(data, evidence)
        assert any(named in line for line in found), (named, found)

    robbed = replace(evidence, bought=tuple(replace(one, has_files=False) for one in evidence.bought))
    assert any("has not the files" in line for line in checks.everything(kept / "data", robbed))

    assert list(checks.orphans(kept / "data")) == []
    orphan = kept / "data" / "blobs" / "zz" / ("z" * 26)
    orphan.parent.mkdir()
    orphan.touch()
    assert list(checks.orphans(kept / "data")) == [f"blob {orphan.name} is of no file"]
