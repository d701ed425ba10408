"""Batches that nobody touches: built when it is time, signed by the node's wallet, sent, bumped.

On a real node. Turns are taken by hand (`poll_once`), beside those that the running server takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import structs
from sqlalchemy import insert, update

from bitcache.config import HostedConfig
from bitcache.errors import DatabaseUnavailable, PayoutNodeOffline
from bitcache.payout_feerate import bumped
from bitcache.payout_runner import HOUR_S, RETRY_S, PayoutRunner
from bitcache.services import Services, open_services
from payments import batch_store
from payments.batch_store import Batch
from payments.errors import NodeUnavailable, PayoutsStopped, WalletLocked
from payments.outputs import Presence
from payments.payout import BatchState, State
from payments.ports import Transaction
from payments.tables import payout_batches, restores
from regtest.install import BitcoindInstallation
from regtest.node import wait_until
from regtest.world import RegtestWorld
from storage.errors import DiskFull
from tests.hosted_shop import HostedShop, open_hosted_till
from tests.service import running_server

PASSPHRASE = "correct horse"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wallets(bitcoind: BitcoindInstallation) -> AsyncIterator[RegtestWorld]:
    """Two nodes, of which the server's can open wallets."""
    async with RegtestWorld(installation=bitcoind, server_wallets=True) as world:
        yield world


async def turn(shop: HostedShop, runner: PayoutRunner | None = None, *, after_s: int = 0) -> list[Batch]:
    """The next turn of the server's runner or another, so much later; all batches then, newest first."""
    shop.till.server.clock.advance(after_s)
    # Else its heartbeat would be old.
    await shop.seen()
    await (runner or shop.services.payout_runner).poll_once()
    await shop.seen()
    return await batches_of(shop)


async def batches_of(shop: HostedShop) -> list[Batch]:
    async def read(tx: Transaction) -> list[Batch]:
        return await batch_store.batches(tx, payout_batches.c.id.is_not(None))

    found: list[Batch] = await shop.services.database.read(read)
    return found


async def mine_without(shop: HostedShop, blocks: int) -> None:
    """So many blocks, later than what was signed, that leave the mempool as it is."""
    shop.till.server.clock.advance(2)
    for _ in range(blocks):
        await shop.world.mine_exactly([])
    await shop.seen()


@asynccontextmanager
async def restarted(shop: HostedShop, **changes: object) -> AsyncIterator[Services]:
    """The server's services as after a restart, with these keys of [hosted]; beside the running ones."""
    config, clock = shop.services.config, shop.till.server.clock
    changed = structs.replace(config, hosted=structs.replace(config.hosted, **changes))
    async with open_services(changed, clock=clock, monotonic=clock.monotonic) as services:
        yield services


async def restored_now(tx: Transaction) -> None:
    await tx.execute(insert(restores).values(id=1, restored_at=1, taken_at=1, from_height=None))


async def resumed_now(tx: Transaction) -> None:
    await tx.execute(update(restores).values(payouts_resumed_at=1))


async def test_a_batch_goes_out_by_itself_and_the_next_one_when_it_is_time(
    wallets: RegtestWorld, tmp_path: Path
) -> None:
    hosted = {"depth": 1, "batch_every_h": 24, "feerate_sat_vb": 2}
    async with open_hosted_till(wallets, tmp_path, cold=False, hosted=hosted) as shop:
        await shop.sell(price_sat=50_000, count=2)
        # Left open by a process that died in the middle of signing.
        await wallets.server.rpc("loadwallet", shop.keys.name)
        async with restarted(shop) as services:
            await services.payout_runner.poll_once()
            assert await wallets.server.rpc("listwallets") == []

            payout = await shop.request(60_000)
            (batch,) = await turn(shop)
            assert (batch.newest.presence, batch.newest.feerate_sat_kvb) == (Presence.MEMPOOL, 2_000)
            await wallets.mempool_wait(str(batch.newest.txid), node=wallets.outside)
            assert await wallets.server.rpc("listwallets") == []
            await shop.mine()
            assert (await shop.payout(payout.id)).state is State.DONE

            # The next one is not built sooner, also after a restart.
            await shop.request(20_000)
            assert len(await turn(shop, after_s=23 * HOUR_S)) == 1
            await services.payout_runner.poll_once()
            assert len(await batches_of(shop)) == 1
            later = await turn(shop, after_s=HOUR_S)
            assert [one.state for one in later] == [BatchState.BUILT, BatchState.DONE]
            await services.payout_runner.poll_once()
            assert len(await batches_of(shop)) == 2


