"""Contracts and deposits as rows, and what blocks do to them, without a node."""

from __future__ import annotations

from functools import partial

import pytest
from sqlalchemy import insert

from bitcache.db.engine import Database
from bitcache.db.migrate import upgrade
from payments import books, chain_facts, chain_store, channel_follow, channel_store, ledger
from payments.chain_facts import BlockRef, PaidOutput, PayingTransaction
from payments.channel import ChannelState, CloseReason
from payments.channel_errors import ChangeScriptRefused, ChannelNotFound
from payments.channel_follow import ChannelFollower
from payments.channel_script import Contract
from payments.channel_store import DEPOSITS_PER_CONTRACT_MAX, OF_PAYER_MAX
from payments.money import Sat
from payments.outputs import OutPoint, Presence
from payments.ports import Transaction
from payments.tables import channel_closes, channel_sales, paying_transactions
from payments.watch_list import WatchList
from tests.channel_parts import P2TR, contract, key

NOW = 1_800_000_000


async def announce(tx: Transaction, one: Contract, *, contracts_max: int = 100) -> None:
    await channel_store.announce(tx, one, nonce=bytes(16), now=NOW, contracts_max=contracts_max)


async def pay(tx: Transaction, number: int, *contracts: Contract, height: int | None = None) -> str:
    """A transaction with an output to each."""
    txid = f"{number:064x}"
    outputs = tuple(
        PaidOutput(vout, Sat(20_000), one.script_pubkey, None) for vout, one in enumerate(contracts)
    )
    payment = PayingTransaction(
        txid, b"raw", (OutPoint(f"{number + 1_000:064x}", 0),), outputs, coinbase=False
    )
    await chain_store.add_payment(tx, payment, height=height, first_seen_at=NOW, prefetch_fit=True)
    return txid


def by(number: int) -> Contract:
    return contract(payer=key(number))


async def test_a_contract_is_announced_once(database: Database) -> None:
    async def run(tx: Transaction) -> None:
        await announce(tx, by(1))
        await announce(tx, by(1))
        assert await channel_store.newest_seq(tx) == 1
        assert await channel_store.contract_of(tx, by(1).script_pubkey) == (by(1), bytes(16))
        with pytest.raises(ChangeScriptRefused):
            await announce(tx, contract(payer=key(1), change=P2TR))
        assert await channel_store.contract_of(tx, by(2).script_pubkey) is None

    await database.write(run)


async def test_the_oldest_contracts_without_a_deposit_go(database: Database) -> None:
    async def run(tx: Transaction) -> None:
        await announce(tx, by(1))
        await pay(tx, 1, by(1))
        for number in (2, 3, 4):
            await announce(tx, by(number), contracts_max=2)
        scripts, seq = await channel_store.scripts_after(tx, 0)
        assert set(scripts) == {by(number).script_pubkey for number in (1, 3, 4)}
        assert await channel_store.scripts_after(tx, seq) == ([], seq)
        # Money to one that was dropped, and is watched in memory still, is nobody's here.
        await pay(tx, 2, by(2))
        assert await channel_store.of_payer(tx, by(2).payer_key) == []

    await database.write(run)


async def test_only_so_many_deposits_to_a_contract_are_channels(database: Database) -> None:
    """Each costs whoever asks for all of them, and who pays a thousand in one transaction pays little."""

    async def run(tx: Transaction) -> None:
        await announce(tx, by(1))
        await announce(tx, by(2))
        txid = await pay(tx, 1, *[by(1)] * (DEPOSITS_PER_CONTRACT_MAX + 5), by(2))
        await pay(tx, 2, by(1), by(2))
        of_first = [one.id for one in await channel_store.of_payer(tx, by(1).payer_key)]
        assert len(of_first) == DEPOSITS_PER_CONTRACT_MAX
        assert set(of_first) == {f"{txid}:{vout}" for vout in range(DEPOSITS_PER_CONTRACT_MAX)}
        assert len(await channel_store.of_payer(tx, by(2).payer_key)) == 2
        # The same key in other contracts.
        for number in (3, 4):
            other = contract(payer=key(1), payee=key(number))
            await announce(tx, other)
            await pay(tx, number, *[other] * DEPOSITS_PER_CONTRACT_MAX)
        assert len(await channel_store.of_payer(tx, by(1).payer_key)) == OF_PAYER_MAX

    await database.write(run)


async def test_deposits_are_channels_with_the_place_of_their_transaction(database: Database) -> None:
    async def run(tx: Transaction) -> None:
        await announce(tx, by(1))
        await announce(tx, by(2))
        _, seq = await channel_store.scripts_after(tx, 0)
        txid = await pay(tx, 7, by(1), by(2), by(1))
        assert {one.id for one in await channel_store.live(tx)} == {f"{txid}:{vout}" for vout in range(3)}
        # A deposit makes its contract new again.
        assert set((await channel_store.scripts_after(tx, seq))[0]) == {
            by(1).script_pubkey,
            by(2).script_pubkey,
        }
        again = await pay(tx, 7, by(1), by(2), by(1), height=30)
        one = await channel_store.load(tx, f"{again}:2")
        assert (one.state, one.funding, one.funding_height) == (ChannelState.FUNDED, Presence.BLOCK, 30)
        assert [one.confirmations(tip) for tip in (29, 30, 35)] == [0, 1, 6]
        assert one.channel.contract == by(1)
        assert len(await channel_store.of_script(tx, by(1).script_pubkey)) == 2
        with pytest.raises(ChannelNotFound):
            await channel_store.load(tx, f"{again}:3")

    await database.write(run)


