"""A damaged SQLite file: it is named, what is intact is served, and what is no database ends the start."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from bitcache import doctor
from bitcache.config import DATABASE_FILE_NAME
from bitcache.doctor import Verdict
from bitcache.setup import initialise
from tests.command_server import quick_bitcache
from tests.plain_browser import Browser
from tests.service import running_server
from tests.till import Till, open_nodeless_till

GARBAGE = b"\xa5" * 4096


def ruin(database: Path, table: str) -> None:
    """Write nonsense over the first page of `table`."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,))
        (page_no,) = root.fetchone()
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with database.open("r+b") as file:
        file.seek((page_no - 1) * page_size)
        file.write(GARBAGE[:page_size])


async def test_what_is_intact_is_served_and_the_damage_named(tmp_path: Path) -> None:
    database = tmp_path / DATABASE_FILE_NAME
    async with open_nodeless_till(tmp_path) as till:
        sold = await till.offer(price_sat=0)
        bought = await till.buy(sold)
        assert (await doctor.check_database(till.server.services)).verdict is Verdict.OK
    ruin(database, "reports")
    async with running_server(tmp_path) as server, server.session() as http:
        till = Till(server, till.account)
        till.http = http
        token = await till.token(bought)
        async with http.get(sold.content, headers=token) as answer:
            assert await answer.read() == sold.blobs[sold.file_id]
        async with Browser(till) as browser:
            await browser.get(f"/d/{sold.offer_id}/report")
            await browser.submit(f"/d/{sold.offer_id}/report", reason="fraud", message="words")
            assert browser.status == 503
        finding = await doctor.check_database(till.server.services)
        assert finding.verdict is Verdict.WRONG
        assert "damaged" in finding.words
        assert "restore" in finding.mend


async def test_a_file_that_is_no_database_ends_the_start_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    await initialise(folder, network="regtest")
    (folder / DATABASE_FILE_NAME).write_bytes(GARBAGE * 4)
    for command, words in (("serve", b"database is damaged"), ("doctor", b"it is no database at all")):
        process = await asyncio.create_subprocess_exec(
            quick_bitcache(),
            *(command, "--data", str(folder)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await asyncio.wait_for(process.communicate(), timeout=60)
        assert process.returncode == 1, told
        assert words in told
        assert b"Traceback" not in told
    assert (folder / DATABASE_FILE_NAME).read_bytes() == GARBAGE * 4, "never written over"