async def test_a_locked_wallet_is_told_and_asked_again_after_a_pause(
    wallets: RegtestWorld, tmp_path: Path
) -> None:
    hosted = {"depth": 1, "batch_every_h": 1, "feerate_sat_vb": 2, "wallet_passphrase": PASSPHRASE}
    async with open_hosted_till(wallets, tmp_path, cold=False, passphrase="another", hosted=hosted) as shop:
        await shop.sell()
        payout = await shop.request(30_000)
        (batch,) = await turn(shop)
        assert batch.newest.raw is None
        assert "the passphrase given for it is wrong" in str(batch.trouble)
        async with restarted(shop, wallet_passphrase="") as services:
            (batch,) = await turn(shop, services.payout_runner)
            assert "no passphrase is given for it" in str(batch.trouble)
        async with restarted(shop, wallet="nobody's") as services:
            (batch,) = await turn(shop, services.payout_runner)
            assert "the node has no wallet" in str(batch.trouble)
            with pytest.raises(WalletLocked):
                await shop.services.batches.sign(batch.id, shop.services.signer)

        await wallets.server.rpc("loadwallet", shop.keys.name)
        await shop.keys.rpc("walletpassphrasechange", "another", PASSPHRASE)
        await wallets.server.rpc("unloadwallet", shop.keys.name)
        (batch,) = await turn(shop)
        assert batch.newest.raw is None, "it was not asked again at once"
        (batch,) = await turn(shop, after_s=RETRY_S + 1)
        assert (batch.newest.presence, batch.trouble) == (Presence.MEMPOOL, None)
        await wallets.mempool_wait(str(batch.newest.txid), node=wallets.outside)
        await shop.mine()
        assert (await shop.payout(payout.id)).state is State.DONE
        assert await wallets.server.rpc("listwallets") == []


async def test_what_cannot_be_paid_yet_waits_and_says_why(wallets: RegtestWorld, tmp_path: Path) -> None:
    async with open_hosted_till(wallets, tmp_path, hosted={"depth": 1, "batch_every_h": 1}) as shop:
        await shop.sell(price_sat=50_000)
        payout = await shop.request(20_000)
        # A new regtest node has nothing to estimate from.
        assert await turn(shop) == []
        assert "set [hosted] `feerate_sat_vb`" in str((await shop.payout(payout.id)).trouble)

        # With all coins in one batch, the next payout waits for its change.
        batch_id = await shop.build()
        second = await shop.request(25_000)
        # The running server tries, and pauses: it does not speak in between.
        assert len(await turn(shop, after_s=HOUR_S)) == 1
        async with restarted(shop, feerate_sat_vb=3) as services:
            assert len(await turn(shop, services.payout_runner)) == 1
        assert "0 sat left that are deep enough" in str((await shop.payout(second.id)).trouble)
        await shop.send(batch_id)
        await shop.mine()

        # What is configured is above the highest, and even that would take too much of 1,000 sat.
        third = await shop.request(1_000)
        async with restarted(shop, feerate_sat_vb=90, feerate_max_sat_vb=5) as services:
            newest, _ = await turn(shop, services.payout_runner)
        assert newest.newest.feerate_sat_kvb == 5_000
        assert "more than 10 %" in str((await shop.payout(third.id)).trouble)
        assert (await shop.payout(second.id)).batch_id == newest.id
        # Nobody signs it here: it waits, unsigned, without trouble.
        assert (newest.newest.raw, newest.trouble) == (None, None)