async def test_what_other_processes_announce_and_record_is_watched(database: Database) -> None:
    watch_list = WatchList(channels=True)

    async def first(tx: Transaction) -> None:
        await announce(tx, by(1))
        await pay(tx, 1, by(1))

    async def second(tx: Transaction) -> None:
        await announce(tx, by(2))
        await pay(tx, 2, by(1), by(2))

    await database.write(first)
    await database.read(watch_list.load)
    assert set(watch_list.scripts) == {by(1).script_pubkey}
    assert len(watch_list.outpoints) == 2
    await database.write(second)
    await database.read(partial(watch_list.load_among, script_pubkeys=[by(2).script_pubkey]))
    assert by(2).script_pubkey in watch_list.scripts
    await database.read(watch_list.load_new)
    # Three deposits, and an input of each of the two fundings.
    assert len(watch_list.outpoints) == 5
    assert watch_list.pays(f"{2:064x}")


async def test_without_channels_none_is_looked_for(database: Database) -> None:
    watch_list = WatchList()
    await database.write(partial(announce, one=by(1)))
    await database.read(watch_list.load)
    await database.read(watch_list.load_new)
    await database.read(partial(watch_list.load_among, script_pubkeys=[by(1).script_pubkey]))
    assert watch_list.scripts == {}


async def test_both_databases_follow_a_channel_to_its_end(each_database: str) -> None:
    """Sold in it, refunded, taken out by a reorg, double-spent: the same on SQLite and PostgreSQL."""
    database = Database(each_database)
    await upgrade(database)
    follower = ChannelFollower(depth=2)
    channel_id = f"{1:064x}:0"
    waiting = {ledger.channel(channel_id): -5_000, ledger.pending("s"): 5_000}
    settled = {ledger.seller("s"): 4_500, ledger.operator(): -4_500}

    async def follow(tx: Transaction, tip_height: int) -> dict[str, int]:
        await chain_store.connect(tx, BlockRef(tip_height, f"{tip_height:064x}"), now=NOW)
        await follower.mark_addresses(tx)
        await follower.follow(tx, now=NOW)
        assert await books.wrong_balances(tx) == {}
        return {account: int(msat) for account, msat in (await books.balances_like(tx, "")).items()}

    async def run(tx: Transaction) -> None:
        await announce(tx, by(1))
        await pay(tx, 1, by(1), height=10)
        await tx.execute(
            insert(channel_sales).values(
                channel_id=channel_id,
                subject="o",
                seller_id="s",
                fee_ppm=100_000,
                first_at=NOW,
                last_at=NOW,
                units=1,
                spent_msat=5_000,
                booked_msat=0,
                bookings=0,
            )
        )
        assert await follow(tx, 11) == {}
        await channel_follow.book_spending(tx, None, now=NOW)
        assert await follow(tx, 12) == waiting
        refund = PayingTransaction("bb" * 32, b"", (OutPoint(f"{1:064x}", 0),), (), coinbase=False)
        await chain_store.add_payment(tx, refund, height=13, first_seen_at=NOW, prefetch_fit=True)
        assert await follow(tx, 13) == waiting
        assert (await channel_store.load(tx, channel_id)).close_reason is CloseReason.REFUNDED
        assert await channel_store.spends_of(tx, [channel_id]) == {channel_id: ("bb" * 32, 13)}
        assert await follow(tx, 14) == settled
        await chain_store.disconnect_above(tx, 9)
        assert await follow(tx, 10) == waiting
        assert (await channel_store.load(tx, channel_id)).state is ChannelState.FUNDED
        await chain_store.lose_inputs(tx, f"{1:064x}", height=11)
        assert await follow(tx, 11) == waiting
        assert (await channel_store.load(tx, channel_id)).close_reason is CloseReason.LOST
        assert await follow(tx, 12) == settled
        # Once it is final nothing is looked at, however the tip moves.
        assert await follow(tx, 12 + 500) == settled

    await database.write(run)
    await database.close()


async def test_only_the_newest_version_of_a_close_is_offered_to_the_node(database: Database) -> None:
    async def run(tx: Transaction) -> dict[str, bool]:
        await announce(tx, by(1))
        await pay(tx, 5, by(1))
        for close_id, n in (("a", 1), ("a", 2), ("b", 1)):
            txid = f"{close_id}{n}"
            await tx.execute(
                insert(paying_transactions).values(
                    txid=txid,
                    raw=b"",
                    coinbase=False,
                    presence=Presence.MISSING,
                    reorged=False,
                    prefetch_fit=False,
                )
            )
            await tx.execute(
                insert(channel_closes).values(
                    close_id=close_id,
                    n=n,
                    txid=txid,
                    raw=b"",
                    created_at=NOW,
                    sent_height=1,
                    feerate_sat_kvb=1_000,
                    fee_sat=100,
                    payee_script_pubkey=b"",
                    payee_sat=0,
                )
            )
        return {one.txid: one.offered for one in await chain_facts.unconfirmed(tx)}

    offered = await database.write(run)
    assert offered == {f"{5:064x}": True, "a1": False, "a2": True, "b1": True}
