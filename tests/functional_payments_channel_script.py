"""Payment channels on a real node: what a script lets pass, and what a block may not hold whoever mines it.

The node is the judge of every transaction here; `testmempoolaccept` says what it relays, `generateblock` what
consensus allows.
"""

from collections.abc import Sequence
from itertools import count

import pytest
from bitcoin.core import COutPoint, CTransaction, CTxIn, CTxInWitness, CTxOut, CTxWitness, Hash160, lx
from bitcoin.core.script import SIGVERSION_WITNESS_V0, CScript, CScriptWitness, SignatureHash
from coincurve import PrivateKey

from payments.channel_close import (
    CHANNELS_PER_CLOSE_MAX,
    Claim,
    CloseTransaction,
    close_transaction,
    refund_transaction,
)
from payments.channel_keys import public_bytes, sign, verified_der
from payments.channel_script import Channel, Contract, parse_backup_line
from payments.money import Sat
from payments.outputs import OutPoint
from payments.segwit_address import address_of, script_pubkey_of
from regtest.errors import RpcRefused
from regtest.node import btc, sat
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.channel_parts import P2PKH, P2TR, P2WPKH, P2WSH, claim, contract, key

CAPACITY_SAT, CLOSE_FEE_SAT = 20_000, 1_000
DRAINED_SAT = CAPACITY_SAT - CLOSE_FEE_SAT
FAR = 5_000
"""Blocks that no test here mines."""
secrets = count(1_000)


async def height(world: RegtestWorld) -> int:
    return int(await world.outside.rpc("getblockcount"))


async def agree(
    world: RegtestWorld,
    *,
    payer: PrivateKey,
    blocks: int = FAR,
    change: bytes = P2WPKH,
    close_fee_sat: int = CLOSE_FEE_SAT,
) -> tuple[Contract, PrivateKey]:
    """A contract that expires in so many blocks, with the payee's key."""
    payee = key(next(secrets))
    expiry_height = await height(world) + blocks
    agreed = contract(
        payer=payer, payee=payee, expiry_height=expiry_height, change=change, close_fee_sat=close_fee_sat
    )
    return agreed.checked(), payee


async def fund(
    world: RegtestWorld, contracts: Sequence[Contract], *, capacity_sat: int = CAPACITY_SAT, mine: bool = True
) -> list[Channel]:
    """One deposit under each of these contracts, all by one transaction of the miner's wallet."""
    addresses = [address_of(one.script_pubkey, "regtest") for one in contracts]
    sent = await OutsideWallet(world.outside, MINER).pay([(address, capacity_sat) for address in addresses])
    if mine:
        await world.mine()
    outputs = (await world.outside.rpc("decoderawtransaction", sent.raw))["vout"]
    vouts = {output["scriptPubKey"]["hex"]: output["n"] for output in outputs}
    return [
        Channel(one, OutPoint(sent.txid, vouts[one.script_pubkey.hex()]), Sat(capacity_sat))
        for one in contracts
    ]


async def opened(
    world: RegtestWorld, paid_sat: int, *, blocks: int = FAR, change: bytes = P2WPKH
) -> tuple[Claim, PrivateKey]:
    """What a payee holds of a new channel in which so much was paid, and the payer's key."""
    payer = key(next(secrets))
    agreed, payee = await agree(world, payer=payer, blocks=blocks, change=change)
    (on,) = await fund(world, [agreed])
    return claim(on, paid_sat, payer=payer, payee=payee), payer


async def verdict(world: RegtestWorld, raw: bytes) -> str:
    """Why the node does not relay it; "allowed" if it does."""
    (answer,) = await world.outside.rpc("testmempoolaccept", [raw.hex()], 0)
    # Lower case: Bitcoin Core says "TRUC-violation", Knots "truc-child-toobig" and the like.
    return "allowed" if answer["allowed"] else str(answer["reject-reason"]).lower()


async def block_verdict(world: RegtestWorld, raw: bytes) -> str:
    """Why no block may hold it, whoever mines it."""
    with pytest.raises(RpcRefused) as refused:
        await world.outside.rpc("generateblock", await world.new_miner_address(), [raw.hex()])
    return str(refused.value)


