"""What ends channels: the payee's close, of one channel or many, and the payer's refund. Pure.

    close     inputs of channels with change first, each paired with its change output; then drained channels;
              last output: the payee's
    refund    the deposit less the fee to the payer, nLockTime = EXPIRY

Each payer signed their own input and change, whatever else the transaction has: that is why one transaction
closes many channels. What the network's fee takes is shared in proportion to what each channel brings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bitcoin.core import (
    COutPoint,
    CTransaction,
    CTxIn,
    CTxInWitness,
    CTxOut,
    CTxWitness,
    lx,
)
from bitcoin.core.script import (
    SIGVERSION_WITNESS_V0,
    CScript,
    CScriptWitness,
    SignatureHash,
)
from coincurve import PrivateKey

from payments.channel_errors import CloseUneconomic, RefundRefused, RefundTooSmall
from payments.channel_keys import public_bytes
from payments.channel_script import SEQUENCE, SIGHASH_ALL, VERSION, Channel
from payments.errors import TransactionMalformed
from payments.money import NOTHING_SAT, Sat
from payments.payout import fee_of
from payments.payout_transaction import dust_sat, txid_of
from payments.transaction import parse_transaction

CLOSE_VBYTES = 194
"""Of the close of one channel with change and output both P2TR or P2WSH, the longest: what the close fee is
reserved for. With both P2WPKH it has 170."""
SCRIPT_BYTES_LONGEST = 34
"""Of such an output: P2TR or P2WSH."""
CLOSE_VBYTES_PER_CHANNEL = 141
"""What one more channel with such change adds to a close; with change to P2WPKH 129, drained 98."""
CHANNELS_PER_CLOSE_MAX = 70
"""A version 3 transaction has at most 10,000 vB (BIP431): CLOSE_VBYTES and 69 times the above are 9,923."""
SIGNATURE_BYTES_MAX = 72
"""In a witness: DER with a low S, and the sighash."""
REFUND_VERSION = 2


@dataclass(frozen=True, slots=True)
class Claim:
    """What one channel brings to its close: the payer's signature, and the payee's key."""

    channel: Channel
    paid_sat: Sat
    signature: bytes
    """The payer's, compact, over this paid amount (and fee)."""
    payee: PrivateKey
    fee_sat: Sat | None = None
    """Agreed with the payer for a cooperative close; None: the contract's close fee."""

    @property
    def change_sat(self) -> Sat:
        return self.channel.state(self.paid_sat, self.fee_sat).change_sat

    @property
    def brings_sat(self) -> Sat:
        """What is neither the payer's change: for the payee and the network."""
        return Sat(self.channel.capacity_sat - self.change_sat)


@dataclass(frozen=True, slots=True)
class CloseTransaction:
    raw: bytes
    txid: str
    vbytes: int
    """With signatures of the greatest length; the real ones may be shorter."""
    fee_sat: Sat
    payee_vout: int | None
    """None: what is left is too small for an output, and goes to the network."""
    payee_sat: Sat
    received_sat: tuple[Sat, ...]
    """What the payee gets for each claim, in the order given; together `payee_sat`."""


def close_transaction(
    claims: Sequence[Claim], payee_script_pubkey: bytes, *, feerate_sat_kvb: int
) -> CloseTransaction:
    """The signed transaction that closes these channels at this feerate.

    The same arguments give the same bytes. Raises CloseUneconomic if they bring less than the fee, or nothing
    could be paid out; SignatureInvalid if a claim's signature does not fit.
    """
    # Stable, and True after False: those with change come first, so that input n signs for output n.
    ordered = sorted(claims, key=lambda claim: claim.change_sat == 0)
    signatures = [claim.channel.verify(claim.paid_sat, claim.signature, claim.fee_sat) for claim in ordered]
    change = [
        CTxOut(claim.change_sat, CScript(claim.channel.contract.change_script_pubkey))
        for claim in ordered
        if claim.change_sat
    ]
    brings_sat = sum(claim.brings_sat for claim in ordered)
    vbytes = _vbytes(ordered, [*change, CTxOut(0, CScript(payee_script_pubkey))])
    network_sat = fee_of(vbytes, feerate_sat_kvb)
    payee_sat = brings_sat - network_sat
    if payee_sat >= dust_sat(payee_script_pubkey):
        outputs = [*change, CTxOut(payee_sat, CScript(payee_script_pubkey))]
    else:
        # All of it to the network then, if there is change at least: a transaction has an output.
        vbytes = _vbytes(ordered, change)
        if not change or brings_sat < fee_of(vbytes, feerate_sat_kvb):
            raise CloseUneconomic(brings_sat=Sat(brings_sat), fee_sat=network_sat)
        payee_sat, network_sat, outputs = 0, Sat(brings_sat), change
    raw = _signed(ordered, signatures, outputs)
    return CloseTransaction(
        raw=raw,
        txid=txid_of(raw),
        vbytes=vbytes,
        fee_sat=network_sat,
        payee_vout=len(change) if payee_sat else None,
        payee_sat=Sat(payee_sat),
        received_sat=shared_out(Sat(payee_sat), [claim.brings_sat for claim in claims]),
    )


