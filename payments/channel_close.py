"""What ends channels: the payee's close, of one channel or many, and the payer's refund. Pure.

    close     inputs of channels with change first, each paired with its change output; then drained channels;
              last output: the payee's
    refund    the deposit less the fee to the payer, nLockTime = EXPIRY

Each payer signed their own input and change, whatever else the transaction has: that is why one transaction
closes many channels. What the network's fee takes is shared in proportion to what each channel brings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from bitcoin.core import (
    COutPoint,
    CTransaction,
    CTxIn,
    CTxInWitness,
    CTxOut,
    CTxWitness,
    b2lx,
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
from payments.channel_script import (
    SEQUENCE,
    SIGHASH_ALL,
    SIGHASH_NONE_ANYONECANPAY,
    VERSION,
    Channel,
)
from payments.money import NOTHING_SAT, Sat
from payments.outputs import OutPoint
from payments.payout_transaction import dust_sat

CLOSE_VBYTES = 184
"""Of the close of one channel to a P2TR output: what the close fee is reserved for."""
CLOSE_VBYTES_PER_CHANNEL = 129
"""What one more channel adds to a close."""
CHANNELS_PER_CLOSE_MAX = 70
"""A version 3 transaction has at most 10,000 vB (BIP431)."""
SIGNATURE_DER_BYTES_MAX = 72
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
    ordered = sorted(claims, key=lambda claim: claim.change_sat == 0)
    signatures = [claim.channel.verify(claim.paid_sat, claim.signature, claim.fee_sat) for claim in ordered]
    assert all(
        (s[-1] == SIGHASH_NONE_ANYONECANPAY) == (c.change_sat == 0)
        for s, c in zip(signatures, ordered, strict=True)
    )
    change = [
        CTxOut(claim.change_sat, CScript(claim.channel.contract.change_script_pubkey))
        for claim in ordered
        if claim.change_sat
    ]
    brings_sat = sum(claim.brings_sat for claim in ordered)
    with_output = _vbytes(ordered, [*change, CTxOut(0, CScript(payee_script_pubkey))])
    fee_sat = ceil(with_output * feerate_sat_kvb / 1_000)
    payee_sat = brings_sat - fee_sat
    outputs = [*change, CTxOut(payee_sat, CScript(payee_script_pubkey))]
    if payee_sat < dust_sat(payee_script_pubkey):
        # All of it to the network then: the payers' change still arrives.
        fee_min_sat = ceil(_vbytes(ordered, change) * feerate_sat_kvb / 1_000) if change else fee_sat
        if brings_sat < fee_min_sat or not change:
            raise CloseUneconomic(brings_sat=Sat(brings_sat), fee_sat=Sat(fee_sat))
        payee_sat, fee_sat, outputs = 0, brings_sat, change
    raw = _signed(ordered, signatures, outputs)
    return CloseTransaction(
        raw=raw,
        txid=b2lx(CTransaction.deserialize(raw).GetTxid()),
        vbytes=_vbytes(ordered, outputs),
        fee_sat=Sat(fee_sat),
        payee_vout=len(change) if payee_sat else None,
        payee_sat=Sat(payee_sat),
        received_sat=shared_out(Sat(payee_sat), [claim.brings_sat for claim in claims]),
    )


def shared_out(amount_sat: Sat, brings_sat: Sequence[Sat]) -> tuple[Sat, ...]:
    """An amount in proportion to what each brings; the sats that do not divide go to the first ones."""
    total = sum(brings_sat)
    if not total:
        return tuple(NOTHING_SAT for _ in brings_sat)
    shares = [amount_sat * one // total for one in brings_sat]
    for n in range(amount_sat - sum(shares)):
        shares[n] += 1
    return tuple(map(Sat, shares))


def refund_transaction(
    channel: Channel, payer: PrivateKey, script_pubkey: bytes, *, feerate_sat_kvb: int
) -> bytes:
    """The signed transaction by which the payer takes the deposit back; no node takes it before EXPIRY.

    Raises RefundTooSmall.
    """
    expiry, script = channel.contract.expiry_height, CScript(channel.contract.witness_script)

    def built(amount_sat: int, signature: bytes) -> CTransaction:
        witness = CScriptWitness([b"", signature, script])
        return CTransaction(
            [CTxIn(_prevout(channel.outpoint), nSequence=SEQUENCE)],
            [CTxOut(amount_sat, CScript(script_pubkey))],
            expiry,
            REFUND_VERSION,
            CTxWitness([CTxInWitness(witness)]),
        )

    vbytes = _transaction_vbytes(built(0, bytes(SIGNATURE_DER_BYTES_MAX)))
    amount_sat = channel.capacity_sat - ceil(vbytes * feerate_sat_kvb / 1_000)
    if amount_sat < dust_sat(script_pubkey):
        raise RefundTooSmall(
            f"The fee of the refund would leave {max(0, amount_sat)} sat, too little to send. Choose a lower "
            "feerate."
        )
    digest = SignatureHash(
        script, built(amount_sat, b""), 0, SIGHASH_ALL, channel.capacity_sat, SIGVERSION_WITNESS_V0
    )
    signature = payer.sign(digest, hasher=None) + bytes([SIGHASH_ALL])
    return bytes(built(amount_sat, signature).serialize())


def check_refund(raw: bytes, channel: Channel) -> None:
    """Raises RefundRefused unless this spends the channel's deposit and nothing else."""
    try:
        transaction = CTransaction.deserialize(raw)
    except Exception as exc:  # the library raises what its parts raise
        raise RefundRefused("That is no transaction.") from exc
    spent = [OutPoint(b2lx(i.prevout.hash), i.prevout.n) for i in transaction.vin]
    if spent != [channel.outpoint]:
        raise RefundRefused(f"A refund spends the deposit {channel.id}, and nothing else.")


