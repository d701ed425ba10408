"""Blocks and transactions, made up and hurt: our reader and python-bitcoinlib agree, or it is known why not.

Where both read, they read the same. Where they do not agree, one of the reasons listed here holds, each of
which errs on the side of not crediting anybody. FUZZ_EXAMPLES sets how many; `make soak-fuzz`.
"""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.block import BLOCK_BYTES_MAX, HEADER_BYTES, ParsedBlock, parse_block, scan_block
from payments.errors import BlockMalformed, TransactionMalformed
from payments.money import MAX_MONEY_SAT
from payments.transaction import ParsedTransaction, parse_transaction
from regtest.wallet import OutsideWallet
from regtest.world import MINER, RegtestWorld
from tests.fuzz.chain import HEADER, BlockReading, Reading, blocks, read_block, transactions
from tests.fuzz.mutation import fuzzed, hurt_octets, outcome

OCTETS = 400_000
MEMORY_FACTOR = 40
"""What is read takes at most so many times its octets: objects for inputs and outputs of some 50 octets."""


@fuzzed
@given(blocks())
def test_valid_block_is_read_alike(raw: bytes) -> None:
    theirs = read_block(raw)
    assert theirs is not None
    assert theirs.as_written
    assert facts(parse_block(raw)) == alike(theirs)


@fuzzed
@given(hurt_octets(blocks()))
def test_hurt_block_is_read_alike_or_for_a_known_reason_not(raw: bytes) -> None:
    compare_block(raw)


@fuzzed
@given(blocks(), st.data())
def test_cut_block_is_refused(raw: bytes, data: st.DataObject) -> None:
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    assert isinstance(outcome(BlockMalformed, parse_block, cut), BlockMalformed)
    assert isinstance(outcome(BlockMalformed, scan_block, cut, watched_scripts=()), BlockMalformed)


@fuzzed
@given(hurt_octets(transactions()) | transactions() | transactions(coinbase=True))
def test_transaction_alone_is_read_as_in_a_block_or_for_a_known_reason_not(raw: bytes) -> None:
    compare_transaction(raw)


@fuzzed
@given(st.binary(max_size=200), st.sampled_from((0, 4, 36, 80)))
def test_noise_is_refused_or_read_alike(noise: bytes, at: int) -> None:
    compare_block(HEADER[:at] + noise)
    compare_transaction(noise)


def compare_block(raw: bytes) -> None:
    ours = outcome(BlockMalformed, parse_block, raw)
    theirs = read_block(raw)
    if isinstance(ours, BlockMalformed):
        assert theirs is None or refused_by_us_alone(theirs, raw), ours
    else:
        assert theirs is not None, "what python-bitcoinlib cannot read is not a block"
        assert facts(ours) == alike(theirs)


def refused_by_us_alone(theirs: BlockReading, raw: bytes) -> bool:
    """The reasons for which we, and the node, refuse what python-bitcoinlib takes."""
    if not theirs.transactions or len(raw) > BLOCK_BYTES_MAX:
        return True
    if not theirs.as_written:
        # A count or size in a longer form than needed; a marker for witnesses and then none.
        return True
    # No input, or amounts beyond all money, or negative ones.
    return any(
        not one.inputs or any(not 0 <= amount <= MAX_MONEY_SAT for amount, _ in one.outputs)
        for one in theirs.transactions
    )


def compare_transaction(raw: bytes) -> None:
    """By `parse_transaction`, which is python-bitcoinlib with our rules, and by our reader of blocks."""
    alone = outcome(TransactionMalformed, parse_transaction, raw)
    in_block = outcome(BlockMalformed, parse_block, HEADER + b"\x01" + raw)
    if isinstance(alone, TransactionMalformed):
        # In a block a transaction without outputs is the node's business: it pays nobody.
        assert isinstance(in_block, BlockMalformed) or not in_block.transactions[0].outputs
        return
    if isinstance(in_block, BlockMalformed):
        theirs = read_block(HEADER + b"\x01" + raw)
        assert theirs is not None
        assert not theirs.as_written, in_block
        return
    (one,) = in_block.transactions
    assert (alone.txid, alone.outputs) == (one.txid, one.outputs)


def facts(block: ParsedBlock) -> tuple[object, ...]:
    read = tuple(
        Reading(
            one.txid,
            tuple((spent.txid, spent.vout) for spent in one.inputs),
            tuple((paid.amount_sat, paid.script_pubkey) for paid in one.outputs),
        )
        for one in block.transactions
    )
    assert [one.index for one in block.transactions] == list(range(block.transaction_count))
    return block.hash, block.previous_hash, block.time, read


def alike(theirs: BlockReading) -> tuple[object, ...]:
    """As `facts`: the first transaction of a block spends nothing."""
    first, *others = theirs.transactions
    return theirs.hash, theirs.previous_hash, theirs.time, (Reading(first.txid, (), first.outputs), *others)


COINBASE = bytes.fromhex("0100000001" + "00" * 32 + "ffffffff0101ffffffff01" + "3200000000000000015200000000")


@pytest.mark.parametrize("count", [b"\xfe\xff\xff\xff\xff", b"\xff" * 9, b"\xff" + b"\xff" * 7 + b"\x7f"])
@pytest.mark.parametrize("at", [0, 5, 42, 48, 57], ids=["all", "inputs", "script", "outputs", "paid"])
def test_lying_count_takes_no_memory(count: bytes, at: int) -> None:
    before = HEADER + (b"" if at == 0 else b"\x01")
    transaction = COINBASE[: max(0, at - 1)] + count + COINBASE[at:]
    tracemalloc.start()
    try:
        assert isinstance(outcome(BlockMalformed, parse_block, before + transaction), BlockMalformed)
        assert isinstance(outcome(TransactionMalformed, parse_transaction, transaction), TransactionMalformed)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fill", [b"\x00", b"\x01", b"\x00\x01", b"\x51", b"\xfc", b"\xfd", b"\xff"])
def test_a_block_of_one_octet_over_and_over_takes_bounded_memory(fill: bytes) -> None:
    raw = HEADER + b"\xfd\xff\xff" + COINBASE[:4] + fill * OCTETS
    tracemalloc.start()
    try:
        outcome(BlockMalformed, parse_block, raw)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_FACTOR * len(raw)
    finally:
        tracemalloc.stop()


@pytest.mark.asyncio(loop_scope="session")
async def test_blocks_of_the_node_are_read_alike(world: RegtestWorld) -> None:
    """Real ones, with payments, and each hurt in every octet of its transactions' beginning."""
    wallet = OutsideWallet(world.outside, MINER)
    paid = [(await wallet.new_address(), 10_000 + number) for number in range(5)]
    await wallet.pay(paid, feerate_sat_vb=20)
    for block_hash in await world.mine(1):
        raw = bytes.fromhex(str(await world.outside.rpc("getblock", block_hash, 0)))
        theirs = read_block(raw)
        assert theirs is not None
        assert len(theirs.transactions) >= 2
        block = parse_block(raw)
        assert facts(block) == alike(theirs)
        for one in block.transactions[1:]:
            alone = parse_transaction(one.raw)
            assert isinstance(alone, ParsedTransaction)
            assert (alone.txid, alone.inputs, alone.outputs) == (one.txid, one.inputs, one.outputs)
        for at in range(HEADER_BYTES, min(len(raw), HEADER_BYTES + 600)):
            compare_block(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