async def test_sellers_plans_that_cannot_be_made_now_end_nothing(
    wallets: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(wallets, tmp_path, hosted={"depth": 1}) as shop:
        trouble = [PayoutNodeOffline(), PayoutsStopped("for a test"), DatabaseUnavailable(), DiskFull()]
        asked: list[Exception] = []

        async def pay_due() -> None:
            if len(asked) < len(trouble):
                asked.append(trouble[len(asked)])
                raise asked[-1]
            raise ZeroDivisionError

        services = shop.services
        runner = PayoutRunner(
            config=services.config,
            node=services.node,
            store=services.database,
            hosted=services.hosted,
            batches=services.batches,
            signer=None,
            pay_due=pay_due,
            clock=services.clock,
            monotonic=services.monotonic,
        )
        # But for a bug.
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(runner.run(interval_s=0.01), 60)
        assert asked == trouble


async def test_what_is_not_mined_is_sent_again_for_more_but_never_above_the_most(
    wallets: RegtestWorld, tmp_path: Path
) -> None:
    hosted = {"depth": 1, "bump_after_blocks": 2, "feerate_sat_vb": 1, "feerate_max_sat_vb": 3}
    async with open_hosted_till(wallets, tmp_path, cold=False, hosted=hosted) as shop:
        await shop.sell(price_sat=50_000)
        payout = await shop.request(40_000)
        await shop.build(feerate_sat_kvb=1_000)
        (batch,) = await turn(shop)
        first = str(batch.newest.txid)
        await mine_without(shop, 1)
        (batch,) = await turn(shop)
        assert len(batch.versions) == 1, "one block is not two"
        await mine_without(shop, 1)
        (batch,) = await turn(shop)
        assert [one.feerate_sat_kvb for one in batch.versions] == [1_000, 2_100]
        assert [one.presence for one in batch.versions] == [Presence.CONFLICTED, Presence.MEMPOOL]
        await wallets.mempool_wait(str(batch.newest.txid), node=wallets.outside)
        assert first not in await wallets.outside.rpc("getrawmempool")

        await mine_without(shop, 2)
        (batch,) = await turn(shop)
        assert len(batch.versions) == 2
        assert "raise [hosted] `feerate_max_sat_vb`" in str(batch.trouble)
        await shop.mine()
        (batch,) = await batches_of(shop)
        assert (batch.state, batch.trouble) == (BatchState.DONE, None)
        assert (await shop.payout(payout.id)).state is State.DONE


async def test_nothing_happens_while_payouts_are_stopped_or_the_node_is_away(
    bitcoind: BitcoindInstallation, tmp_path: Path
) -> None:
    hosted = {"depth": 1, "batch_every_h": 1, "feerate_sat_vb": 2}
    async with (
        RegtestWorld(installation=bitcoind, server_wallets=True) as world,
        open_hosted_till(world, tmp_path, cold=False, hosted=hosted) as shop,
    ):
        await shop.sell(price_sat=50_000)
        await shop.services.database.write(restored_now)
        payout = await shop.request(30_000)
        assert await turn(shop) == []

        await world.server_out()
        await shop.seen()
        await shop.services.database.write(resumed_now)
        await shop.services.payout_runner.poll_once()
        assert await batches_of(shop) == []
        async with restarted(shop) as services:
            # Its first turn asks the node for a wallet left open.
            with pytest.raises(NodeUnavailable):
                await services.payout_runner.poll_once()
        await world.server_in()
        (batch,) = await turn(shop)
        assert batch.newest.presence is Presence.MEMPOOL
        await world.mempool_wait(str(batch.newest.txid), node=world.outside)
        await shop.mine()
        assert (await shop.payout(payout.id)).state is State.DONE


async def test_it_goes_on_without_a_node_and_ends_without_hosted_sales(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / "hosted", tmp_path / "direct"]
    for folder in folders:
        folder.mkdir()
    async with (
        running_server(folders[0], hosted=HostedConfig(descriptor="wpkh(tpub/0/*)")) as hosted,
        running_server(folders[1]) as direct,
    ):
        goes_on = asyncio.create_task(hosted.services.payout_runner.run(interval_s=0.01))
        await direct.services.payout_runner.run(interval_s=0.01)

        async def tried() -> bool:
            return "no payouts now: " in caplog.text

        await wait_until(tried, "the first turn")
        assert not goes_on.done()
        goes_on.cancel()


def test_a_replacement_pays_a_quarter_more_or_what_is_asked_now_and_never_above_the_most() -> None:
    assert bumped(1_000, None, most_sat_kvb=100_000) == 2_100
    assert bumped(8_000, None, most_sat_kvb=100_000) == 10_000
    assert bumped(8_000, 30_000, most_sat_kvb=100_000) == 30_000
    assert bumped(8_000, 30_000, most_sat_kvb=20_000) == 20_000
    assert bumped(8_000, None, most_sat_kvb=9_100) == 9_100
    assert bumped(8_000, 30_000, most_sat_kvb=9_099) is None
