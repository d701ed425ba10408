"""Signed batches that are not what was asked for, as a hostile or broken signer would give them back."""

from __future__ import annotations

from bitcoin.core import CMutableTransaction, CMutableTxIn, CMutableTxOut, COutPoint, CTransaction
from bitcoin.core.script import CScript

from tests.payout_soak.steps import Altered

THIEF = CScript(bytes.fromhex("0014" + "66" * 20))
STOLEN_SAT = 1_000


def altered(
    unsigned: bytes, how: Altered, *, change_script: bytes | None, extra: tuple[str, int] | None
) -> bytes | None:
    """Another transaction, unsigned; None where this batch cannot be altered so. `extra` is a coin."""
    transaction = CMutableTransaction.from_tx(CTransaction.deserialize(unsigned))
    match how:
        case Altered.AMOUNT:
            transaction.vout[0].nValue -= STOLEN_SAT
        case Altered.PAYEE:
            transaction.vout[0].scriptPubKey = THIEF
        case Altered.CHANGE:
            places = [n for n, one in enumerate(transaction.vout) if bytes(one.scriptPubKey) == change_script]
            if not places:
                return None
            transaction.vout[places[0]].scriptPubKey = THIEF
        case Altered.EXTRA_OUTPUT:
            transaction.vout.append(CMutableTxOut(STOLEN_SAT, THIEF))
        case Altered.EXTRA_INPUT:
            if extra is None:
                return None
            transaction.vin.append(CMutableTxIn(COutPoint(bytes.fromhex(extra[0])[::-1], extra[1])))
    return bytes(transaction.serialize())
