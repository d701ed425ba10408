"""Hypothesis strategies for blocks and transactions of every shape, and how python-bitcoinlib reads them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO

from bitcoin.core import (
    CBlockHeader,
    COutPoint,
    CScriptWitness,
    CTransaction,
    CTxIn,
    CTxInWitness,
    CTxOut,
    CTxWitness,
    b2lx,
)
from bitcoin.core.script import CScript
from bitcoin.core.serialize import SerializationError, VarIntSerializer, VectorSerializer
from hypothesis import strategies as st

from payments.money import MAX_MONEY_SAT

HEADER = bytes(80)
NOBODYS = COutPoint()
"""What a coinbase spends."""
REPEATED_BYTES_MAX = 500_000
"""Four transactions with the largest of scripts, one of them repeated, stay below a block's 4 MB."""


def _seldom(many: int, *, usually: int) -> st.SearchStrategy[int]:
    """One count in twenty is over 252, where it takes three octets; such blocks take long to read."""
    return st.integers(0, 19).map(lambda number: many if number == 19 else usually)


def _within(times: int, size_bytes: int) -> int:
    """So often, if that many octets leave a block within its limit; else not at all."""
    return times if times * size_bytes <= REPEATED_BYTES_MAX else 0


octets32 = st.binary(min_size=32, max_size=32)
SIZES = (0, 1, 2, 22, 25, 34, 75, 76, 80, 252, 253, 254, 600)
"""Around where a CompactSize grows, and those of the usual scripts."""
scripts = st.one_of(
    st.binary(min_size=20, max_size=20).map(lambda key: b"\x76\xa9\x14" + key + b"\x88\xac"),
    st.binary(min_size=20, max_size=20).map(lambda key: b"\xa9\x14" + key + b"\x87"),
    st.binary(min_size=20, max_size=20).map(lambda key: b"\x00\x14" + key),
    octets32.map(lambda key: b"\x00\x20" + key),
    octets32.map(lambda key: b"\x51\x20" + key),
    st.binary(max_size=80).map(lambda text: b"\x6a" + bytes([len(text)]) + text),
    st.just(b"\x51\x02\x4e\x73"),
    st.just(b"\x4c"),
    _seldom(0x1_0000, usually=0xFD).map(bytes),
    st.builds(lambda size, fill: bytes([fill]) * size, st.sampled_from(SIZES), st.integers(0, 255)),
    st.binary(max_size=40),
)
outpoints = st.builds(COutPoint, octets32, st.integers(0, 0xFFFF_FFFF))
amounts = st.integers(0, MAX_MONEY_SAT) | st.sampled_from((0, 1, 294, 546, MAX_MONEY_SAT))
outputs = st.builds(lambda amount, script: CTxOut(amount, CScript(script)), amounts, scripts)
stacks = st.lists(st.binary(max_size=80) | st.just(bytes(600)), max_size=3) | st.just([b""] * 260)


@st.composite
def transactions(draw: st.DrawFn, *, coinbase: bool = False) -> bytes:
    """One valid in form, serialised; sometimes with some hundred outputs."""
    spent = [NOBODYS] if coinbase else draw(st.lists(outpoints, min_size=1, max_size=4))
    inputs = [
        CTxIn(outpoint, CScript(draw(scripts)), draw(st.integers(0, 0xFFFF_FFFF))) for outpoint in spent
    ]
    paid = draw(st.lists(outputs, min_size=1, max_size=4))
    paid *= _within(draw(_seldom(90, usually=1)), sum(len(out.scriptPubKey) for out in paid)) or 1
    witness = [CTxInWitness(CScriptWitness(draw(stacks))) for _ in spent] if draw(st.booleans()) else []
    made = CTransaction(
        inputs,
        paid,
        nLockTime=draw(st.integers(0, 0xFFFF_FFFF)),
        nVersion=draw(st.sampled_from((1, 2, 3)) | st.integers(-(2**31), 2**31 - 1)),
        witness=CTxWitness(witness),
    )
    raw: bytes = made.serialize()
    return raw


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """A block valid in form, with up to some hundred transactions."""
    header = draw(st.binary(min_size=80, max_size=80))
    listed = [draw(transactions(coinbase=True)), *draw(st.lists(transactions(), max_size=3))]
    listed += listed[-1:] * _within(draw(_seldom(260, usually=0)), len(listed[-1]))
    count: bytes = VarIntSerializer.serialize(len(listed))
    return header + count + b"".join(listed)


@dataclass(frozen=True)
class Reading:
    """One transaction: the txid, what it spends, what it pays."""

    txid: str
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class BlockReading:
    """As python-bitcoinlib reads a block. `as_written`: it writes the same octets again."""

    hash: str
    previous_hash: str
    time: int
    transactions: tuple[Reading, ...]
    as_written: bool


def read_block(raw: bytes) -> BlockReading | None:
    """By python-bitcoinlib; None if it refuses, or octets are left over."""
    source = BytesIO(raw)
    try:
        header = CBlockHeader.stream_deserialize(source)
        listed = VectorSerializer.stream_deserialize(CTransaction, source)
        again = BytesIO()
        header.stream_serialize(again)
        VectorSerializer.stream_serialize(CTransaction, listed, again)
    except (SerializationError, struct.error, ValueError):
        return None
    if source.read():
        return None
    return BlockReading(
        hash=b2lx(header.GetHash()),
        previous_hash=b2lx(header.hashPrevBlock),
        time=header.nTime,
        transactions=tuple(map(_reading, listed)),
        as_written=again.getvalue() == raw,
    )


def _reading(transaction: CTransaction) -> Reading:
    return Reading(
        txid=b2lx(transaction.GetTxid()),
        inputs=tuple((b2lx(spent.prevout.hash), spent.prevout.n) for spent in transaction.vin),
        outputs=tuple((paid.nValue, bytes(paid.scriptPubKey)) for paid in transaction.vout),
    )
