"""How channels come about, on a real node: terms, addresses that are watched, and deposits that came first.

No loop runs here: the watcher looks when the test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from coincurve import PrivateKey

from payments import channel_store
from payments.channel import TERMS_STALE_BLOCKS, ChannelState, ChannelTerms, Voucher
from payments.channel_close import CLOSE_VBYTES
from payments.channel_errors import (
    ChangeScriptRefused,
    ChannelTermsStale,
    DepositTooSmall,
    ExpiryTooNear,
    FundingNotFound,
    NetworkForeign,
    OutpointMalformed,
    PayerKeyInvalid,
)
from payments.channel_keys import payee_key, public_bytes
from payments.channel_opening import FEERATE_UNKNOWN_SAT_KVB, ChannelOpening
from payments.channel_record import ChannelRecord
from payments.channel_script import Channel, Contract, parse_channel_id
from payments.money import Sat
from payments.outputs import Presence
from payments.segwit_address import address_of
from regtest.node import wait_until
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.channel_deposits import Deposits, open_deposits
from tests.channel_parts import P2PKH, P2WPKH

DEPOSIT_SAT = 50_000


@pytest_asyncio.fixture
async def shop(world: RegtestWorld, tmp_path: Path) -> AsyncIterator[Deposits]:
    async with open_deposits(world, tmp_path) as shop:
        yield shop


@dataclass
class Payer:
    """Who has terms, and pays before or after saying so."""

    shop: Deposits
    terms: ChannelTerms
    key: PrivateKey
    change: bytes

    @property
    def contract(self) -> Contract:
        return self.terms.contract(public_bytes(self.key), self.change)

    @property
    def address(self) -> str:
        return address_of(self.contract.script_pubkey, "regtest")

    async def pay(self, amount_sat: int = DEPOSIT_SAT, *, confirmations: int = 0) -> str:
        """The channel's id."""
        world = self.shop.world
        txid = await world.faucet(self.address, amount_sat, confirmations=confirmations)
        if not confirmations:
            await world.mempool_wait(txid)
        transaction = await world.outside.rpc("gettransaction", txid=txid, verbose=True, wallet=MINER)
        (vout,) = (
            output["n"]
            for output in transaction["decoded"]["vout"]
            if output["scriptPubKey"].get("address") == self.address
        )
        return f"{txid}:{vout}"

    async def announce(self) -> Contract:
        return await opening_of(self.shop).announce(self.terms, public_bytes(self.key), self.change)

    async def adopt(self, channel_id: str, terms: ChannelTerms | None = None) -> None:
        await opening_of(self.shop).adopt(
            terms or self.terms, public_bytes(self.key), self.change, channel_id
        )


def opening_of(shop: Deposits) -> ChannelOpening:
    channels = shop.services.channels
    assert channels is not None
    opening: ChannelOpening = channels.opening
    return opening


async def payer_of(shop: Deposits) -> Payer:
    return Payer(shop, await opening_of(shop).terms(), PrivateKey(), P2WPKH)


async def channels_of(shop: Deposits, payer: Payer) -> list[ChannelRecord]:
    return await shop.of(payer.contract)