async def confirm(world: RegtestWorld, raw: bytes) -> str:
    """Send it, mine it; its txid."""
    txid = str(await world.outside.rpc("sendrawtransaction", raw.hex(), 0))
    await world.mine()
    mined = await world.outside.rpc("getblock", await world.outside.rpc("getbestblockhash"), 1)
    assert txid in mined["tx"]
    return txid


async def outputs_of(world: RegtestWorld, raw: bytes) -> list[tuple[str, int]]:
    decoded = await world.outside.rpc("decoderawtransaction", raw.hex())
    return [(output["scriptPubKey"]["hex"], sat(output["value"])) for output in decoded["vout"]]


def retold(close: CloseTransaction, on: Claim, outputs: Sequence[tuple[bytes, int]]) -> bytes:
    """The close of one channel with other outputs: signed anew by the payee, not by the payer."""
    script = on.channel.contract.witness_script
    spent = [CTxIn(_prevout(on.channel.outpoint), nSequence=0xFFFFFFFD)]
    paid = [CTxOut(amount_sat, CScript(script_pubkey)) for script_pubkey, amount_sat in outputs]
    payer = CTransaction.deserialize(close.raw).wit.vtxinwit[0].scriptWitness.stack[1]
    signature = _signature(on.payee, CTransaction(spent, paid, 0, 3), script, on.channel.capacity_sat)
    return _with_witness(spent, paid, 3, [signature, payer, script])


def _signature(signer: PrivateKey, unsigned: CTransaction, script: bytes, amount_sat: int) -> bytes:
    digest = SignatureHash(CScript(script), unsigned, 0, 1, amount_sat, SIGVERSION_WITNESS_V0)
    return verified_der(signer.public_key, digest, sign(signer, digest)) + b"\x01"


def _with_witness(
    spent: Sequence[CTxIn], paid: Sequence[CTxOut], version: int, stack: Sequence[bytes]
) -> bytes:
    witness = CTxWitness([CTxInWitness(CScriptWitness(stack))])
    return bytes(CTransaction(spent, paid, 0, version, witness).serialize())


def _prevout(outpoint: OutPoint) -> COutPoint:
    return COutPoint(lx(outpoint.txid), outpoint.vout)


# The script


@pytest.mark.parametrize(
    "expiry_height",
    [1, 16, 17, 127, 128, 255, 256, 32_767, 32_768, 900_000, 8_388_607, 8_388_608, 499_999_999],
)
async def test_the_script_is_the_nodes_miniscript(world: RegtestWorld, expiry_height: int) -> None:
    payer = key(next(secrets))
    agreed = contract(payer=payer, payee=key(next(secrets)), expiry_height=expiry_height)
    address = address_of(agreed.script_pubkey, "regtest")
    assert await world.outside.rpc("deriveaddresses", agreed.descriptor) == [address]
    known = await world.outside.rpc("validateaddress", address)
    assert known["scriptPubKey"] == agreed.script_pubkey.hex()
    assert script_pubkey_of(address, "regtest") == agreed.script_pubkey

    line = agreed.backup_line(payer, "regtest")
    described = await world.outside.rpc("getdescriptorinfo", line)
    assert described["descriptor"] == agreed.descriptor
    assert described["checksum"] == line[-8:]
    assert described["hasprivatekeys"]
    assert described["issolvable"]


async def test_no_wallet_takes_one_key_for_both(world: RegtestWorld) -> None:
    """Why a contract whose payer has the payee's key is refused."""
    twice = contract(payer=key(5), payee=key(5)).descriptor
    with pytest.raises(RpcRefused, match="duplicate"):
        await world.outside.rpc("deriveaddresses", twice)


@pytest.mark.parametrize("change", [P2WPKH, P2WSH, P2TR], ids=["P2WPKH", "P2WSH", "P2TR"])
async def test_the_least_change_is_relayed(world: RegtestWorld, change: bytes) -> None:
    one, _ = await opened(world, DRAINED_SAT - 330, change=change)
    close = close_transaction([one], P2TR, feerate_sat_kvb=1_000)
    assert await verdict(world, close.raw) == "allowed"
    less = retold(close, one, [(change, 293), (P2TR, 1_000)])
    assert "dust" in await verdict(world, less)


