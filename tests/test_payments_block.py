"""Blocks and transactions: our reader agrees with python-bitcoinlib on random and damaged ones."""

import time
from io import BytesIO

import pytest
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
from bitcoin.core.serialize import VectorSerializer
from hypothesis import given, settings
from hypothesis import strategies as st

from payments.block import (
    BLOCK_BYTES_MAX,
    HEADER_BYTES,
    BlockTransaction,
    ParsedBlock,
    outpoint_bytes,
    parse_block,
    scan_block,
)
from payments.errors import BlockMalformed, TransactionMalformed
from payments.invoice import OutPoint
from payments.money import MAX_MONEY_SAT, Sat
from payments.transaction import ParsedTransaction, TransactionOutput, parse_transaction

NULL_OUTPOINT = COutPoint()
# Around 253, where a CompactSize grows from one byte to three.
script_sizes = st.sampled_from([0, 1, 22, 34, 252, 253, 254, 600])
scripts = st.builds(lambda size, fill: CScript(bytes([fill]) * size), script_sizes, st.integers(0, 255))
outpoints = st.builds(COutPoint, st.binary(min_size=32, max_size=32), st.integers(0, 0xFFFF_FFFE))
outputs = st.builds(CTxOut, st.integers(0, MAX_MONEY_SAT), scripts)
stacks = st.lists(st.binary(max_size=300), max_size=3)


@st.composite
def transactions(draw: st.DrawFn, *, coinbase: bool = False) -> CTransaction:
    spent = [NULL_OUTPOINT] if coinbase else draw(st.lists(outpoints, min_size=1, max_size=4, unique=True))
    inputs = [CTxIn(outpoint, draw(scripts), draw(st.integers(0, 0xFFFF_FFFF))) for outpoint in spent]
    witnesses = [CTxInWitness(CScriptWitness(draw(stacks))) for _ in spent] if draw(st.booleans()) else []
    return CTransaction(
        inputs,
        draw(st.lists(outputs, min_size=1, max_size=5)),
        nLockTime=draw(st.integers(0, 0xFFFF_FFFF)),
        nVersion=draw(st.integers(-(2**31), 2**31 - 1)),
        witness=CTxWitness(witnesses),
    )


@st.composite
def raw_blocks(draw: st.DrawFn) -> bytes:
    header = CBlockHeader(
        nVersion=4,
        hashPrevBlock=draw(st.binary(min_size=32, max_size=32)),
        hashMerkleRoot=draw(st.binary(min_size=32, max_size=32)),
        nTime=draw(st.integers(0, 0xFFFF_FFFF)),
        nBits=0x207FFFFF,
        nNonce=draw(st.integers(0, 0xFFFF_FFFF)),
    )
    listed = [draw(transactions(coinbase=True)), *draw(st.lists(transactions(), max_size=5))]
    return block_of(header.serialize(), [transaction.serialize() for transaction in listed])


def block_of(header: bytes, raw_transactions: list[bytes]) -> bytes:
    assert len(raw_transactions) < 0xFD
    return header + bytes([len(raw_transactions)]) + b"".join(raw_transactions)


@given(raw_blocks())
def test_whole_block_agrees_with_python_bitcoinlib(raw: bytes) -> None:
    block = parse_block(raw)
    assert block == by_python_bitcoinlib(raw)
    assert block.transactions[0].coinbase
    assert not any(transaction.coinbase for transaction in block.transactions[1:])


@given(raw_blocks(), st.data())
def test_scan_finds_what_pays_and_what_spends(raw: bytes, data: st.DataObject) -> None:
    everything = by_python_bitcoinlib(raw).transactions
    paid = sorted({output.script_pubkey for transaction in everything for output in transaction.outputs})
    spent = sorted({outpoint for transaction in everything for outpoint in transaction.inputs})
    watched_scripts = data.draw(st.sets(st.sampled_from(paid)), label="watched scripts")
    watched_outpoints = (
        data.draw(st.sets(st.sampled_from(spent)), label="watched outpoints") if spent else set()
    )

    block = scan_block(
        raw,
        watched_scripts=dict.fromkeys(watched_scripts),
        watched_outpoints={outpoint_bytes(outpoint) for outpoint in watched_outpoints},
    )

    assert block.transaction_count == len(everything)
    assert block.transactions == tuple(
        transaction
        for transaction in everything
        if any(output.script_pubkey in watched_scripts for output in transaction.outputs)
        or not watched_outpoints.isdisjoint(transaction.inputs)
    )


@settings(max_examples=300)
@given(raw_blocks(), st.data())
def test_damaged_block_is_refused_or_read_as_python_bitcoinlib_does(raw: bytes, data: st.DataObject) -> None:
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(HEADER_BYTES, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=9))
        if len(damaged) <= HEADER_BYTES:
            break
    try:
        block = parse_block(bytes(damaged))
    except BlockMalformed:
        return
    theirs = by_python_bitcoinlib(bytes(damaged))
    assert [facts(ours) for ours in block.transactions] == [facts(other) for other in theirs.transactions]


@given(raw_blocks(), st.data())
def test_cut_or_lengthened_block_is_refused(raw: bytes, data: st.DataObject) -> None:
    with pytest.raises(BlockMalformed):
        scan_block(raw[: data.draw(st.integers(0, len(raw) - 1))], watched_scripts=())
    with pytest.raises(BlockMalformed):
        scan_block(raw + data.draw(st.binary(min_size=1, max_size=9)), watched_scripts=())


