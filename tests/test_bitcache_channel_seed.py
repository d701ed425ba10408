"""The channel seed: who may read it, who makes it, what the server says without it; and its copies."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from sqlalchemy import insert
from typer.testing import CliRunner

from bitcache import channel_operations, doctor_channels
from bitcache.app import serve
from bitcache.channel_seed import copy_channel_seed, fingerprint, read_channel_seed, write_channel_seed
from bitcache.cli.main import app
from bitcache.config import ChannelsConfig, Config, HostedConfig
from bitcache.config_file import load
from bitcache.db.engine import Database
from bitcache.doctor import Verdict
from bitcache.errors import AlreadyInitialised, ConfigInvalid
from bitcache.services import open_services
from bitcache.setup import initialise
from payments import ledger
from payments.channel_errors import ChannelSeedUnusable
from payments.channel_keys import payee_key
from payments.ports import Transaction
from payments.tables import balances
from tests.channel_house import House
from tests.kept_shop import open_kept
from tests.service import test_config

ENABLED = ChannelsConfig(enabled=True)
HOSTED = HostedConfig(descriptor="wpkh(of nobody)")


def command(*words: str) -> tuple[int, str]:
    """(exit code, what was printed)."""
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def metered(folder: Path) -> Config:
    return structs.replace(test_config(folder), channels=ENABLED, hosted=HOSTED)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_one_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "channel.seed"
    write_channel_seed(path)
    path.chmod(mode)
    with pytest.raises(ChannelSeedUnusable, match="chmod 600"):
        read_channel_seed(path)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_one_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "channel.seed"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(ChannelSeedUnusable, match=f"is {size} bytes, not 32. Put your copy back"):
        read_channel_seed(path)


def test_a_missing_one_says_how_to_make_it_or_put_it_back(tmp_path: Path) -> None:
    with pytest.raises(ChannelSeedUnusable, match=r"put your copy back.*`bitcache channels seed`"):
        read_channel_seed(tmp_path / "channel.seed")


def test_it_is_made_once_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "channel.seed"
    write_channel_seed(path)
    seed = read_channel_seed(path)
    assert (path.stat().st_mode & 0o777, len(seed)) == (0o600, 32)
    with pytest.raises(ChannelSeedUnusable, match="Nothing was changed"):
        write_channel_seed(path)
    with pytest.raises(ChannelSeedUnusable, match="Nothing was changed"):
        copy_channel_seed(bytes(32), path)
    assert read_channel_seed(path) == seed


def test_a_fingerprint_tells_seeds_apart_and_nothing_of_them() -> None:
    one, other = os.urandom(32), os.urandom(32)
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)
    assert one.hex()[:16] not in fingerprint(one)


async def test_init_makes_one_only_if_asked_and_turns_channels_on(tmp_path: Path) -> None:
    await initialise(tmp_path / "without", network="regtest")
    assert not load(tmp_path / "without", {}).channels.enabled
    assert not (tmp_path / "without" / "channel.seed").exists()
    await initialise(tmp_path / "with", network="regtest", channels=True)
    config = load(tmp_path / "with", {})
    assert config.channels.enabled
    assert config.channel_seed.stat().st_mode & 0o777 == 0o600
    seed = read_channel_seed(config.channel_seed)
    (tmp_path / "with" / "bitcache.toml").unlink()
    with pytest.raises(AlreadyInitialised):
        await initialise(tmp_path / "with", network="regtest", channels=True)
    assert read_channel_seed(config.channel_seed) == seed


def test_the_command_says_what_to_back_up_apart_and_what_is_missing(tmp_path: Path) -> None:
    code, said = command("init", str(tmp_path / "data"), "--network", "regtest", "--channels")
    assert (code, "channel.seed" in said, "`descriptor`" in said) == (0, True, True)


async def test_the_server_does_not_start_without_the_wallet_that_closes_pay(tmp_path: Path) -> None:
    config = structs.replace(metered(tmp_path), hosted=HostedConfig())
    with pytest.raises(ConfigInvalid, match=r"`enabled` needs hosted sales.*`descriptor`"):
        await serve(config)


async def test_the_server_does_not_start_without_channels_while_some_are_open(tmp_path: Path) -> None:
    """Nobody would close them, nor see them closed: their payers take everything back."""
    await initialise(tmp_path / "served", network="regtest")
    config = load(tmp_path / "served", {})
    database = Database(config.database)
    house = await House.build(database)
    payer = await house.deposit()
    assert not await database.read(channel_operations.unsettled), "nothing was signed in it"
    async with house.running() as registry:
        await registry.open(payer.id, payer.voucher(0))
    with pytest.raises(ConfigInvalid, match=r"`enabled = true`.*bitcache channels close --all"):
        await serve(config)
    await house.lose(payer)
    assert not await database.read(channel_operations.unsettled)

    async def waits(tx: Transaction) -> None:
        await tx.execute(insert(balances).values(account=ledger.pending("seller"), amount_msat=5_000))

    await database.write(waits)
    assert await database.read(channel_operations.unsettled), "its close is not deep yet"
    await database.close()


async def test_it_is_read_only_where_channels_are_enabled(tmp_path: Path) -> None:
    config = metered(tmp_path)
    (tmp_path / "master.key").write_bytes(bytes(32))
    (tmp_path / "master.key").chmod(0o600)
    config.channel_seed.write_bytes(b"damaged")
    off = structs.replace(config, channels=ChannelsConfig())
    async with open_services(off) as services:
        assert services.channels is None
    with pytest.raises(ChannelSeedUnusable):
        async with open_services(config):
            pass
    config.channel_seed.unlink()
    write_channel_seed(config.channel_seed)
    async with open_services(config) as services:
        assert services.channels is not None
        seed, nonce = read_channel_seed(config.channel_seed), bytes(16)
        assert services.channels.opening.payee(nonce).secret == payee_key(seed, nonce).secret


def test_the_command_makes_it_and_copies_it(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    assert command("init", str(data), "--network", "regtest")[0] == 0
    code, said = command("channels", "seed", "--data", str(data), "--json")
    assert code == 0
    made = json.loads(said)
    assert made["file"] == str(data / "channel.seed")
    code, said = command("channels", "seed", "--data", str(data))
    assert (code, "Nothing was changed" in " ".join(said.split())) == (1, True)
    code, said = command("channels", "seed", "--copy", str(copy), "--data", str(data), "--json")
    assert json.loads(said) == {"file": str(copy), "fingerprint": made["fingerprint"]}
    assert copy.read_bytes() == (data / "channel.seed").read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o600
    assert command("channels", "seed", "--copy", str(copy), "--data", str(data))[0] == 1
    code, said = command("channels", "list", "--data", str(data))
    assert (code, "No channel is open" in said) == (0, True)
    assert command("channels", "show", f"{'00' * 32}:0", "--data", str(data))[0] == 1
    assert command("channels", "close", "--all", "--yes", "--data", str(data))[0] == 0
    assert command("channels", "close", "--yes", "--data", str(data))[0] == 2


def test_the_doctor_asks_for_the_seed_where_it_is_needed(tmp_path: Path) -> None:
    config = metered(tmp_path)
    assert doctor_channels.check_seed(structs.replace(config, channels=ChannelsConfig())) == []
    assert [one.verdict for one in doctor_channels.check_seed(config)] == [Verdict.WRONG]
    write_channel_seed(config.channel_seed)
    assert [one.verdict for one in doctor_channels.check_seed(config)] == [Verdict.OK]
    without = structs.replace(config, hosted=HostedConfig())
    assert [one.verdict for one in doctor_channels.check_seed(without)] == [Verdict.WRONG]


async def test_a_backup_holds_it_only_with_the_master_key_and_a_restore_puts_it_back(tmp_path: Path) -> None:
    async with open_kept(tmp_path) as kept:
        config = structs.replace(kept.config, channels=ENABLED)
        write_channel_seed(config.channel_seed)
        folder = config.data_folder
        (folder / "bitcache.toml").write_text('network = "regtest"\n[channels]\nenabled = true\n')
        services = kept.shop.server.services
        before = await doctor_channels.check_channels(replace(services, config=config))
        assert [one.verdict for one in before] == [Verdict.WARNING, Verdict.OK]
        for with_key in (False, True):
            key = ["--with-master-key"] if with_key else []
            words = ["backup", str(kept.backup), "--data", str(folder), *key]
            code, said = await asyncio.to_thread(command, *words)
            assert code == 0, said
            assert ("channels seed --copy" in " ".join(said.split())) is not with_key
            found = list(kept.backup.glob("snapshot-*/channel.seed"))
            assert len(found) == with_key
        after = await doctor_channels.check_channels(replace(services, config=config))
        assert [one.verdict for one in after] == [Verdict.OK, Verdict.OK]
        restored = await kept.restore(key=None)
        assert read_channel_seed(restored.config.channel_seed) == read_channel_seed(config.channel_seed)