async def refused(what: Awaitable[object], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        await what
    assert type(raised.value) is error


async def test_terms_are_fresh_and_nothing_is_kept_of_them(shop: Deposits) -> None:
    opening, config = opening_of(shop), shop.services.config.channels
    first, second = await opening.terms(), await opening.terms()
    tip_height = await shop.world.server.rpc("getblockcount")
    assert first.nonce != second.nonce
    seed = shop.services.config.channel_seed.read_bytes()
    assert first.payee_key == public_bytes(payee_key(seed, first.nonce)) != second.payee_key
    assert (first.network, first.issued_height) == ("regtest", tip_height)
    assert first.expiry_height == tip_height + config.life_blocks
    feerate = await opening.feerate_sat_kvb()
    estimate = await shop.services.node.estimate_feerate(6)
    assert feerate == (FEERATE_UNKNOWN_SAT_KVB if estimate is None else max(1_000, min(estimate, 100_000)))
    assert first.close_fee_sat == -(-CLOSE_VBYTES * feerate // 1_000)
    assert first.deposit_min_sat == max(config.deposit_min_sat, 2 * first.close_fee_sat)


@pytest.mark.parametrize("confirmations", [0, 2])
async def test_a_deposit_that_came_before_its_contract_is_taken(shop: Deposits, confirmations: int) -> None:
    """The watcher has seen it, and did not know whose it was."""
    payer = await payer_of(shop)
    channel_id = await payer.pay(confirmations=confirmations)
    await shop.seen()
    assert await channels_of(shop, payer) == []
    await payer.adopt(channel_id)
    await asyncio.gather(*(payer.adopt(channel_id) for _ in range(4)))
    (record,) = await channels_of(shop, payer)
    tip_height = await shop.world.server.rpc("getblockcount")
    assert (record.id, record.state) == (channel_id, ChannelState.FUNDED)
    assert record.channel.capacity_sat == DEPOSIT_SAT
    assert record.confirmations(tip_height) == confirmations
    assert record.funding is (Presence.BLOCK if confirmations else Presence.MEMPOOL)

    # From here on the watcher follows it as every other.
    await shop.mine()
    (record,) = await channels_of(shop, payer)
    assert record.confirmations(tip_height + 1) == confirmations + 1


async def test_a_deposit_after_the_announcement_needs_no_more(shop: Deposits) -> None:
    payer = await payer_of(shop)
    assert await payer.announce() == payer.contract == await payer.announce()
    one, other = await payer.pay(), await payer.pay(DEPOSIT_SAT + 1)
    await shop.seen()
    found = await channels_of(shop, payer)
    assert {record.id for record in found} == {one, other}, "several deposits under one contract"
    await payer.adopt(one)

    channels = shop.services.channels
    await channels.registry.poll_once()
    running = asyncio.create_task(channels.registry.run())
    channel = Channel(payer.contract, parse_channel_id(other), Sat(DEPOSIT_SAT + 1))
    opened = await channels.registry.open(other, Voucher(other, 400, channel.sign(payer.key, 400)))
    assert (opened.balance.accepted_sat, opened.confirmations) == (400, 0)
    running.cancel()
    await asyncio.wait([running])


async def test_the_watcher_may_be_behind(shop: Deposits) -> None:
    """A block that the node has and the watcher has not: the deposit in it is found once, by one of them."""
    payer = await payer_of(shop)
    channel_id = await payer.pay(confirmations=1)
    adopting = asyncio.create_task(payer.adopt(channel_id))

    async def announced() -> bool:
        known = partial(channel_store.contract_of, script_pubkey=payer.contract.script_pubkey)
        return await shop.services.database.read(known) is not None

    await wait_until(announced, "the contract to be kept")
    for _ in range(20):  # the node is asked meanwhile, and what it says is not written down
        await shop.services.node.unspent_output(parse_channel_id(channel_id))
        assert await channels_of(shop, payer) == []
    await shop.seen()
    await adopting
    (record,) = await channels_of(shop, payer)
    assert record.funding_height == await shop.world.server.rpc("getblockcount")


async def test_a_reorg_takes_an_adopted_deposit_away_and_brings_it_back(
    own_world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_deposits(own_world, tmp_path) as shop:
        payer = await payer_of(shop)
        channel_id = await payer.pay(confirmations=2)
        await shop.seen()
        await payer.adopt(channel_id)
        await own_world.reorg(2, keep_transactions=False)
        await shop.seen()
        (record,) = await channels_of(shop, payer)
        assert (record.funding, record.funding_height) == (Presence.MEMPOOL, None)
        await shop.mine()
        (record,) = await channels_of(shop, payer)
        assert record.funding is Presence.BLOCK


async def test_what_is_no_deposit_is_refused(shop: Deposits) -> None:
    payer, other = await payer_of(shop), await payer_of(shop)
    channel_id = await payer.pay()
    txid, _, vout = channel_id.partition(":")
    for spelled in (f"{txid}:0{vout}", f"{txid.upper()}:{vout}", f" {channel_id}", f"{txid}:{2**32}", txid):
        await refused(payer.adopt(spelled), OutpointMalformed)
    # Other terms, another key: the output is there, and pays somebody else.
    await refused(other.adopt(channel_id), FundingNotFound)
    await refused(payer.adopt(f"{'ab' * 32}:0"), FundingNotFound)
    await refused(payer.adopt(f"{txid}:{int(vout) + 7}"), FundingNotFound)
    assert await channels_of(shop, payer) == [] == await channels_of(shop, other)

    small = await payer.pay(payer.terms.deposit_min_sat - 1)
    await refused(payer.adopt(small), DepositTooSmall)
    # Somebody else's coins, sent on: there is nothing unspent at their old place.
    wallet = await OutsideWallet.create(shop.world, "spender")
    sent = await shop.world.faucet(await wallet.new_address(), 90_000)
    await wallet.pay([(await wallet.new_address(), 50_000)])
    spent = [f"{sent}:{n}" for n in range(2)]
    for one in spent:
        await refused(payer.adopt(one), FundingNotFound)


async def test_terms_that_do_not_hold_are_refused(shop: Deposits) -> None:
    payer = await payer_of(shop)
    channel_id = await payer.pay()
    terms, tip_height = payer.terms, payer.terms.issued_height
    for changed, error in (
        (replace(terms, network="signet"), NetworkForeign),
        (replace(terms, issued_height=tip_height - TERMS_STALE_BLOCKS - 1), ChannelTermsStale),
        (replace(terms, expiry_height=tip_height + 100), ExpiryTooNear),
    ):
        await refused(payer.adopt(channel_id, changed), error)
    opening = opening_of(shop)
    await refused(opening.announce(terms, bytes(33), payer.change), PayerKeyInvalid)
    await refused(opening.announce(terms, public_bytes(payer.key), P2PKH), ChangeScriptRefused)
    assert await channels_of(shop, payer) == []
