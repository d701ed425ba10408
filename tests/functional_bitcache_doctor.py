"""The doctor on patients well and ill: real nodes, real databases, a status that was tampered with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs
from sqlalchemy import select

from bitcache import doctor
from bitcache.config import NodeConfig
from bitcache.db.migrate import upgrade
from bitcache.doctor import Finding, Verdict
from bitcache.master_key import write_master_key
from bitcache.services import open_services
from payments import tables
from payments.ports import Transaction
from regtest.served import CommandFailed, ServedBitcache
from regtest.world import RegtestWorld
from tests.service import test_config
from tests.till import Till, open_till

TRUE_STATUS = "settled"


@pytest.fixture
async def till(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(world, tmp_path) as till:
        yield till


async def findings_of_node(till: Till) -> dict[str, Finding]:
    return {finding.check: finding async for finding in doctor.check_node(till.server.services)}


async def test_a_service_that_is_well(till: Till) -> None:
    services = till.server.services
    found = await findings_of_node(till)
    found |= {
        finding.check: finding
        for finding in (
            doctor.check_master_key(services.config),
            doctor.check_public_url(services.config),
            doctor.check_disk(services.config),
            await doctor.check_database(services),
            await doctor.check_watcher(services),
        )
    }
    assert {check for check, finding in found.items() if finding.verdict is not Verdict.OK} == set()
    assert all(not finding.mend for finding in found.values())


async def test_a_node_without_rest_events_and_with_wallets(own_world: RegtestWorld, tmp_path: Path) -> None:
    await own_world.server.restart("-rest=0", "-zmqpubsequence=0")
    outside = own_world.outside
    config = structs.replace(
        test_config(tmp_path),
        node=NodeConfig(rpc_url=own_world.server.rpc_url, rpc_cookie_file=str(own_world.server.cookie_path)),
    )
    write_master_key(config.master_key)
    async with open_services(config) as services:
        await upgrade(services.database)
        found = {finding.check: finding async for finding in doctor.check_node(services)}
        assert found["REST"].verdict is Verdict.WRONG
        assert "rest=1" in found["REST"].mend
        assert found["ZMQ"].verdict is Verdict.WARNING

    beside = structs.replace(
        config, node=NodeConfig(rpc_url=outside.rpc_url, rpc_cookie_file=str(outside.cookie_path))
    )
    async with open_services(beside) as services:
        found = {finding.check: finding async for finding in doctor.check_node(services)}
        assert found["wallets"].verdict is Verdict.WARNING
        assert found["REST"].verdict is Verdict.OK

    elsewhere = structs.replace(beside, network="signet")
    async with open_services(elsewhere) as services:
        found = {finding.check: finding async for finding in doctor.check_node(services)}
        assert found["node"].verdict is Verdict.WRONG
        assert "regtest" in found["node"].mend

    nowhere = structs.replace(
        config, node=NodeConfig(rpc_url=outside.rpc_url, rpc_cookie_file=str(tmp_path / "no.cookie"))
    )
    async with open_services(nowhere) as services:
        (only,) = [finding async for finding in doctor.check_node(services)]
        assert only.verdict is Verdict.WRONG
        assert f"cookie file {tmp_path / 'no.cookie'} is not there" in only.words


async def test_a_master_key_that_others_can_read(tmp_path: Path) -> None:
    config = test_config(tmp_path)
    config.master_key.write_bytes(bytes(32))
    config.master_key.chmod(0o644)
    finding = doctor.check_master_key(config)
    assert finding.verdict is Verdict.WRONG
    assert "chmod 600" in finding.mend


def test_a_full_disk_and_a_plain_http_address(tmp_path: Path) -> None:
    config = structs.replace(
        test_config(tmp_path), disk_reserve_bytes=1 << 60, public_url="http://files.example.org"
    )
    assert doctor.check_disk(config).verdict is Verdict.WRONG
    assert doctor.check_public_url(config).verdict is Verdict.WARNING


async def test_recompute_mends_a_status_and_books_what_lacks(till: Till) -> None:
    services = till.server.services
    await till.paid(await till.offer(price_sat=5_000))

    async def tamper(tx: Transaction) -> None:
        kept = await tx.scalar(select(tables.invoices.c.standing))
        lied = json.dumps({**json.loads(kept or ""), "status": "open", "received_sat": 0})
        await tx.execute(tables.invoices.update().values(status="open", standing=lied))
        await tx.execute(tables.transfers.delete())

    await services.database.write(tamper)
    assert await doctor.recompute(services) == (1, 1)
    status = await services.database.read(lambda tx: tx.scalar(select(tables.invoices.c.status)))
    assert status == TRUE_STATUS
    booked = await services.database.read(lambda tx: tx.scalars(select(tables.transfers.c.code)))
    assert sorted(booked.all()) == ["received", "settled"]
    assert await doctor.recompute(services) == (1, 0)


async def test_the_command_ends_with_1_and_says_how_to_mend(world: RegtestWorld) -> None:
    server = ServedBitcache(world)
    try:
        await server.command("init", str(server.data_folder))
        well = await server.command_json("doctor", "--data", str(server.data_folder))
        assert {"master key", "node", "REST", "ZMQ"} <= {one["check"] for one in well["findings"]}
        (server.data_folder / "master.key").chmod(0o644)
        with pytest.raises(CommandFailed) as refused:
            await server.command("doctor", "--data", str(server.data_folder))
        assert refused.value.code == 1
        assert "chmod 600" in refused.value.output
        assert "Traceback" not in refused.value.output
    finally:
        await server.close()
