"""The transaction that pays many at once: its bytes unsigned, and what a signed one changed in them. Pure.

Whoever signs is outside this service, a wallet or a device: the signed transaction is compared with the one
that was asked for, field by field, and only its signatures may be new.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from bitcoin.core import (
    CMutableTransaction,
    CMutableTxIn,
    CMutableTxOut,
    COutPoint,
    CTransaction,
    CTxOut,
    b2lx,
    lx,
)
from bitcoin.core.script import CScript
from bitcoin.core.serialize import SerializationError

from payments.errors import AmountInvalid, TransactionMalformed
from payments.money import MAX_MONEY_SAT, NOTHING_SAT, Sat
from payments.outputs import OutPoint
from payments.transaction import TRANSACTION_BYTES_MAX

VERSION = 2
SEQUENCE_REPLACEABLE = 0xFFFFFFFD
"""BIP125: a higher fee may replace the transaction while it is unconfirmed."""
LOCKTIME = 0
DIFFERENCES_MAX = 20
"""More are counted, not listed: a thousand lines tell no more than twenty."""

# Bitcoin Core's GetDustThreshold in src/policy/policy.cpp, at its default -dustrelayfee of 3 sat/vB.
DUST_FEERATE_SAT_VB = 3
SPENDING_INPUT_VBYTES = 148
SPENDING_WITNESS_INPUT_VBYTES = 67
SCRIPT_BYTES_MAX = 10_000
OP_RETURN = 0x6A
OP_1, OP_16 = 0x51, 0x60


@dataclass(frozen=True, slots=True)
class Payee:
    """One output that a transaction is to have."""

    amount_sat: Sat
    script_pubkey: bytes


def unsigned_transaction(inputs: Sequence[OutPoint], payees: Sequence[Payee]) -> bytes:
    """The serialised transaction without signatures, inputs and outputs in the order given.

    The same arguments give the same bytes. Raises AmountInvalid for an output that cannot exist,
    TransactionMalformed without inputs or payees, or if an input is given twice.
    """
    if not inputs or not payees:
        raise TransactionMalformed("a transaction has at least one input and one output")
    if len(set(inputs)) < len(inputs):
        raise TransactionMalformed("an input is given twice: each coin can be spent once")
    for payee in payees:
        if not 0 <= payee.amount_sat <= MAX_MONEY_SAT:
            raise AmountInvalid(f"an output of {payee.amount_sat} sat cannot exist")
    transaction = CMutableTransaction(
        [CMutableTxIn(COutPoint(lx(i.txid), i.vout), nSequence=SEQUENCE_REPLACEABLE) for i in inputs],
        [CMutableTxOut(payee.amount_sat, CScript(payee.script_pubkey)) for payee in payees],
        LOCKTIME,
        VERSION,
    )
    return bytes(transaction.serialize())


def differences(asked: bytes, signed: bytes) -> tuple[str, ...]:
    """In words, all by which `signed` differs from the unsigned transaction `asked`, but for signatures.

    Empty: it spends and pays exactly what was asked. Inputs and outputs are numbered from 0; scripts are hex.
    Lists DIFFERENCES_MAX at most, and then how many more. Raises TransactionMalformed.
    """
    wanted, given = _transaction(asked), _transaction(signed)
    found = _all_differences(wanted, given)
    listed = tuple(islice(found, DIFFERENCES_MAX))
    more = sum(1 for _ in found)
    return (*listed, f"and {more:,} more") if more else listed


def dust_sat(script_pubkey: bytes) -> Sat:
    """The least amount that Bitcoin Core relays to this script: P2WPKH 294, P2TR 330, P2PKH 546.

    0 for a script that nobody can ever spend. Source: GetDustThreshold in its src/policy/policy.cpp.
    """
    if script_pubkey[:1] == bytes([OP_RETURN]) or len(script_pubkey) > SCRIPT_BYTES_MAX:
        return NOTHING_SAT
    spending = SPENDING_WITNESS_INPUT_VBYTES if _is_witness_program(script_pubkey) else SPENDING_INPUT_VBYTES
    return Sat(DUST_FEERATE_SAT_VB * (output_vbytes(script_pubkey) + spending))


def output_vbytes(script_pubkey: bytes) -> int:
    """What an output to this script adds to a transaction: amount, length, script."""
    length = len(script_pubkey)
    compact = 1 if length < 0xFD else 3 if length <= 0xFFFF else 5
    return 8 + compact + length


def txid_of(raw: bytes) -> str:
    """Txid of a serialised transaction, hex, in the node's byte order. Raises TransactionMalformed."""
    return str(b2lx(_transaction(raw).GetTxid()))


