"""Blocks that go, coins that others spend: each payout is paid once, and books and chain say the same.

Each test ends with what the node, our coins and the books say the wallet has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bitcache import payout_desk
from bitcache.services import open_services
from payments import books, foreign_spends, ledger, payable, payout_follow, payout_requests
from payments.errors import PayoutConflict, PayoutsStopped, PsbtInvalid
from payments.ledger import Code
from payments.outputs import Presence
from payments.payout import BatchState, State
from payments.ports import Transaction
from payments.transaction import parse_transaction
from regtest.install import BitcoindInstallation
from regtest.node import btc
from regtest.world import MINER, RegtestWorld
from tests.hosted_shop import HostedShop, open_hosted_till

PRICE_SAT = 50_000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shaky(bitcoind: BitcoindInstallation) -> AsyncIterator[RegtestWorld]:
    """Two nodes whose chain the tests here turn as they like."""
    async with RegtestWorld(installation=bitcoind) as world:
        yield world


async def test_a_payout_goes_with_its_block_and_comes_with_the_next(
    shaky: RegtestWorld, tmp_path: Path
) -> None:
    """Shallow, and deeper than the operator waits for."""
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 2}) as shop:
        seller = ledger.seller(shop.seller_id)
        await shop.sell(price_sat=PRICE_SAT, depth=3)
        payout = await shop.request(30_000)
        batch_id = await shop.build()
        txid = await shop.send(batch_id)
        paid, held = {"chain": -20_000, seller: 20_000}, {"chain": -50_000, seller: 20_000}
        for depth, state in ((1, State.BATCHED), (3, State.DONE)):
            await shop.mine(depth)
            assert (await shop.payout(payout.id)).state is state
            assert await shop.balances_sat() == paid
            await shop.world.reorg(depth, keep_transactions=False)
            await shop.seen()
            assert (await shop.payout(payout.id)).state is State.BATCHED
            assert (await shop.batch(batch_id)).state is BatchState.BUILT
            assert await shop.balances_sat() == {**held, ledger.payout(payout.id): 30_000}
            assert await shop.agree() == PRICE_SAT
            await shop.world.mempool_wait(txid, node=shop.world.outside)
        await shop.mine(2)
        assert (await shop.payout(payout.id)).state is State.DONE
        assert await shop.balances_sat() == paid
        assert await shop.agree() == 20_000


async def test_one_version_after_the_other_is_mined(shaky: RegtestWorld, tmp_path: Path) -> None:
    """Of two versions the cheaper one is mined; a reorg mines the other: what arrived is booked each time."""
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 1}) as shop:
        await shop.sell(price_sat=PRICE_SAT)
        address = await shop.new_address()
        payout = await shop.request(30_000, address=address)
        batch_id, batches = await shop.build(), shop.services.batches
        first = await shop.send(batch_id)
        await batches.bump(batch_id, feerate_sat_kvb=9_000)
        second = await shop.send(batch_id)
        older, newer = (await shop.batch(batch_id)).versions
        assert (older.presence, newer.presence) == (Presence.CONFLICTED, Presence.MEMPOOL)
        assert older.raw is not None
        assert newer.raw is not None

        await shop.world.mine_exactly([older.raw.hex()])
        await shop.seen()
        mined = (await shop.batch(batch_id)).mined
        assert mined is not None
        assert (mined.n, mined.txid) == (1, first)
        assert await shop.received_sat(address) == 30_000 - older.fee_sat
        assert (await network_fees_sat(shop, payout.id)) == older.fee_sat
        assert await shop.agree() == 20_000
        with pytest.raises(PayoutConflict, match="in a block already"):
            await batches.bump(batch_id, feerate_sat_kvb=20_000)

        await reorg_to(shop, 1, newer.raw.hex())
        older, newer = (await shop.batch(batch_id)).versions
        assert (older.presence, newer.presence, newer.txid) == (Presence.GONE, Presence.BLOCK, second)
        assert await shop.received_sat(address) == 30_000 - newer.fee_sat
        assert await network_fees_sat(shop, payout.id) == newer.fee_sat
        assert (await shop.payout(payout.id)).state is State.DONE
        assert await shop.agree() == 20_000


async def test_what_others_spend_kills_a_batch_once_it_is_deep_and_its_payouts_go_again(
    shaky: RegtestWorld, tmp_path: Path, each_with_tables: str
) -> None:
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 2}, database_url=each_with_tables) as shop:
        await shop.sell(price_sat=PRICE_SAT, count=2, depth=2)
        payout = await shop.request(30_000)
        batch_id, batches = await shop.build(), shop.services.batches
        psbt = await batches.export(batch_id)
        foreign = await shop.spend_otherwise(*(await shop.batch(batch_id)).inputs)
        await shop.world.mine_exactly([foreign])
        await shop.seen()
        assert await waits_for(shop, batch_id, "spent one of its coins")
        assert (await shop.payout(payout.id)).state is State.BATCHED, "one block is not deep"
        assert (await shop.balances_sat())["unexplained"] == -PRICE_SAT
        with pytest.raises(PsbtInvalid, match="already spent"):
            await batches.import_signed(batch_id, await shop.sign_outside(psbt))
        await shop.mine()
        assert (await shop.batch(batch_id)).state is BatchState.DEAD
        assert (await shop.payout(payout.id)).state is State.APPROVED
        with pytest.raises(PayoutConflict, match="dead"):
            await batches.export(batch_id)
        with pytest.raises(PayoutsStopped, match="50,000 sat left the wallet"):
            await shop.build()
        await explain(shop, foreign, ledger.operator())
        address = payout.address
        again = await shop.build()
        await shop.send(again)
        await shop.mine(2)
        assert (await shop.payout(payout.id)).state is State.DONE
        assert await shop.received_sat(address) == 30_000 - (await shop.batch(again)).newest.fee_sat
        assert await shop.agree() == 20_000


async def test_a_dead_batch_that_is_mined_all_the_same_is_paid(shaky: RegtestWorld, tmp_path: Path) -> None:
    """After a reorg deeper than the operator waits for. We do not offer it ourselves, miners may have it."""
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 2}) as shop:
        await shop.sell(price_sat=PRICE_SAT, count=2, depth=2)
        payout = await shop.request(30_000)
        dead, raw, foreign = await dead_batch(shop)
        await explain(shop, foreign, ledger.operator())
        # The chain turns, and our node forgets: of both it has none, in no block and not in its mempool.
        await shop.world.reorg(2, keep_transactions=False)
        await shop.world.evict(txid_of(foreign))
        await shop.seen()
        await shop.seen()
        assert await shop.world.server.rpc("getrawmempool") == [], "neither of both is offered"
        assert (await shop.payout(payout.id)).state is State.APPROVED
        assert await shop.agree() == 2 * PRICE_SAT

        await shop.world.mine_exactly([raw])
        await shop.seen()
        assert (await shop.payout(payout.id)).batch_id == dead
        assert (await shop.batch(dead)).state is BatchState.BUILT
        await shop.mine()
        assert (await shop.payout(payout.id)).state is State.DONE
        assert await shop.agree() == 70_000
        assert await stopped(shop) is None
        # And once more the other way round.
        await reorg_to(shop, 2, foreign)
        assert (await shop.payout(payout.id)).state is State.BATCHED, "one block is not deep"
        await shop.mine()
        assert (await shop.payout(payout.id)).state is State.APPROVED
        assert (await shop.balances_sat())[ledger.payout(payout.id)] == 30_000
        assert await shop.agree() == PRICE_SAT


async def test_what_is_paid_twice_is_seen_and_stops_all_payouts(shaky: RegtestWorld, tmp_path: Path) -> None:
    """A dead batch is mined after its payouts went with another one, or were called off."""
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 2}) as shop:
        seller = ledger.seller(shop.seller_id)
        await shop.sell(price_sat=PRICE_SAT, count=2, depth=2)
        twice, gone = await shop.request(30_000), await shop.request(10_000)
        dead, raw, foreign = await dead_batch(shop)
        await explain(shop, foreign, ledger.operator())
        await cancel(shop, gone.id)
        again = await shop.build()
        await shop.send(again)
        await reorg_to(shop, 2, raw, await raw_of(shop, again))
        assert (await shop.payout(twice.id)).batch_id == again
        assert (await shop.payout(gone.id)).state is State.CANCELLED
        taken = {"chain": -30_000, seller: 70_000, "unexplained": -40_000}
        assert await shop.balances_sat() == taken
        assert await shop.agree() == 30_000
        assert "40,000 sat left the wallet" in str(await stopped(shop))
        await shop.mine()
        assert (await shop.batch(dead)).state is BatchState.DONE
        await explain(shop, raw, seller)
        assert await shop.balances_sat() == {"chain": -30_000, seller: 30_000}
        # The second one goes with its block: the first has paid, and is left alone.
        await reorg_to(shop, 2, raw)
        assert (await shop.payout(twice.id)).state is State.BATCHED
        assert await shop.agree() == 60_000


async def test_a_payout_in_a_batch_that_nobody_signed_goes_back_to_the_one_that_paid_it(
    shaky: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 2}) as shop:
        await shop.sell(price_sat=PRICE_SAT, count=2, depth=2)
        payout = await shop.request(30_000)
        dead, raw, foreign = await dead_batch(shop)
        await explain(shop, foreign, ledger.operator())
        unsigned = await shop.build()
        await reorg_to(shop, 2, raw)
        assert (await shop.batch(unsigned)).state is BatchState.DEAD
        assert (await shop.payout(payout.id)).batch_id == dead
        assert await stopped(shop) is None
        assert await shop.agree() == 70_000


async def test_a_batch_whose_coin_was_never_made_dies(shaky: RegtestWorld, tmp_path: Path) -> None:
    """A reorg takes the buyer's payment out, and it is double spent: payouts of it wait for other money."""
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 2}) as shop:
        seller = ledger.seller(shop.seller_id)
        await shop.sell(price_sat=PRICE_SAT, depth=2)
        payout = await shop.request(30_000)
        batch_id = await shop.build()
        await shop.services.batches.export(batch_id)
        (coin,) = (await shop.batch(batch_id)).inputs
        other = await respent(shop, coin.txid)
        await reorg_to(shop, 2, other)
        assert (await shop.payout(payout.id)).state is State.BATCHED
        assert await waits_for(shop, batch_id, "in no block any more")
        assert await shop.balances_sat() == {seller: -30_000, ledger.payout(payout.id): 30_000}
        await shop.mine()
        assert (await shop.batch(batch_id)).state is BatchState.DEAD
        assert (await shop.payout(payout.id)).state is State.APPROVED
        # Others' money would be there: the seller's is not.
        deposit = await payout_desk.deposit_address(shop.services)
        await shaky.faucet(deposit.address, 100_000, confirmations=2)
        await shop.seen()
        wallet = await shop.services.hosted.open()
        assert await shop.services.batches.build(feerate_sat_kvb=2_000, wallet=wallet) is None
        assert "the chain took money of this balance back" in str((await shop.payout(payout.id)).trouble)
        assert await shop.agree() == 100_000