# Closes


async def test_a_channel_is_closed_with_its_last_voucher(world: RegtestWorld) -> None:
    one, _ = await opened(world, 5_000)
    close = close_transaction([one], P2TR, feerate_sat_kvb=2_000)
    (answer,) = await world.outside.rpc("testmempoolaccept", [close.raw.hex()])
    assert answer["allowed"]
    assert close.vbytes - 2 <= answer["vsize"] <= close.vbytes
    assert sat(answer["fees"]["base"]) == close.fee_sat
    assert await confirm(world, close.raw) == close.txid
    # The payer pays the whole close fee, whatever of it the network took.
    assert await outputs_of(world, close.raw) == [
        (P2WPKH.hex(), CAPACITY_SAT - 5_000 - CLOSE_FEE_SAT),
        (P2TR.hex(), 5_000 + CLOSE_FEE_SAT - close.fee_sat),
    ]


async def test_a_cooperative_close_gives_back_what_the_fee_does_not_take(world: RegtestWorld) -> None:
    one, payer = await opened(world, 5_000)
    agreed = claim(one.channel, 5_000, fee_sat=182, payer=payer, payee=one.payee)
    close = close_transaction([agreed], P2TR, feerate_sat_kvb=1_000)
    await confirm(world, close.raw)
    assert await outputs_of(world, close.raw) == [
        (P2WPKH.hex(), CAPACITY_SAT - 5_182),
        (P2TR.hex(), 5_000),
    ]


async def test_a_drained_channel_is_closed_without_change(world: RegtestWorld) -> None:
    one, _ = await opened(world, DRAINED_SAT)
    close = close_transaction([one], P2WPKH, feerate_sat_kvb=1_000)
    await confirm(world, close.raw)
    assert await outputs_of(world, close.raw) == [(P2WPKH.hex(), CAPACITY_SAT - close.fee_sat)]


async def test_a_payee_who_earned_dust_leaves_it_to_the_network(world: RegtestWorld) -> None:
    payer = key(next(secrets))
    agreed, payee = await agree(world, payer=payer, close_fee_sat=300)
    (on,) = await fund(world, [agreed])
    close = close_transaction([claim(on, 10, payer=payer, payee=payee)], P2TR, feerate_sat_kvb=1_000)
    assert close.payee_vout is None
    await confirm(world, close.raw)
    assert await outputs_of(world, close.raw) == [(P2WPKH.hex(), CAPACITY_SAT - 310)]


async def test_ten_channels_are_closed_in_one_transaction(world: RegtestWorld) -> None:
    """Each payer signed for the output of the input's own number, drained channels in between or not."""
    payers = [key(next(secrets)) for _ in range(10)]
    made = [
        await agree(world, payer=payer, change=[P2WPKH, P2WSH, P2TR][n % 3]) for n, payer in enumerate(payers)
    ]
    channels = await fund(world, [agreed for agreed, _ in made])
    paid = [DRAINED_SAT if n in (0, 4, 5, 8) else 1_000 * n for n in range(10)]
    claims = [
        claim(on, paid_sat, payer=payer, payee=payee)
        for on, paid_sat, payer, (_, payee) in zip(channels, paid, payers, made, strict=True)
    ]
    close = close_transaction(claims, P2TR, feerate_sat_kvb=3_000)
    (answer,) = await world.outside.rpc("testmempoolaccept", [close.raw.hex()])
    assert answer["allowed"], answer
    assert close.vbytes - 10 <= answer["vsize"] <= close.vbytes
    await confirm(world, close.raw)
    with_change = [n for n, paid_sat in enumerate(paid) if paid_sat != DRAINED_SAT]
    assert (await outputs_of(world, close.raw))[:-1] == [
        (channels[n].contract.change_script_pubkey.hex(), DRAINED_SAT - paid[n]) for n in with_change
    ]
    assert sum(close.received_sat) == sum(paid) + 10 * CLOSE_FEE_SAT - close.fee_sat