def _transaction(raw: bytes) -> CTransaction:
    if len(raw) > TRANSACTION_BYTES_MAX:
        raise TransactionMalformed(f"{len(raw)} bytes are more than a transaction may have")
    try:
        return CTransaction.deserialize(raw)
    except (SerializationError, struct.error, ValueError) as exc:
        raise TransactionMalformed(f"not a transaction: {exc}") from exc


def _is_witness_program(script_pubkey: bytes) -> bool:
    """BIP141: a version, and one push of 2 to 40 bytes."""
    if not 4 <= len(script_pubkey) <= 42:
        return False
    version, push = script_pubkey[:2]
    return (version == 0 or OP_1 <= version <= OP_16) and push == len(script_pubkey) - 2


def _all_differences(asked: CTransaction, signed: CTransaction) -> Iterator[str]:
    if signed.nVersion != asked.nVersion:
        yield f"the version is {signed.nVersion}, {asked.nVersion} was asked"
    if signed.nLockTime != asked.nLockTime:
        yield f"the locktime is {signed.nLockTime}, {asked.nLockTime} was asked"
    yield from _input_differences(asked, signed)
    yield from _output_differences(asked, signed)


def _input_differences(asked: CTransaction, signed: CTransaction) -> Iterator[str]:
    wanted = [_outpoint(i.prevout) for i in asked.vin]
    given = [_outpoint(i.prevout) for i in signed.vin]
    missing = Counter(wanted) - Counter(given)
    extra = Counter(given) - Counter(wanted)
    for outpoint in missing.elements():
        yield f"input {outpoint} is missing"
    for outpoint in extra.elements():
        yield f"input {outpoint} is spent too, which was not asked"
    kept, kept_given = set(wanted) & set(given), dict.fromkeys(given)
    if [one for one in wanted if one in kept] != [one for one in kept_given if one in kept]:
        yield "the inputs stand in another order"
    sequences = {_outpoint(i.prevout): i.nSequence for i in asked.vin}
    for spent, outpoint in zip(signed.vin, given, strict=True):
        sequence = sequences.get(outpoint, spent.nSequence)
        if spent.nSequence != sequence:
            yield f"input {outpoint} has the sequence {spent.nSequence:#010x}, {sequence:#010x} was asked"


def _output_differences(asked: CTransaction, signed: CTransaction) -> Iterator[str]:
    wanted = [_payee(output) for output in asked.vout]
    given = [_payee(output) for output in signed.vout]
    if wanted == given:
        return
    missing = _left_over(wanted, given)
    extra = _left_over(given, wanted)
    if _without(wanted, missing) != _without(given, extra):
        yield "the outputs stand in another order"
    # What is left is matched first by script (the amount was changed), then by place (the script was).
    by_script: dict[bytes, list[int]] = {}
    for vout in reversed(extra):
        by_script.setdefault(given[vout].script_pubkey, []).append(vout)
    moved: dict[int, int] = {}
    for vout in missing:
        candidates = by_script.get(wanted[vout].script_pubkey)
        if candidates:
            moved[vout] = candidates.pop()
    replaced = (set(missing) - set(moved)) & (set(extra) - set(moved.values()))
    for vout in missing:
        before = wanted[vout]
        if vout in moved:
            after = given[moved[vout]]
            yield f"output {moved[vout]} pays {after.amount_sat:,} sat, {before.amount_sat:,} were asked"
        elif vout in replaced:
            after = given[vout]
            yield (f"output {vout} pays {_words(after)}, {_words(before)} was asked")
        else:
            yield f"output {vout} of {_words(before)} is missing"
    explained = replaced | set(moved.values())
    for vout in extra:
        if vout not in explained:
            yield f"output {vout} pays {_words(given[vout])}, which was not asked"


def _left_over(payees: Sequence[Payee], others: Sequence[Payee]) -> list[int]:
    """Places of the payees that are not among the others, each of which answers for one.

    Those at their own place are matched first, so that of two alike the one is named that was touched.
    """
    unmatched = [n for n, payee in enumerate(payees) if n >= len(others) or others[n] != payee]
    available = Counter(other for n, other in enumerate(others) if n >= len(payees) or payees[n] != other)
    left = []
    for vout in unmatched:
        if available[payees[vout]]:
            available[payees[vout]] -= 1
        else:
            left.append(vout)
    return left


def _without(payees: Sequence[Payee], places: Sequence[int]) -> list[Payee]:
    left_out = set(places)
    return [payee for vout, payee in enumerate(payees) if vout not in left_out]


def _outpoint(prevout: COutPoint) -> OutPoint:
    return OutPoint(b2lx(prevout.hash), prevout.n)


def _payee(output: CTxOut) -> Payee:
    return Payee(Sat(output.nValue), bytes(output.scriptPubKey))


def _words(payee: Payee) -> str:
    return f"{payee.amount_sat:,} sat to {payee.script_pubkey.hex() or 'an empty script'}"