async def test_a_new_process_still_sees_who_spends_what_was_spent_before(
    shaky: RegtestWorld, tmp_path: Path
) -> None:
    """A payout is in a block when the watcher starts; a reorg then has somebody else spend its coin."""
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 1}) as shop:
        await shop.sell(price_sat=PRICE_SAT, depth=2)
        payout = await shop.request(30_000)
        batch_id = await shop.build()
        await shop.send(batch_id)
        foreign = await shop.spend_otherwise(*(await shop.batch(batch_id)).inputs)
        await shop.mine()
        # The running one stands still; another takes its place.
        async with shop.services.watcher._one_at_a_time, open_services(shop.services.config) as started:
            await started.watcher.poll_once()
            await reorg_to(shop, 1, foreign, seen=False)
            await started.watcher.poll_once()
            assert (await shop.batch(batch_id)).state is BatchState.DEAD
            assert (await shop.payout(payout.id)).state is State.APPROVED
            assert (await shop.balances_sat())["unexplained"] == -PRICE_SAT
            assert await shop.agree() == 0


async def test_what_strangers_pay_to_a_change_address_is_the_operators(
    shaky: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(shaky, tmp_path, hosted={"depth": 1}) as shop:
        await shop.sell(price_sat=PRICE_SAT)
        await shop.request(30_000)
        batch_id = await shop.build()
        await shop.send(batch_id)
        await shop.mine()
        script = (await shop.batch(batch_id)).change_script_pubkey
        assert script is not None
        address = (await shaky.outside.rpc("decodescript", script.hex()))["address"]
        await shaky.faucet(address, 7_000)
        await shop.seen()
        assert (await shop.balances_sat())["operator"] == 7_000
        assert await shop.agree() == 27_000
        await shaky.reorg(1, keep_transactions=False)
        await shop.seen()
        assert "operator" not in await shop.balances_sat()
        await shop.mine()
        assert await shop.agree() == 27_000


# What the tests do to the chain


async def dead_batch(shop: HostedShop) -> tuple[str, str, str]:
    """A batch of what is ready, sent, whose coins another transaction spent two blocks ago: its id, its
    transaction and the other, in hex."""
    batch_id = await shop.build()
    await shop.send(batch_id)
    foreign = await shop.spend_otherwise(*(await shop.batch(batch_id)).inputs)
    await shop.world.mine_exactly([foreign])
    await shop.mine()
    assert (await shop.batch(batch_id)).state is BatchState.DEAD
    return batch_id, await raw_of(shop, batch_id), foreign


async def reorg_to(shop: HostedShop, depth: int, *raws: str, seen: bool = True) -> None:
    """Replace so many blocks by as many empty ones and one with these transactions, whatever they conflict
    with."""
    outside = shop.world.outside
    height = await outside.rpc("getblockcount")
    await outside.rpc("invalidateblock", await outside.rpc("getblockhash", height - depth + 1))
    for transactions in (*[()] * depth, raws):
        await shop.world.mine_exactly(transactions, sync=False)
    await shop.world.wait_synced()
    if seen:
        await shop.seen()


async def respent(shop: HostedShop, txid: str) -> str:
    """The inputs of this payment of the miner's, paid back to the miner instead; in hex."""
    outside = shop.world.outside
    spent = (await outside.rpc("gettransaction", txid, wallet=MINER, verbose=True))["decoded"]["vin"]
    coins = []
    for one in spent:
        parent = await outside.rpc("gettransaction", one["txid"], wallet=MINER, verbose=True)
        output = parent["decoded"]["vout"][one["vout"]]
        script, amount = output["scriptPubKey"]["hex"], output["value"]
        coins.append({"txid": one["txid"], "vout": one["vout"], "scriptPubKey": script, "amount": amount})
    paid = [{await shop.new_address(): sum(coin["amount"] for coin in coins) - btc(20_000)}]
    raw = await outside.rpc("createrawtransaction", coins, paid)
    signed = await outside.rpc("signrawtransactionwithwallet", raw, coins, wallet=MINER)
    assert signed["complete"], signed
    return str(signed["hex"])


def txid_of(raw: str) -> str:
    return parse_transaction(bytes.fromhex(raw)).txid


async def raw_of(shop: HostedShop, batch_id: str) -> str:
    raw = (await shop.batch(batch_id)).newest.raw
    assert raw is not None
    return raw.hex()


async def explain(shop: HostedShop, raw: str, account: str) -> None:
    async def write(tx: Transaction) -> None:
        explained = await foreign_spends.explain(
            tx, txid_of(raw), {account: None}, now=shop.till.server.clock()
        )
        assert explained.left_sat == 0

    await shop.services.database.write(write)


async def cancel(shop: HostedShop, payout_id: str) -> None:
    now = shop.till.server.clock()
    await shop.services.database.write(lambda tx: payout_requests.cancel(tx, payout_id, now=now))


async def stopped(shop: HostedShop) -> str | None:
    reason: str | None = await shop.services.database.read(payable.stopped)
    return reason


async def waits_for(shop: HostedShop, batch_id: str, words: str) -> bool:
    batch = await shop.batch(batch_id)
    return words in str(await shop.services.database.read(lambda tx: payout_follow.obstacle(tx, batch)))


async def network_fees_sat(shop: HostedShop, payout_id: str) -> int:
    """What stands in the books as this payout's fee."""

    async def read(tx: Transaction) -> int:
        booked = (await books.booked(tx, [payout_id]))[payout_id]
        fees = {Code.NETWORK_FEE: 1, Code.NETWORK_FEE_REVERSED: -1}
        return sum(fees.get(one.code, 0) * one.amount_msat for one in booked) // 1_000

    fee_sat: int = await shop.services.database.read(read)
    return fee_sat