async def test_the_largest_close_is_relayed(world: RegtestWorld) -> None:
    payer = key(next(secrets))
    made = [await agree(world, payer=payer, change=P2TR) for _ in range(CHANNELS_PER_CLOSE_MAX)]
    channels = await fund(world, [agreed for agreed, _ in made])
    claims = [
        claim(on, 5_000, payer=payer, payee=payee) for on, (_, payee) in zip(channels, made, strict=True)
    ]
    close = close_transaction(claims, P2TR, feerate_sat_kvb=1_000)
    assert await verdict(world, close.raw) == "allowed"


async def test_two_deposits_of_one_contract_are_two_channels(world: RegtestWorld) -> None:
    payer = key(next(secrets))
    agreed, payee = await agree(world, payer=payer)
    channels = [*await fund(world, [agreed]), *await fund(world, [agreed], capacity_sat=7_000)]
    first, second = (claim(on, 100, payer=payer, payee=payee) for on in channels)
    assert first.signature != second.signature
    close = close_transaction([first, second], P2WPKH, feerate_sat_kvb=1_000)
    await confirm(world, close.raw)
    assert await outputs_of(world, close.raw) == [
        (P2WPKH.hex(), CAPACITY_SAT - 1_100),
        (P2WPKH.hex(), 7_000 - 1_100),
        (P2WPKH.hex(), 2_200 - close.fee_sat),
    ]


# What the payee cannot do


async def test_a_payee_takes_no_more_than_was_signed(world: RegtestWorld) -> None:
    one, _ = await opened(world, 5_000)
    close = close_transaction([one], P2TR, feerate_sat_kvb=2_000)
    change, payee = await outputs_of(world, close.raw)
    honest = [(P2WPKH, change[1]), (P2TR, payee[1])]
    assert await verdict(world, retold(close, one, honest)) == "allowed"
    for outputs in (
        [(P2WPKH, change[1] - 1_000), (P2TR, payee[1] + 1_000)],
        [(P2WSH, change[1]), (P2TR, payee[1])],
        [(P2TR, payee[1]), (P2WPKH, change[1])],
        [(P2TR, payee[1])],
    ):
        greedy = retold(close, one, outputs)
        assert "script-verify-flag-failed" in await verdict(world, greedy)
        assert "script-verify-flag-failed" in await block_verdict(world, greedy)
    # What is the payee's own goes where it likes.
    elsewhere = [(P2WPKH, change[1]), (P2PKH, 1_000), (P2WSH, payee[1] - 1_100)]
    assert await verdict(world, retold(close, one, elsewhere)) == "allowed"


@pytest.mark.parametrize("forged", ["empty", "the payee's own", "another state's"])
async def test_a_payee_takes_nothing_without_the_payers_signature(world: RegtestWorld, forged: str) -> None:
    one, payer = await opened(world, 5_000)
    close = close_transaction([one], P2TR, feerate_sat_kvb=2_000)
    transaction = CTransaction.deserialize(close.raw)
    payee, _, script = transaction.wit.vtxinwit[0].scriptWitness.stack
    signature = {
        "empty": b"",
        "the payee's own": payee,
        "another state's": one.channel.verify(4_000, one.channel.sign(payer, 4_000)),
    }[forged]
    raw = _with_witness(transaction.vin, transaction.vout, 3, [payee, signature, script])
    assert "script-verify-flag-failed" in await verdict(world, raw)
    assert "script-verify-flag-failed" in await block_verdict(world, raw)


async def test_a_close_of_another_version_is_not_what_was_signed(world: RegtestWorld) -> None:
    one, _ = await opened(world, 5_000)
    close = close_transaction([one], P2TR, feerate_sat_kvb=2_000)
    assert close.raw[:4] == b"\x03\0\0\0"
    assert "script-verify-flag-failed" in await verdict(world, b"\x02" + close.raw[1:])


# Fees, and who may get in the way (BIP431)


async def test_a_close_waits_for_the_block_of_its_deposit(world: RegtestWorld) -> None:
    """A version 3 transaction spends no unconfirmed output of another version."""
    payer = key(next(secrets))
    agreed, payee = await agree(world, payer=payer)
    (on,) = await fund(world, [agreed], mine=False)
    close = close_transaction([claim(on, 100, payer=payer, payee=payee)], P2TR, feerate_sat_kvb=1_000)
    assert "truc" in await verdict(world, close.raw)
    await world.mine()
    assert await verdict(world, close.raw) == "allowed"


