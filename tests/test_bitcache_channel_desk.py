"""When new channels are offered, and what a close takes, without a node."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from coincurve import PrivateKey
from msgspec import structs

from bitcache.channel_seed import write_channel_seed
from bitcache.channel_views import close_fee_sat
from bitcache.config import ChannelsConfig, HostedConfig, LimitsConfig
from bitcache.db.engine import Database
from bitcache.errors import TooManyRequests
from bitcache.services import open_services
from bitcache.setup import prepare_database
from payments import chain_store
from payments.errors import NodeUnavailable
from payments.money import Msat
from tests.channel_house import House
from tests.channel_parts import CLOSE_FEE_SAT
from tests.service import blank_database, test_config


async def test_nobody_is_told_to_pay_in_while_the_node_sees_nothing(tmp_path: Path) -> None:
    """Its height is of yesterday, and nobody would see the deposit."""
    config = structs.replace(
        test_config(tmp_path),
        channels=ChannelsConfig(enabled=True, close_feerate_sat_vb=2),
        hosted=HostedConfig(descriptor="wpkh(of nobody)"),
        limits=LimitsConfig(channel_contracts_per_minute=2),
    )
    (tmp_path / "master.key").write_bytes(bytes(32))
    (tmp_path / "master.key").chmod(0o600)
    write_channel_seed(config.channel_seed)
    async with open_services(config) as services:
        await prepare_database(config, services.database)
        house = await House.build(services.database)
        assert services.channels is not None
        desk = services.channels.desk

        async def beat(trouble: str | None) -> None:
            seen = partial(chain_store.beat, now=services.clock(), online=trouble is None, trouble=trouble)
            await services.database.write(seen)

        await beat("no answer")
        for asked in (desk.terms, partial(desk.invitation, price_msat=Msat(1_000))):
            with pytest.raises(NodeUnavailable):
                await asked()
        await beat(None)
        shown = await desk.terms()
        assert shown.tip_height == house.tip
        assert (await desk.invitation(price_msat=Msat(1_000))).request
        # Each new contract drives out the oldest: one client makes few of them, and may ask again often.
        script = (b"\x00\x14" + bytes(20)).hex()
        keys = [PrivateKey().public_key.format().hex() for _ in range(3)]
        for key in (*keys[:2], *keys[:2]):
            await desk.announce(shown.challenge, key, script, client="greedy")
        with pytest.raises(TooManyRequests):
            await desk.announce(shown.challenge, keys[2], script, client="greedy")
        await desk.announce(shown.challenge, keys[2], script, client="another")
        # Whoever is told an address pays.
        await beat("no answer")
        payer = await house.deposit()
        with pytest.raises(NodeUnavailable):
            await desk.announce(
                shown.challenge,
                payer.channel.contract.payer_key.hex(),
                payer.channel.contract.change_script_pubkey.hex(),
                client="somebody",
            )


async def test_no_buyer_has_a_channel_closed_at_a_price_that_the_operator_pays(tmp_path: Path) -> None:
    """At a hundred times what was set aside the network would get all that was spent."""
    (tmp_path / "house.db").write_bytes(await blank_database())
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'house.db'}")
    house = await House.build(database)
    record = await house.record(await house.deposit())
    await database.close()
    set_aside_sat_kvb = CLOSE_FEE_SAT * 1_000 // 194
    assert close_fee_sat(record, set_aside_sat_kvb // 2) == -(-182 * (set_aside_sat_kvb // 2) // 1_000)
    assert close_fee_sat(record, set_aside_sat_kvb * 2) == CLOSE_FEE_SAT
    assert close_fee_sat(record, set_aside_sat_kvb * 3) is None
