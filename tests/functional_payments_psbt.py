"""Payout transactions on a real node: described, weighed, signed by a wallet that is closed again, checked.

The outside node stands for the operator's own: the server's of this world runs without wallets.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any, Literal

import pytest
import pytest_asyncio
from bitcoin.core import CMutableTransaction, CTransaction
from bitcoin.core.script import CScript

from payments.bitcoind import Bitcoind, BroadcastOutcome
from payments.bitcoind_coins import DescriptorRange, UnspentOutput
from payments.bitcoind_psbt import PsbtNode
from payments.bitcoind_rpc import BitcoindRpc, Call, T
from payments.bitcoind_wallet import PayoutWallet
from payments.errors import (
    CoinsSpent,
    NodeMisconfigured,
    NodeRefused,
    NodeUnavailable,
    PreviousTransactionMissing,
    PsbtIncomplete,
    PsbtInvalid,
    WalletCannotSign,
    WalletLocked,
    WalletNotFound,
    WalletNotLoaded,
)
from payments.money import Sat
from payments.outputs import OutPoint
from payments.payout_transaction import Payee, differences, txid_of, unsigned_transaction
from payments.psbt import transaction_in
from regtest.node import RegtestNode, wait_until
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld

Kind = Literal["wpkh", "tr", "sh(wpkh", "pkh"]
HIGHEST = 20
COIN_SAT = 1_000_000
PAYEE = bytes.fromhex("0014" + "77" * 20)
names = count(1)


@pytest_asyncio.fixture
async def node(world: RegtestWorld) -> AsyncIterator[Bitcoind]:
    async with Bitcoind(world.outside.rpc_url, cookie_file=world.outside.cookie_path) as node:
        yield node


async def funded(
    world: RegtestWorld, kind: Kind = "wpkh", *, coins: int = 2, passphrase: str | None = None
) -> tuple[OutsideWallet, DescriptorRange]:
    """A wallet of its own keys with confirmed coins, open, and its descriptor."""
    wallet, descriptor = await wallet_of_keys(world, kind, highest=max(HIGHEST, coins), passphrase=passphrase)
    addresses = await world.outside.rpc("deriveaddresses", descriptor.descriptor, [0, coins - 1])
    await OutsideWallet(world.outside, MINER).pay([(address, COIN_SAT) for address in addresses])
    await world.mine()
    return wallet, descriptor


async def wallet_of_keys(
    world: RegtestWorld, kind: Kind, *, highest: int = HIGHEST, passphrase: str | None = None
) -> tuple[OutsideWallet, DescriptorRange]:
    # Of one descriptor: a wallet that makes its own fills eight, which takes a second.
    number = next(names)
    wallet = OutsideWallet(world.outside, f"operator {number}/{kind}")
    await world.outside.rpc(
        "createwallet", wallet_name=wallet.name, blank=True, passphrase=passphrase, load_on_startup=False
    )
    if passphrase is not None:
        await wallet.rpc("walletpassphrase", passphrase, 60)
    listed = await world.outside.rpc("listdescriptors", True, wallet=MINER)
    key = listed["descriptors"][0]["desc"].split("(", 1)[1].split("/")[0]
    brackets = ")" * (kind.count("(") + 1)
    text = f"{kind}({key}/{number}h/0h/*{brackets}"
    described = await world.outside.rpc("getdescriptorinfo", text)
    (imported,) = await wallet.rpc(
        "importdescriptors",
        [{"desc": f"{text}#{described['checksum']}", "timestamp": "now", "range": [0, highest]}],
    )
    assert imported["success"], imported
    if passphrase is not None:
        await wallet.rpc("walletlock")
    (public,) = (await wallet.rpc("listdescriptors"))["descriptors"]
    return wallet, DescriptorRange(public["desc"], highest)


async def unspent(node: Bitcoind, *descriptors: DescriptorRange) -> tuple[UnspentOutput, ...]:
    return (await PsbtNode(node).scan_unspent(descriptors)).outputs


async def refusal_of(world: RegtestWorld, raw: bytes) -> str | None:
    """Why a node would not take this transaction now, whatever it pays; None: it would."""
    (verdict,) = await world.outside.rpc("testmempoolaccept", [raw.hex()], 0)
    return None if verdict["allowed"] else str(verdict["reject-reason"])


def paying(coins: Sequence[UnspentOutput], *, fee_sat: int = 10_000) -> bytes:
    """To a stranger, and the change back to where the first coin lay."""
    change_sat = sum(coin.amount_sat for coin in coins) - 300_000 - fee_sat
    payees = [Payee(Sat(300_000), PAYEE), Payee(Sat(change_sat), coins[0].script_pubkey)]
    return unsigned_transaction([coin.outpoint for coin in coins], payees)


async def open_wallets(world: RegtestWorld) -> set[str]:
    return set(await world.outside.rpc("listwallets"))


@pytest.mark.parametrize("kind", ["wpkh", "tr", "sh(wpkh", "pkh"])
async def test_a_payout_is_described_weighed_signed_and_sent(
    world: RegtestWorld, node: Bitcoind, kind: Kind
) -> None:
    wallet, descriptor = await funded(world, kind, coins=3)
    psbts = PsbtNode(node)
    scan = await psbts.scan_unspent([descriptor])
    assert scan.block_hash == await world.outside.rpc("getbestblockhash")
    assert scan.amount_sat == await wallet.balance_sat() == 3 * COIN_SAT
    assert {one.height for one in scan.outputs} == {scan.height}

    asked = paying(scan.outputs)
    psbt = await psbts.psbt_of(asked, [descriptor])
    assert transaction_in(psbt) == asked
    document = await world.outside.rpc("decodepsbt", psbt)
    origins = "taproot_bip32_derivs" if kind == "tr" else "bip32_derivs"
    assert all(origins in one for one in document["inputs"])
    assert [origins in one for one in document["outputs"]] == [False, True]
    assert all(("non_witness_utxo" in one) is (kind != "tr") for one in document["inputs"])
    estimated = await psbts.vsize_vbytes(psbt)
    with pytest.raises(PsbtIncomplete) as incomplete:
        await psbts.finalize(psbt)
    assert incomplete.value.inputs == (0, 1, 2)

    final = await psbts.finalize(await PayoutWallet(node, wallet.name).sign(psbt))
    assert wallet.name not in await open_wallets(world)
    assert differences(asked, final) == ()
    true_vbytes = (await world.outside.rpc("decoderawtransaction", final.hex()))["vsize"]
    assert true_vbytes <= estimated <= true_vbytes * 1.02

    assert await refusal_of(world, final) is None
    assert (await node.send_raw_transaction(final)).outcome is BroadcastOutcome.ACCEPTED
    assert await psbts.scan_unspent([descriptor]) == scan
    await world.mine()
    (change,) = await unspent(node, descriptor)
    assert change.outpoint == OutPoint(txid_of(final), 1)


async def test_a_multisig_wants_both_signers(world: RegtestWorld, node: Bitcoind) -> None:
    signers = [await wallet_of_keys(world, "wpkh") for _ in range(3)]
    keys = ",".join(one.descriptor.removeprefix("wpkh(").split(")")[0] for _, one in signers)
    described = await world.outside.rpc("getdescriptorinfo", f"wsh(sortedmulti(2,{keys}))")
    descriptor = DescriptorRange(described["descriptor"], HIGHEST)
    addresses = await world.outside.rpc("deriveaddresses", descriptor.descriptor, [3, 3])
    await world.faucet(addresses[0], COIN_SAT)
    psbts = PsbtNode(node)
    asked = paying(await unspent(node, descriptor))
    psbt = await psbts.psbt_of(asked, [descriptor])
    with pytest.raises(WalletCannotSign) as alone:
        await PayoutWallet(node, signers[0][0].name).sign(psbt)
    assert alone.value.inputs == (0,)
    await world.outside.rpc("loadwallet", signers[0][0].name)
    halves = [(await signer.rpc("walletprocesspsbt", psbt))["psbt"] for signer, _ in signers[:2]]
    for half in halves:
        with pytest.raises(PsbtIncomplete):
            await psbts.finalize(half)
    final = await psbts.finalize(await world.outside.rpc("combinepsbt", halves))
    assert differences(asked, final) == ()
    true_vbytes = (await world.outside.rpc("decoderawtransaction", final.hex()))["vsize"]
    assert true_vbytes <= await psbts.vsize_vbytes(psbt) <= true_vbytes * 1.02
    assert await refusal_of(world, final) is None


async def test_an_altered_payment_is_signed_and_found_out(world: RegtestWorld, node: Bitcoind) -> None:
    wallet, descriptor = await funded(world)
    psbts = PsbtNode(node)
    asked = paying(await unspent(node, descriptor))
    changed = CMutableTransaction.from_tx(CTransaction.deserialize(asked))
    changed.vout[0].nValue += 5
    psbt = await psbts.psbt_of(changed.serialize(), [descriptor])
    final = await psbts.finalize(await PayoutWallet(node, wallet.name).sign(psbt))
    assert await refusal_of(world, final) is None
    assert differences(asked, final) == ("output 0 pays 300,005 sat, 300,000 were asked",)


async def test_signatures_that_are_wrong_are_refused_by_the_node(world: RegtestWorld, node: Bitcoind) -> None:
    wallet, descriptor = await funded(world)
    psbts = PsbtNode(node)
    psbt = await psbts.psbt_of(paying(await unspent(node, descriptor)), [descriptor])
    final = await psbts.finalize(await PayoutWallet(node, wallet.name).sign(psbt))
    changed = CMutableTransaction.from_tx(CTransaction.deserialize(final))
    changed.vout[0].scriptPubKey = CScript(bytes.fromhex("0014" + "66" * 20))
    refusal = await refusal_of(world, changed.serialize())
    assert refusal is not None
    assert "script-verify" in refusal


async def test_coins_that_are_spent_are_named(world: RegtestWorld, node: Bitcoind) -> None:
    wallet, descriptor = await funded(world)
    psbts = PsbtNode(node)
    first, second = await unspent(node, descriptor)
    unknown = OutPoint("77" * 32, 0)
    with pytest.raises(CoinsSpent) as never:
        await psbts.psbt_of(unsigned_transaction([first.outpoint, unknown], [Payee(Sat(1_000), PAYEE)]), [])
    assert never.value.outpoints == (unknown,)
    # The mempool alone spends nothing: a replacement is built from the same coins.
    final = await psbts.finalize(
        await PayoutWallet(node, wallet.name).sign(await psbts.psbt_of(paying([first, second]), [descriptor]))
    )
    assert (await node.send_raw_transaction(final)).outcome is BroadcastOutcome.ACCEPTED
    dearer = await psbts.psbt_of(paying([first, second], fee_sat=20_000), [descriptor])
    replacement = await psbts.finalize(await PayoutWallet(node, wallet.name).sign(dearer))
    cheaper = await psbts.psbt_of(paying([first, second], fee_sat=5_000), [descriptor])
    refused = await psbts.finalize(await PayoutWallet(node, wallet.name).sign(cheaper))
    assert "insufficient fee" in str(await refusal_of(world, refused))
    assert (await node.send_raw_transaction(replacement)).outcome is BroadcastOutcome.ACCEPTED
    # What is unconfirmed itself can be spent.
    change = OutPoint(txid_of(replacement), 1)
    chained = unsigned_transaction([change], [Payee(Sat(100_000), PAYEE)])
    assert await psbts.vsize_vbytes(await psbts.psbt_of(chained, [descriptor])) > 0
    await world.mine()
    with pytest.raises(CoinsSpent) as spent:
        await psbts.psbt_of(paying([first, second]), [descriptor])
    assert spent.value.outpoints == (first.outpoint, second.outpoint)


async def test_a_thousand_outputs_and_three_hundred_inputs(world: RegtestWorld, node: Bitcoind) -> None:
    wallet, descriptor = await funded(world, coins=300)
    psbts = PsbtNode(node)
    coins = await unspent(node, descriptor._replace(highest=300))
    assert len(coins) == 300
    payees = [Payee(Sat(10_000 + n), PAYEE[:-2] + n.to_bytes(2, "big")) for n in range(1_000)]
    asked = unsigned_transaction([coin.outpoint for coin in coins], payees)
    psbt = await psbts.psbt_of(asked, [descriptor._replace(highest=300)])
    estimated = await psbts.vsize_vbytes(psbt)
    final = await psbts.finalize(await PayoutWallet(node, wallet.name).sign(psbt))
    assert differences(asked, final) == ()
    true_vbytes = (await world.outside.rpc("decoderawtransaction", final.hex()))["vsize"]
    assert true_vbytes <= estimated <= true_vbytes * 1.02


async def test_the_size_is_not_guessed(world: RegtestWorld, node: Bitcoind) -> None:
    _, descriptor = await funded(world)
    psbts = PsbtNode(node)
    psbt = await psbts.psbt_of(paying(await unspent(node, descriptor)), [])
    with pytest.raises(PsbtInvalid, match="name the descriptors"):
        await psbts.vsize_vbytes(psbt)


@pytest.mark.parametrize("given", ["", "hello", "cHNidP8=", "02000000", "cHNidP8BAA=="])
async def test_what_is_no_psbt_is_refused_with_words(node: Bitcoind, given: str) -> None:
    with pytest.raises(PsbtInvalid, match="begins with"):
        await PsbtNode(node).finalize(given)
    with pytest.raises(PsbtInvalid, match="begins with"):
        await PayoutWallet(node, "none").sign(given)


async def test_an_encrypted_wallet_wants_its_passphrase(world: RegtestWorld, node: Bitcoind) -> None:
    wallet, descriptor = await funded(world, passphrase="a word or two")
    psbts = PsbtNode(node)
    asked = paying(await unspent(node, descriptor))
    psbt = await psbts.psbt_of(asked, [descriptor])
    for passphrase in (None, "another word"):
        with pytest.raises(WalletLocked) as locked:
            await PayoutWallet(node, wallet.name, passphrase=passphrase).sign(psbt)
        assert locked.value.passphrase_wrong is (passphrase is not None)
        assert wallet.name not in await open_wallets(world)
    signed = await PayoutWallet(node, wallet.name, passphrase="a word or two").sign(psbt)
    assert differences(asked, await psbts.finalize(signed)) == ()
    await world.outside.rpc("loadwallet", wallet.name)
    assert (await wallet.rpc("getwalletinfo"))["unlocked_until"] == 0


async def test_a_wallet_that_lacks_keys_says_for_which_inputs(world: RegtestWorld, node: Bitcoind) -> None:
    wallet, descriptor = await funded(world, coins=1)
    other, other_descriptor = await funded(world, coins=1)
    coins = [*await unspent(node, descriptor), *await unspent(node, other_descriptor)]
    psbt = await PsbtNode(node).psbt_of(paying(coins), [descriptor, other_descriptor])
    for signer, lacking in ((wallet, (1,)), (other, (0,))):
        with pytest.raises(WalletCannotSign) as refusal:
            # A passphrase that is not needed does no harm.
            await PayoutWallet(node, signer.name, passphrase="none needed").sign(psbt)
        assert refusal.value.inputs == lacking
        assert signer.name not in await open_wallets(world)


async def test_a_wallet_that_is_not_there(world: RegtestWorld, node: Bitcoind) -> None:
    _, descriptor = await funded(world)
    psbt = await PsbtNode(node).psbt_of(paying(await unspent(node, descriptor)), [descriptor])
    for name in ("no such wallet", "../../etc", "?&#/%"):
        with pytest.raises(WalletNotFound) as absent:
            await PayoutWallet(node, name).sign(psbt)
        assert absent.value.name == name
        assert not await PayoutWallet(node, name).unload_if_left()
    async with Bitcoind(world.server.rpc_url, cookie_file=world.server.cookie_path) as without_wallets:
        with pytest.raises(NodeMisconfigured, match="disablewallet"):
            await PayoutWallet(without_wallets, "any").sign(psbt)
        assert not await PayoutWallet(without_wallets, "any").unload_if_left()


async def test_many_sign_at_once_and_nobody_leaves_the_wallet_open(
    world: RegtestWorld, node: Bitcoind
) -> None:
    wallet, descriptor = await funded(world, passphrase="a word or two")
    psbt = await PsbtNode(node).psbt_of(paying(await unspent(node, descriptor)), [descriptor])
    # Each with a lock of its own, as processes have.
    processes = [PayoutWallet(node, wallet.name, passphrase="a word or two") for _ in range(3)]
    signed = await asyncio.gather(*(one.sign(psbt) for one in processes))
    # Core's signatures are deterministic (RFC6979): all have made the same transaction.
    assert len({await PsbtNode(node).finalize(one) for one in signed}) == 1
    assert wallet.name not in await open_wallets(world)


class CancellingNode(Bitcoind):
    """Whoever awaits its answer to one method is cancelled meanwhile, and once more for good measure."""

    def __init__(self, node: RegtestNode, method: str) -> None:
        super().__init__(node.rpc_url, cookie_file=node.cookie_path)
        self._rpc = CancellingRpc(node.rpc_url, cookie_file=node.cookie_path)
        self._rpc.method = method

    def aim_at(self, task: asyncio.Future[str]) -> None:
        assert isinstance(self._rpc, CancellingRpc)
        self._rpc.target = task


class CancellingRpc(BitcoindRpc):
    method = ""
    target: asyncio.Future[str] | None = None

    async def call(
        self,
        method: str,
        *params: Any,
        answer: type[T],
        wallet: str | None = None,
        timeout_s: float | None = None,
    ) -> T:
        if method == self.method and self.target is not None:
            # Closing takes less than the others: it is over by then.
            for delay_s in (0, 0.001) if method == "unloadwallet" else (0.003, 0.004):
                asyncio.get_running_loop().call_later(delay_s, self.target.cancel)
        return await super().call(method, *params, answer=answer, wallet=wallet, timeout_s=timeout_s)


@pytest.mark.parametrize("method", ["loadwallet", "walletpassphrase", "walletprocesspsbt", "unloadwallet"])
async def test_cancelled_at_any_moment_the_wallet_is_closed(
    world: RegtestWorld, node: Bitcoind, method: str
) -> None:
    wallet, descriptor = await funded(world, coins=1, passphrase="a word or two")
    psbt = await PsbtNode(node).psbt_of(paying(await unspent(node, descriptor)), [descriptor])
    await world.outside.rpc("unloadwallet", wallet.name)
    async with CancellingNode(world.outside, method) as cancelling:
        signer = PayoutWallet(cancelling, wallet.name, passphrase="a word or two")
        signing = asyncio.ensure_future(signer.sign(psbt))
        cancelling.aim_at(signing)
        with pytest.raises(asyncio.CancelledError):
            await signing
    # Refused while it is open, or on its way to be.
    await world.outside.rpc("loadwallet", wallet.name)


async def test_what_is_no_wallet_is_not_opened(world: RegtestWorld, node: Bitcoind) -> None:
    _, descriptor = await funded(world, coins=1)
    psbt = await PsbtNode(node).psbt_of(paying(await unspent(node, descriptor)), [descriptor])
    folder = world.outside.folder / "regtest" / "wallets" / "garbage"
    folder.mkdir()
    (folder / "wallet.dat").write_bytes(b"garbage" * 1_000)
    with pytest.raises(WalletNotLoaded, match="not in recognized format"):
        await PayoutWallet(node, "garbage").sign(psbt)


async def test_a_wallet_left_open_is_closed_at_the_start(world: RegtestWorld, node: Bitcoind) -> None:
    wallet, _ = await funded(world, coins=1)
    assert await PayoutWallet(node, wallet.name).unload_if_left()
    assert wallet.name not in await open_wallets(world)
    assert not await PayoutWallet(node, wallet.name).unload_if_left()


async def test_single_indexes_and_fixed_descriptors_are_scanned(world: RegtestWorld, node: Bitcoind) -> None:
    _, descriptor = await funded(world, coins=3)
    text = descriptor.descriptor
    assert len(await unspent(node, DescriptorRange(text, 1, 1), DescriptorRange(text, 2, 2))) == 2
    assert len((await PsbtNode(node).scan_unspent([(text, 0)])).outputs) == 1
    address = (await world.outside.rpc("deriveaddresses", text, [1, 1]))[0]
    fixed = (await world.outside.rpc("getdescriptorinfo", f"addr({address})"))["descriptor"]
    (coin,) = await unspent(node, DescriptorRange(fixed, HIGHEST))
    assert coin.amount_sat == COIN_SAT


async def test_a_scan_of_somebody_else_is_said_and_left_alone(world: RegtestWorld, node: Bitcoind) -> None:
    _, descriptor = await funded(world, coins=1)
    wide = [{"desc": descriptor.descriptor, "range": [0, 20_000]}]
    theirs = asyncio.ensure_future(world.outside.rpc("scantxoutset", "start", wide))

    async def running() -> bool:
        return await world.outside.rpc("scantxoutset", "status") is not None

    await wait_until(running, "their scan to begin")
    with pytest.raises(NodeUnavailable, match="scanning its unspent outputs for somebody else"):
        await unspent(node, descriptor)
    assert (await theirs)["success"]
    assert len(await unspent(node, descriptor)) == 1


class PrunedRpc(BitcoindRpc):
    """A node that has the chain's unspent outputs, and no longer the blocks."""

    async def batch(self, calls: Sequence[Call], *, answer: type[T]) -> list[T | NodeRefused]:
        if calls[0][0] == "getrawtransaction":
            return [NodeRefused("getrawtransaction", -1, "Block not available (pruned data)") for _ in calls]
        return await super().batch(calls, answer=answer)


class PrunedNode(Bitcoind):
    def __init__(self, node: RegtestNode) -> None:
        super().__init__(node.rpc_url, cookie_file=node.cookie_path)
        self._rpc = PrunedRpc(node.rpc_url, cookie_file=node.cookie_path)


async def test_a_pruned_node_proves_segwit_coins_only(world: RegtestWorld, node: Bitcoind) -> None:
    _, segwit = await funded(world, "sh(wpkh", coins=1)
    _, legacy = await funded(world, "pkh", coins=1)
    (nested,), (old,) = await unspent(node, segwit), await unspent(node, legacy)
    async with PrunedNode(world.outside) as pruned:
        psbt = await PsbtNode(pruned).psbt_of(paying([nested]), [segwit])
        assert await PsbtNode(pruned).vsize_vbytes(psbt) > 0
        with pytest.raises(PreviousTransactionMissing, match="use a segwit wallet") as missing:
            await PsbtNode(pruned).psbt_of(paying([nested, old]), [segwit, legacy])
    assert missing.value.outpoints == (old.outpoint,)