async def test_the_payee_alone_bumps_a_close(world: RegtestWorld) -> None:
    one, _ = await opened(world, 5_000)
    first = close_transaction([one], P2TR, feerate_sat_kvb=1_000)
    await world.outside.rpc("sendrawtransaction", first.raw.hex())
    dearer = close_transaction([one], P2WPKH, feerate_sat_kvb=5_000)
    await confirm(world, dearer.raw)
    assert dearer.fee_sat == 5 * 170


def child(
    close: CloseTransaction, owner: PrivateKey, *, vout: int, value_sat: int, outputs: int, version: int
) -> tuple[bytes, int]:
    """A transaction that spends the payer's change into so many outputs at about 1 sat/vB; its fee."""
    script = CScript(b"\x76\xa9\x14" + Hash160(public_bytes(owner)) + b"\x88\xac")
    spent = [CTxIn(_prevout(OutPoint(close.txid, vout)), nSequence=0xFFFFFFFD)]
    fee_sat = 80 + 31 * outputs
    paid = [CTxOut(300, CScript(P2WPKH)) for _ in range(outputs - 1)]
    paid.append(CTxOut(value_sat - fee_sat - 300 * (outputs - 1), CScript(P2WPKH)))
    signature = _signature(owner, CTransaction(spent, paid, 0, version), script, value_sat)
    return _with_witness(spent, paid, version, [signature, public_bytes(owner)]), fee_sat