LEGACY = CTransaction([CTxIn(COutPoint(b"\1" * 32, 7))], [CTxOut(5_000, CScript(b"\x51"))]).serialize()
COINBASE = CTransaction([CTxIn(NULL_OUTPOINT, CScript(b"\1\1"))], [CTxOut(50, CScript(b"\x52"))]).serialize()
HEADER = bytes(HEADER_BYTES)
HUGE = b"\xff" * 9
HUGE_BUT_SIGNED_POSITIVE = b"\xff" + b"\xff" * 7 + b"\x7f"


@pytest.mark.parametrize("count", [HUGE, HUGE_BUT_SIGNED_POSITIVE, b"\xfe\xff\xff\xff\xff"])
@pytest.mark.parametrize(
    "before_and_after",
    [
        (HEADER, COINBASE),
        (HEADER + b"\1" + COINBASE[:4], COINBASE[5:]),
        (HEADER + b"\1" + COINBASE[:41], COINBASE[42:]),
        (HEADER + b"\1" + COINBASE[:48], COINBASE[49:]),
        (HEADER + b"\1" + b"\2\0\0\0\0\1" + COINBASE[4:-4], b"\1" * 60),
        (HEADER + b"\1" + b"\2\0\0\0\0\1" + COINBASE[4:-4] + b"\1", b"\1" * 60),
    ],
    ids=["transactions", "inputs", "script_sig", "outputs", "witness items", "witness item"],
)
def test_lying_counts_end_at_once(before_and_after: tuple[bytes, bytes], count: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(BlockMalformed):
        parse_block(before_and_after[0] + count + before_and_after[1])
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        HEADER,
        HEADER + b"\0",
        HEADER + b"\xfd\1\0" + COINBASE,
        HEADER + b"\1" + COINBASE[:4] + b"\0\2" + COINBASE[4:-4] + b"\0" + COINBASE[-4:],
        HEADER + b"\1" + COINBASE[:4] + b"\0" + COINBASE[48:],
        HEADER
        + b"\1"
        + COINBASE.replace((50).to_bytes(8, "little"), (MAX_MONEY_SAT + 1).to_bytes(8, "little")),
        bytes(BLOCK_BYTES_MAX + 1),
    ],
    ids=[
        "empty",
        "header only",
        "no transactions",
        "count in a longer form than needed",
        "unknown witness flag",
        "no inputs",
        "impossible amount",
        "larger than a block may be",
    ],
)
def test_malformed_block_is_refused(raw: bytes) -> None:
    with pytest.raises(BlockMalformed):
        parse_block(raw)


def test_script_match_in_a_cut_block_is_not_given_out() -> None:
    raw = block_of(HEADER, [COINBASE, LEGACY])
    assert [found.index for found in scan_block(raw, watched_scripts={b"\x51"}).transactions] == [1]
    with pytest.raises(BlockMalformed):
        scan_block(raw[:-1], watched_scripts={b"\x51"})


@given(transactions())
def test_transaction_read_alone_is_the_same_as_in_a_block(transaction: CTransaction) -> None:
    raw = transaction.serialize()
    in_block = parse_block(block_of(HEADER, [COINBASE, raw])).transactions[1]
    assert parse_transaction(raw) == ParsedTransaction(
        txid=in_block.txid, inputs=in_block.inputs, outputs=in_block.outputs, coinbase=False
    )


def test_coinbase_read_alone_spends_nothing() -> None:
    parsed = parse_transaction(COINBASE)
    assert parsed.coinbase
    assert parsed.inputs == ()


@given(transactions(), st.data())
def test_damaged_transaction_is_refused_or_still_one(transaction: CTransaction, data: st.DataObject) -> None:
    damaged = bytearray(transaction.serialize())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=9))
    try:
        parsed = parse_transaction(bytes(damaged))
    except TransactionMalformed:
        return
    assert all(0 <= output.amount_sat <= MAX_MONEY_SAT for output in parsed.outputs)


@pytest.mark.parametrize(
    "raw",
    [b"", LEGACY[:-1], LEGACY + b"\0", LEGACY.replace((5_000).to_bytes(8, "little"), b"\xff" * 8)],
    ids=["empty", "cut", "lengthened", "negative amount"],
)
def test_malformed_transaction_is_refused(raw: bytes) -> None:
    with pytest.raises(TransactionMalformed):
        parse_transaction(raw)


def by_python_bitcoinlib(raw: bytes) -> ParsedBlock:
    """The same facts by the other implementation."""
    source = BytesIO(raw)
    header = CBlockHeader.stream_deserialize(source)
    listed = VectorSerializer.stream_deserialize(CTransaction, source)
    assert source.read() == b""
    return ParsedBlock(
        hash=b2lx(header.GetHash()),
        previous_hash=b2lx(header.hashPrevBlock),
        time=header.nTime,
        transaction_count=len(listed),
        transactions=tuple(
            _by_python_bitcoinlib(index, transaction) for index, transaction in enumerate(listed)
        ),
    )


def facts(transaction: BlockTransaction) -> tuple[object, ...]:
    """All but the raw bytes, in which a witness flag without witnesses would differ."""
    return transaction.index, transaction.txid, transaction.inputs, transaction.outputs


def _by_python_bitcoinlib(index: int, transaction: CTransaction) -> BlockTransaction:
    return BlockTransaction(
        index=index,
        txid=b2lx(transaction.GetTxid()),
        inputs=()
        if index == 0
        else tuple(OutPoint(b2lx(spent.prevout.hash), spent.prevout.n) for spent in transaction.vin),
        outputs=tuple(
            TransactionOutput(vout, Sat(output.nValue), bytes(output.scriptPubKey))
            for vout, output in enumerate(transaction.vout)
        ),
        raw=transaction.serialize(),
    )
