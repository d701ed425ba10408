"""One raw transaction, read with python-bitcoinlib: what it spends and what it pays.

Scripts stay bytes: the library knows no bech32m and would print a wrong address for a taproot output, so
addresses are the node's business.
"""

import struct
from dataclasses import dataclass

from bitcoin.core import CTransaction, b2lx
from bitcoin.core.serialize import SerializationError

from payments.errors import TransactionMalformed
from payments.invoice import OutPoint
from payments.money import MAX_MONEY_SAT, Sat

TRANSACTION_BYTES_MAX = 4_000_000
"""A transaction is no larger than a block may be (BIP141: weight 4,000,000)."""


@dataclass(frozen=True, slots=True)
class TransactionOutput:
    vout: int
    amount_sat: Sat
    script_pubkey: bytes


@dataclass(frozen=True, slots=True)
class ParsedTransaction:
    txid: str
    """Hex, in the byte order of the node's RPC."""
    inputs: tuple[OutPoint, ...]
    """What it spends, in order; empty for a coinbase."""
    outputs: tuple[TransactionOutput, ...]
    coinbase: bool


def parse_transaction(raw: bytes) -> ParsedTransaction:
    """Read one serialised transaction, with or without witnesses.

    Raises TransactionMalformed if `raw` is anything else, has bytes left over, or pays an impossible amount.
    """
    if len(raw) > TRANSACTION_BYTES_MAX:
        raise TransactionMalformed(f"{len(raw)} bytes are more than a transaction may have")
    try:
        transaction = CTransaction.deserialize(raw)
    except (SerializationError, struct.error, ValueError) as exc:
        raise TransactionMalformed(f"not a transaction: {exc}") from exc
    if not transaction.vin or not transaction.vout:
        raise TransactionMalformed("a transaction has at least one input and one output")
    coinbase = transaction.is_coinbase()
    return ParsedTransaction(
        txid=b2lx(transaction.GetTxid()),
        inputs=()
        if coinbase
        else tuple(OutPoint(b2lx(i.prevout.hash), i.prevout.n) for i in transaction.vin),
        outputs=tuple(
            TransactionOutput(vout, checked_amount(output.nValue), bytes(output.scriptPubKey))
            for vout, output in enumerate(transaction.vout)
        ),
        coinbase=coinbase,
    )


def checked_amount(value: int) -> Sat:
    """An output's value as sats. Raises TransactionMalformed outside 0 to 21 million BTC."""
    if not 0 <= value <= MAX_MONEY_SAT:
        raise TransactionMalformed(f"an output of {value} sat cannot exist")
    return Sat(value)