async def test_a_payer_cannot_pin_a_close(world: RegtestWorld) -> None:
    """One small child of the change is all a payer may hang on it, so that outbidding it costs little."""
    owner = key(next(secrets))
    change = b"\x00\x14" + Hash160(public_bytes(owner))
    payers = [key(next(secrets)), key(next(secrets))]
    made = [await agree(world, payer=payer, change=change) for payer in payers]
    channels = await fund(world, [agreed for agreed, _ in made])
    claims = [
        claim(on, 5_000, payer=payer, payee=payee)
        for on, payer, (_, payee) in zip(channels, payers, made, strict=True)
    ]
    close = close_transaction(claims, P2TR, feerate_sat_kvb=1_000)
    await world.outside.rpc("sendrawtransaction", close.raw.hex())
    value_sat = claims[0].change_sat

    large, _ = child(close, owner, vout=0, value_sat=value_sat, outputs=31, version=3)
    assert "truc" in await verdict(world, large)
    other, _ = child(close, owner, vout=0, value_sat=value_sat, outputs=2, version=2)
    assert "truc" in await verdict(world, other)
    pin, pin_fee_sat = child(close, owner, vout=0, value_sat=value_sat, outputs=29, version=3)
    (answer,) = await world.outside.rpc("testmempoolaccept", [pin.hex()])
    assert answer["allowed"], answer
    assert 950 <= answer["vsize"] <= 1_000
    await world.outside.rpc("sendrawtransaction", pin.hex())
    # A second payer adds nothing to it: there is room for one child in all, who pays more takes its place.
    second, _ = child(close, owner, vout=1, value_sat=value_sat, outputs=2, version=3)
    assert "sibling eviction" in await verdict(world, second)

    # BIP125: what is replaced, and as much again for the relay of the new one. About 1,300 sat more, no more.
    needed_sat = close.fee_sat + pin_fee_sat + close.vbytes
    short = close_transaction(claims, P2TR, feerate_sat_kvb=(needed_sat - 60) * 1_000 // close.vbytes)
    assert "insufficient fee" in await verdict(world, short.raw)
    enough = close_transaction(claims, P2TR, feerate_sat_kvb=-(-needed_sat * 1_000 // close.vbytes))
    assert enough.fee_sat - close.fee_sat < 1_400
    await confirm(world, enough.raw)


# Refunds


async def test_a_deposit_is_refunded_after_expiry_and_not_a_block_before(world: RegtestWorld) -> None:
    one, payer = await opened(world, 5_000, blocks=6)
    on = one.channel
    expiry_height = on.contract.expiry_height
    refund = refund_transaction(on, payer, P2PKH, feerate_sat_kvb=2_000)
    await world.mine(expiry_height - 1 - await height(world))
    assert await verdict(world, refund) == "non-final"
    assert "bad-txns-nonfinal" in await block_verdict(world, refund)

    early = Channel(
        contract(
            payer=payer,
            payee=one.payee,
            expiry_height=expiry_height - 1,
        ),
        on.outpoint,
        on.capacity_sat,
    )
    # Its script has another hash; and with the right script, the node says that the locktime is too low.
    assert "script-verify-flag-failed" in await verdict(
        world, refund_transaction(early, payer, P2PKH, feerate_sat_kvb=2_000)
    )
    sooner = CTransaction.deserialize(refund)
    script = on.contract.witness_script
    unsigned = CTransaction(sooner.vin, sooner.vout, expiry_height - 2, 2)
    witness = CTxWitness(
        [CTxInWitness(CScriptWitness([b"", _signature(payer, unsigned, script, CAPACITY_SAT), script]))]
    )
    raw = bytes(CTransaction(sooner.vin, sooner.vout, expiry_height - 2, 2, witness).serialize())
    assert "locktime requirement not satisfied" in await verdict(world, raw)
    assert "script-verify-flag-failed" in await block_verdict(world, raw)

    await world.mine()
    assert await height(world) == expiry_height
    await confirm(world, refund)
    ((script_pubkey, amount_sat),) = await outputs_of(world, refund)
    assert script_pubkey == P2PKH.hex()
    assert CAPACITY_SAT - 500 < amount_sat < CAPACITY_SAT


async def test_after_expiry_the_payee_may_still_close(world: RegtestWorld) -> None:
    one, payer = await opened(world, 5_000, blocks=2)
    await world.mine(2)
    refund = refund_transaction(one.channel, payer, P2WPKH, feerate_sat_kvb=1_000)
    await world.outside.rpc("sendrawtransaction", refund.hex())
    # Whoever pays the network more is mined: why the payee closes long before.
    close = close_transaction([one], P2TR, feerate_sat_kvb=5_000)
    await confirm(world, close.raw)


async def test_a_wallet_takes_a_deposit_back_with_the_backup_line_alone(world: RegtestWorld) -> None:
    one, payer = await opened(world, 5_000, blocks=3)
    on = one.channel
    line = on.contract.backup_line(payer, "regtest")
    await world.mine(3)

    wallet = OutsideWallet(world.outside, f"restored {next(secrets)}")
    await world.outside.rpc("createwallet", wallet_name=wallet.name, blank=True, load_on_startup=False)
    (imported,) = await wallet.rpc("importdescriptors", [{"desc": line, "timestamp": 0}])
    assert imported["success"], imported
    (coin,) = await wallet.rpc("listunspent")
    assert (coin["txid"], coin["vout"], sat(coin["amount"])) == (*on.outpoint, CAPACITY_SAT)

    home = address_of(P2WPKH, "regtest")
    psbt = await wallet.rpc(
        "walletcreatefundedpsbt",
        [{"txid": coin["txid"], "vout": coin["vout"], "sequence": 0xFFFFFFFD}],
        [{home: btc(CAPACITY_SAT)}],
        on.contract.expiry_height,
        {"subtractFeeFromOutputs": [0], "fee_rate": 2, "add_inputs": False},
    )
    signed = await wallet.rpc("walletprocesspsbt", psbt["psbt"])
    final = await world.outside.rpc("finalizepsbt", signed["psbt"])
    assert final["complete"]
    await confirm(world, bytes.fromhex(final["hex"]))
    ((script_pubkey, amount_sat),) = await outputs_of(world, bytes.fromhex(final["hex"]))
    assert script_pubkey == P2WPKH.hex()
    assert amount_sat > CAPACITY_SAT - 500
    await world.outside.rpc("unloadwallet", wallet.name)


async def test_a_backup_line_says_which_deposits_are_its_own(world: RegtestWorld) -> None:
    payer = key(next(secrets))
    agreed, _ = await agree(world, payer=payer)
    backup = parse_backup_line(agreed.backup_line(payer, "regtest"), "regtest")
    derived = await world.outside.rpc("deriveaddresses", agreed.descriptor)
    assert derived == [address_of(backup.contract.script_pubkey, "regtest")]