def shared_out(amount_sat: Sat, brings_sat: Sequence[Sat]) -> tuple[Sat, ...]:
    """All of an amount, in proportion to what each brings; nothing if nobody brings anything.

    Of an amount that is no more than all bring together, nobody gets more than they brought.
    """
    total, before, shares = sum(brings_sat), 0, []
    for one in brings_sat:
        # Whole sats of the running total: each share is its exact part, rounded up or down.
        after = before + one
        shares.append(Sat(amount_sat * after // total - amount_sat * before // total) if one else NOTHING_SAT)
        before = after
    return tuple(shares)


def close_vbytes_max(channel: Channel) -> int:
    """Of the close of this one channel, whatever output of the payee's it has: its change may be short."""
    return CLOSE_VBYTES - (SCRIPT_BYTES_LONGEST - len(channel.contract.change_script_pubkey))


def refund_transaction(
    channel: Channel, payer: PrivateKey, script_pubkey: bytes, *, feerate_sat_kvb: int
) -> bytes:
    """The signed transaction by which the payer takes the deposit back; no node takes it before EXPIRY.

    Raises RefundTooSmall.
    """
    script = CScript(channel.contract.witness_script)

    def refund(amount_sat: int, signature: bytes) -> CTransaction:
        return CTransaction(
            [CTxIn(_prevout(channel), nSequence=SEQUENCE)],
            [CTxOut(amount_sat, CScript(script_pubkey))],
            channel.contract.expiry_height,
            REFUND_VERSION,
            _witness([[b"", signature, script]]),
        )

    vbytes = _transaction_vbytes(refund(0, bytes(SIGNATURE_BYTES_MAX)))
    amount_sat = channel.capacity_sat - fee_of(vbytes, feerate_sat_kvb)
    if amount_sat < dust_sat(script_pubkey):
        raise RefundTooSmall(
            f"The fee of the refund would leave {max(0, amount_sat)} sat, too little to send. Choose a lower "
            "feerate."
        )
    signature = _signature(payer, refund(amount_sat, b""), 0, channel)
    return bytes(refund(amount_sat, signature).serialize())


def check_refund(raw: bytes, channel: Channel) -> str:
    """Its txid. Raises RefundRefused unless this spends the channel's deposit and nothing else."""
    try:
        transaction = parse_transaction(raw)
    except TransactionMalformed as exc:
        raise RefundRefused(f"That is no transaction: {exc}.") from exc
    if transaction.inputs != (channel.outpoint,):
        raise RefundRefused(f"A refund spends the deposit {channel.id}, and nothing else.")
    return transaction.txid


def _signed(claims: Sequence[Claim], payers: Sequence[bytes], outputs: Sequence[CTxOut]) -> bytes:
    unsigned = _transaction(claims, outputs, [(b"", payer) for payer in payers])
    payees = [_signature(claim.payee, unsigned, n, claim.channel) for n, claim in enumerate(claims)]
    return bytes(_transaction(claims, outputs, list(zip(payees, payers, strict=True))).serialize())


def _transaction(
    claims: Sequence[Claim], outputs: Sequence[CTxOut], signatures: Sequence[tuple[bytes, bytes]]
) -> CTransaction:
    return CTransaction(
        [CTxIn(_prevout(claim.channel), nSequence=SEQUENCE) for claim in claims],
        outputs,
        0,
        VERSION,
        _witness(
            [
                [payee, payer, claim.channel.contract.witness_script]
                for claim, (payee, payer) in zip(claims, signatures, strict=True)
            ]
        ),
    )


def _signature(key: PrivateKey, transaction: CTransaction, index: int, channel: Channel) -> bytes:
    """Of payee or payer, over all of the transaction, as scripts take it: DER, sighash."""
    assert public_bytes(key) in (channel.contract.payee_key, channel.contract.payer_key)
    digest = SignatureHash(
        CScript(channel.contract.witness_script),
        transaction,
        index,
        SIGHASH_ALL,
        channel.capacity_sat,
        SIGVERSION_WITNESS_V0,
    )
    return key.sign(digest, hasher=None) + bytes([SIGHASH_ALL])


def _vbytes(claims: Sequence[Claim], outputs: Sequence[CTxOut]) -> int:
    """With signatures of the greatest length."""
    longest = bytes(SIGNATURE_BYTES_MAX)
    return _transaction_vbytes(_transaction(claims, outputs, [(longest, longest)] * len(claims)))


def _transaction_vbytes(transaction: CTransaction) -> int:
    """BIP141: a quarter of the weight, rounded up."""
    whole = len(transaction.serialize())
    stripped = len(transaction.serialize({"include_witness": False}))
    return (stripped * 3 + whole + 3) // 4


def _witness(stacks: Sequence[Sequence[bytes]]) -> CTxWitness:
    return CTxWitness([CTxInWitness(CScriptWitness(stack)) for stack in stacks])


def _prevout(channel: Channel) -> COutPoint:
    return COutPoint(lx(channel.outpoint.txid), channel.outpoint.vout)
