"""The operator's commands on a data folder: what they refuse, and a new token for who lost theirs."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from bitcache import accounts, config_file
from bitcache.accounts import IssuedToken, Seller
from bitcache.config import Config
from bitcache.db.engine import Database
from bitcache.errors import DatabaseMissing, TokenInvalid
from bitcache.setup import initialise, prepare_database
from payments.ports import Transaction
from tests.functional_client_crash import bitcache


async def command(home: Path, *words: str, **variables: str) -> tuple[int | None, str, str]:
    """(exit code, stdout, stderr) of a command."""
    process = await bitcache(home, *words, **variables)
    out, err = await process.communicate()
    assert b"Traceback" not in err
    return process.returncode, out.decode(), " ".join(err.decode().split())


async def seller_of(settings: Config, token: str) -> Seller:
    database = Database(settings.database)
    try:
        return await database.read(lambda tx: accounts.seller_of_token(tx, token))
    finally:
        await database.close()


async def test_a_server_does_not_begin_anew_on_old_blobs(tmp_path: Path) -> None:
    await initialise(tmp_path, network="regtest")
    blob = tmp_path / "blobs" / "ab" / ("ab" + "c" * 24)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"somebody bought this")
    for words in (("serve",), ("account", "create", "Ada")):
        code, _, err = await command(
            tmp_path,
            *words,
            "--data",
            str(tmp_path),
            BITCACHE_DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/typo.db",
        )
        assert code == 1
        assert "Correct `database_url`" in err
    assert blob.exists()


async def test_blank_and_known_databases_are_prepared(tmp_path: Path) -> None:
    await initialise(tmp_path, network="regtest")
    settings = config_file.load(tmp_path, {})
    (tmp_path / "blobs").mkdir()
    database = Database(settings.database)
    try:
        await prepare_database(settings, database)
        (tmp_path / "blobs" / "one").touch()
        await prepare_database(settings, database)
    finally:
        await database.close()
    blank = Database(f"sqlite+aiosqlite:///{tmp_path}/blank.db")
    try:
        with pytest.raises(DatabaseMissing):
            await prepare_database(settings, blank)
        (tmp_path / "blobs" / "one").unlink()
        await prepare_database(settings, blank)
    finally:
        await blank.close()


async def test_a_lost_token_is_replaced(tmp_path: Path) -> None:
    await initialise(tmp_path, network="regtest")
    settings = config_file.load(tmp_path, {})
    database = Database(settings.database)

    async def made(tx: Transaction) -> IssuedToken:
        account_id = await accounts.register(tx, name="Ada's music", now=1)
        return await accounts.issue_token(tx, account_id, label="", now=1)

    try:
        lost = await database.write(made)
    finally:
        await database.close()

    code, _, err = await command(tmp_path, "account", "token", "Nobody", "--data", str(tmp_path))
    assert code == 1
    assert "There is no account 'Nobody'" in err

    code, out, err = await command(tmp_path, "account", "token", "ada's  MUSIC", "--data", str(tmp_path))
    assert code == 0, err
    second = out.strip()
    for token in (lost.token, second):
        assert (await seller_of(settings, token)).account_id == lost.account_id

    words = ("account", "token", "Ada's music", "--revoke-others", "--json", "--data", str(tmp_path))
    code, out, err = await command(tmp_path, *words)
    assert code == 0, err
    answer = json.loads(out)
    assert answer["revoked"] == 2
    assert (await seller_of(settings, answer["token"])).account_id == lost.account_id
    for token in (lost.token, second):
        with pytest.raises(TokenInvalid):
            await seller_of(settings, token)


async def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    await initialise(tmp_path, network="regtest")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bitcache.cli.main", "unassigned", "--data", str(tmp_path)),
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(writing)
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")