def _signed(claims: Sequence[Claim], payers: Sequence[bytes], outputs: Sequence[CTxOut]) -> bytes:
    unsigned = _transaction(claims, outputs, [(b"", payer) for payer in payers])
    signatures = []
    for n, claim in enumerate(claims):
        script = CScript(claim.channel.contract.witness_script)
        assert public_bytes(claim.payee) == claim.channel.contract.payee_key
        digest = SignatureHash(
            script, unsigned, n, SIGHASH_ALL, claim.channel.capacity_sat, SIGVERSION_WITNESS_V0
        )
        signatures.append(claim.payee.sign(digest, hasher=None) + bytes([SIGHASH_ALL]))
    return bytes(_transaction(claims, outputs, list(zip(signatures, payers, strict=True))).serialize())


def _transaction(
    claims: Sequence[Claim], outputs: Sequence[CTxOut], signatures: Sequence[tuple[bytes, bytes]]
) -> CTransaction:
    return CTransaction(
        [CTxIn(_prevout(claim.channel.outpoint), nSequence=SEQUENCE) for claim in claims],
        outputs,
        0,
        VERSION,
        CTxWitness(
            [
                CTxInWitness(CScriptWitness([payee, payer, CScript(claim.channel.contract.witness_script)]))
                for claim, (payee, payer) in zip(claims, signatures, strict=True)
            ]
        ),
    )


def _vbytes(claims: Sequence[Claim], outputs: Sequence[CTxOut]) -> int:
    """With signatures of the greatest length: the real ones are at most a byte shorter."""
    longest = bytes(SIGNATURE_DER_BYTES_MAX)
    return _transaction_vbytes(_transaction(claims, outputs, [(longest, longest)] * len(claims)))


def _transaction_vbytes(transaction: CTransaction) -> int:
    """BIP141."""
    whole = len(transaction.serialize())
    stripped = len(
        CTransaction(
            transaction.vin, transaction.vout, transaction.nLockTime, transaction.nVersion
        ).serialize()
    )
    return (stripped * 3 + whole + 3) // 4


def _prevout(outpoint: OutPoint) -> COutPoint:
    return COutPoint(lx(outpoint.txid), outpoint.vout)
