"""PSBTs that go out to be signed: what comes back is what was asked, or is refused and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bitcoin.core import CMutableTransaction, CMutableTxIn, CMutableTxOut, COutPoint, CTransaction, lx

from payments import ledger
from payments.errors import PayoutConflict, PsbtAltered, PsbtIncomplete, PsbtInvalid
from payments.outputs import Presence
from payments.payout import BatchState, State
from regtest.wallet import DescriptorKind
from regtest.world import RegtestWorld
from tests.hosted_shop import HostedShop, open_hosted_till

FOREIGN_SCRIPT = bytes.fromhex("0014" + "11" * 20)


async def signed_as(shop: HostedShop, unsigned: bytes, change: Callable[[CMutableTransaction], None]) -> str:
    """The PSBT that a signer gives back who changed the transaction first."""
    altered = CMutableTransaction.from_tx(CTransaction.deserialize(unsigned))
    change(altered)
    psbt = await shop.world.outside.rpc("converttopsbt", altered.serialize().hex())
    return str((await shop.keys.rpc("walletprocesspsbt", psbt))["psbt"])


def other_payee(tx: CMutableTransaction) -> None:
    tx.vout[0] = CMutableTxOut(tx.vout[0].nValue, FOREIGN_SCRIPT)


def more_fee(tx: CMutableTransaction) -> None:
    tx.vout[0].nValue -= 1


def less_change(tx: CMutableTransaction) -> None:
    tx.vout[-1].nValue -= 1_000


def one_more_payee(tx: CMutableTransaction) -> None:
    tx.vout.append(CMutableTxOut(1_000, FOREIGN_SCRIPT))


def later(tx: CMutableTransaction) -> None:
    tx.nLockTime = 500


def for_ever(tx: CMutableTransaction) -> None:
    tx.vin[0].nSequence = 0xFFFFFFFF


ALTERATIONS = {
    other_payee: "output 0 pays .* was asked",
    more_fee: "output 0 pays .* were asked",
    less_change: "output 1 pays .* were asked",
    one_more_payee: "output 2 pays 1,000 sat to .* which was not asked",
    later: "the locktime is 500, 0 was asked",
    for_ever: "has the sequence 0xffffffff, 0xfffffffd was asked",
}


async def test_what_a_signer_changed_is_named_and_refused_and_the_right_one_is_taken(
    world: RegtestWorld, tmp_path: Path
) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"depth": 1}) as shop:
        await shop.sell(price_sat=50_000, count=2)
        # Outputs are sorted by script: the change is the second.
        payout = await shop.request(60_000, address=await script_address(shop, "00"))
        before = await shop.balances_sat()
        batch_id = await shop.build()
        batches, asked = shop.services.batches, (await shop.batch(batch_id)).newest.unsigned
        psbt = await batches.export(batch_id)
        for change, words in ALTERATIONS.items():
            with pytest.raises(PsbtAltered, match=words):
                await batches.import_signed(batch_id, await signed_as(shop, asked, change))

        extra = await shop.world.outside.rpc("listunspent", 1, wallet="miner")

        def one_more_coin(tx: CMutableTransaction) -> None:
            tx.vin.append(CMutableTxIn(COutPoint(lx(extra[0]["txid"]), extra[0]["vout"])))

        with pytest.raises(
            PsbtAltered, match=f"input {extra[0]['txid']}:.* is spent too, which was not asked"
        ):
            await batches.import_signed(batch_id, await signed_as(shop, asked, one_more_coin))
        with pytest.raises(PsbtIncomplete) as incomplete:
            await batches.import_signed(batch_id, psbt)
        assert incomplete.value.inputs == (0, 1)
        for text in ("", "nonsense", "00", psbt[:200]):
            with pytest.raises(PsbtInvalid):
                await batches.import_signed(batch_id, text)
        broken = bytearray.fromhex(await signed_hex(shop, psbt))
        broken[-30] ^= 1
        with pytest.raises(PsbtInvalid, match="signatures do not hold"):
            await batches.import_signed(batch_id, broken.hex())

        # All that came back so far changed nothing.
        assert (await shop.payout(payout.id)).state is State.BATCHED
        assert await shop.balances_sat() == before
        with pytest.raises(PayoutConflict, match="may send it at any time"):
            await batches.abandon(batch_id)
        await batches.import_signed(batch_id, await signed_hex(shop, psbt))
        assert await batches.offer(batch_id) is None
        await shop.sent(batch_id)
        kept = await shop.batch(batch_id)
        shop.till.server.clock.advance(5)
        await batches.import_signed(batch_id, await signed_hex(shop, psbt))
        assert await shop.batch(batch_id) == kept, "the first signatures are the ones that count"
        await shop.mine()
        assert (await shop.payout(payout.id)).state is State.DONE
        await shop.agree()


async def script_address(shop: HostedShop, byte: str) -> str:
    """Of nobody: version 0, a program of this byte alone."""
    described = await shop.world.outside.rpc("decodescript", f"0014{byte * 20}")
    return str(described["address"])


async def signed_hex(shop: HostedShop, psbt: str) -> str:
    final = await shop.world.outside.rpc("finalizepsbt", await shop.sign_outside(psbt))
    return str(final["hex"])


@pytest.mark.parametrize("kind", ["wpkh", "sh(wpkh"])
async def test_signed_and_sent_by_somebody_else_it_is_known_by_what_it_pays(
    world: RegtestWorld, tmp_path: Path, kind: DescriptorKind
) -> None:
    """Its txid is not known before, where signatures stand in the inputs. The watcher was away meanwhile."""
    async with open_hosted_till(world, tmp_path, kind=kind, hosted={"depth": 2}) as shop:
        await shop.sell(price_sat=50_000, depth=2)
        address = await shop.new_address()
        payout = await shop.request(30_000, address=address)
        batch_id = await shop.build()
        raw = await signed_hex(shop, await shop.services.batches.export(batch_id))
        txid = await world.outside.rpc("sendrawtransaction", raw)
        # Two blocks at once: the coin and its change are followed through both.
        await world.mine(2)
        await shop.seen()
        batch = await shop.batch(batch_id)
        assert (batch.state, batch.newest.txid) == (BatchState.DONE, txid)
        assert (await shop.payout(payout.id)).state is State.DONE
        assert await shop.received_sat(address) == 30_000 - batch.newest.fee_sat
        assert await shop.balances_sat() == {"chain": -20_000, ledger.seller(shop.seller_id): 20_000}
        assert await shop.agree() == 20_000
        with pytest.raises(PayoutConflict, match="in a block already"):
            await shop.services.batches.import_signed(batch_id, raw)


async def test_beside_an_older_version_a_bad_signature_is_refused_too(
    world: RegtestWorld, tmp_path: Path
) -> None:
    """It would be kept, never be mined, and keep the right one out."""
    async with open_hosted_till(world, tmp_path, hosted={"depth": 1}) as shop:
        await shop.sell(price_sat=50_000)
        await shop.request(30_000)
        batch_id, batches = await shop.build(), shop.services.batches
        await shop.send(batch_id)
        await batches.bump(batch_id, feerate_sat_kvb=9_000)
        second = await signed_hex(shop, await batches.export(batch_id))
        broken = bytearray.fromhex(second)
        broken[-30] ^= 1
        with pytest.raises(PsbtInvalid, match="signatures do not hold"):
            await batches.import_signed(batch_id, broken.hex())
        await batches.import_signed(batch_id, second)
        assert await batches.offer(batch_id) is None
        await shop.seen()
        older, newer = (await shop.batch(batch_id)).versions
        assert (older.presence, newer.presence) == (Presence.CONFLICTED, Presence.MEMPOOL)


@pytest.mark.parametrize("kind", ["wpkh", "tr", "pkh"])
async def test_a_signature_that_others_can_put_to_other_payees_is_refused(
    world: RegtestWorld, tmp_path: Path, kind: DescriptorKind
) -> None:
    """Whoever sees such a transaction on its way pays themselves with it."""
    async with open_hosted_till(world, tmp_path, kind=kind, hosted={"depth": 1}) as shop:
        await shop.sell(price_sat=50_000)
        await shop.request(30_000)
        batch_id, batches = await shop.build(), shop.services.batches
        psbt = await batches.export(batch_id)
        for scope in ("NONE", "SINGLE", "ALL|ANYONECANPAY"):
            signed = (await shop.keys.rpc("walletprocesspsbt", psbt, True, scope))["psbt"]
            final = (await world.outside.rpc("finalizepsbt", signed))["hex"]
            for text in (signed, final):
                with pytest.raises(PsbtInvalid, match=r"signature of input 0 .* leaves open"):
                    await batches.import_signed(batch_id, text)
        closed = (await shop.keys.rpc("walletprocesspsbt", psbt, True, "ALL"))["psbt"]
        await batches.import_signed(batch_id, closed)
        assert await batches.offer(batch_id) is None
