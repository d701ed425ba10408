"""Which transactions of a raw block pay our scripts or spend our outputs: a reader made for the watcher.

A full block holds some 4,000 transactions and 10,000 outputs, of which one or none is ours. So `scan_block`
walks over the bytes, looking up every script and every spent outpoint, and takes apart only what matches.

    block        header[80]  count  transaction * count
    header       version[4]  previous_hash[32]  merkle_root[32]  time[4]  bits[4]  nonce[4]
    transaction  version[4]  (0x00 0x01)?  count  input * count  count  output * count  stacks?  locktime[4]
    input        txid[32] vout[4]  size script_sig[size]  sequence[4]
    output       value[8]  size script_pubkey[size]
    stacks       for each input: count  (size item[size]) * count

Integers are little-endian; a count or size is a CompactSize. The 0x00 0x01 after a version says that stacks
(witnesses) follow the outputs; a txid leaves both out (BIP144). Hashes are shown reversed, as the node's RPC
does.

The walk needs no bound check per field. Its position only grows, so a count or size that lies about what
follows leads beyond the last byte: there the next read is an IndexError, or, if nothing is left to read, the
position is not the block's length. Both are BlockMalformed, and nothing found before is given out.
"""

from collections.abc import Container
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from payments.errors import BlockMalformed
from payments.invoice import OutPoint
from payments.money import MAX_MONEY_SAT, Sat
from payments.transaction import TransactionOutput

HEADER_BYTES = 80
BLOCK_BYTES_MAX = 4_000_000
"""BIP141: a block's weight is at most 4,000,000, and no byte weighs less than one."""
OUTPOINT_BYTES = 36
VALUE_BYTES = 8
SEQUENCE_BYTES = 4
VERSION_BYTES = 4
LOCKTIME_BYTES = 4

WITNESS_MARKER = 0x00
WITNESS_FLAG = 0x01


@dataclass(frozen=True, slots=True)
class BlockTransaction:
    """One transaction of a block, whole."""

    index: int
    """Its place in the block; 0 is the coinbase."""
    txid: str
    inputs: tuple[OutPoint, ...]
    """All outpoints it spends, in order; empty for the coinbase."""
    outputs: tuple[TransactionOutput, ...]
    """All its outputs, in order."""
    raw: bytes
    """Serialised with its witnesses, as `sendrawtransaction` takes it."""

    @property
    def coinbase(self) -> bool:
        return self.index == 0


@dataclass(frozen=True, slots=True)
class ParsedBlock:
    hash: str
    previous_hash: str
    time: int
    """Unix seconds, as its miner set it."""
    transaction_count: int
    transactions: tuple[BlockTransaction, ...]
    """All of them, or those asked for, in the block's order."""


class _Everything:
    """A container that holds whatever one asks for."""

    def __contains__(self, _: object) -> bool:
        return True


def parse_block(raw: bytes) -> ParsedBlock:
    """Read a whole block. Raises BlockMalformed."""
    return scan_block(raw, watched_scripts=_Everything())


def scan_block(
    raw: bytes, *, watched_scripts: Container[bytes], watched_outpoints: Container[bytes] = frozenset()
) -> ParsedBlock:
    """The transactions of a block that pay a watched scriptPubKey or spend a watched outpoint.

    `watched_outpoints` holds `outpoint_bytes`. A transaction found is given whole: look again for which of
    its outputs and inputs are meant. Raises BlockMalformed for anything but one whole block. Takes
    milliseconds for a full block: run it in a thread.
    """
    if not HEADER_BYTES < len(raw) <= BLOCK_BYTES_MAX:
        raise BlockMalformed(f"a block has {HEADER_BYTES + 1} to {BLOCK_BYTES_MAX} bytes, not {len(raw)}")
    try:
        transaction_count, spans = _matching_spans(raw, watched_scripts, watched_outpoints)
        transactions = tuple(_transaction(raw, span) for span in spans)
    except IndexError:
        raise BlockMalformed("the block ends in the middle of a transaction") from None
    header = raw[:HEADER_BYTES]
    return ParsedBlock(
        hash=_double_sha256(header)[::-1].hex(),
        previous_hash=header[4:36][::-1].hex(),
        time=int.from_bytes(header[68:72], "little"),
        transaction_count=transaction_count,
        transactions=transactions,
    )


def outpoint_bytes(outpoint: OutPoint) -> bytes:
    """An outpoint as an input carries it: the txid's bytes in hash order, then the index; 36 bytes."""
    return bytes.fromhex(outpoint.txid)[::-1] + outpoint.vout.to_bytes(4, "little")


class _Span(NamedTuple):
    """Where a transaction lies in the block: raw[start:end], and in it raw[inputs_start:outputs_end]."""

    place: int
    start: int
    inputs_start: int
    outputs_end: int
    end: int


def _matching_spans(
    raw: bytes, watched_scripts: Container[bytes], watched_outpoints: Container[bytes]
) -> tuple[int, list[_Span]]:
    """The number of transactions, and where the matching ones lie.

    One flat loop: a call per field would double its time.
    """
    spans: list[_Span] = []
    transaction_count, at = _compact_size(raw, HEADER_BYTES)
    if transaction_count == 0:
        raise BlockMalformed("a block without a coinbase")
    for index in range(transaction_count):
        start = at
        matches = False

        at += VERSION_BYTES
        has_witness = raw[at] == WITNESS_MARKER
        if has_witness:
            if raw[at + 1] != WITNESS_FLAG:
                raise BlockMalformed(f"transaction {index} has no inputs, or an unknown flag")
            at += 2
        inputs_start = at

        input_count, at = _compact_size(raw, at)
        for _ in range(input_count):
            if raw[at : at + OUTPOINT_BYTES] in watched_outpoints:
                matches = True
            at += OUTPOINT_BYTES
            size = raw[at]
            if size < 0xFD:
                at += 1
            else:
                size, at = _compact_size(raw, at)
            at += size + SEQUENCE_BYTES

        output_count, at = _compact_size(raw, at)
        for _ in range(output_count):
            at += VALUE_BYTES
            size = raw[at]
            if size < 0xFD:
                at += 1
            else:
                size, at = _compact_size(raw, at)
            if raw[at : at + size] in watched_scripts:
                matches = True
            at += size
        outputs_end = at

        if has_witness:
            for _ in range(input_count):
                item_count, at = _compact_size(raw, at)
                for _ in range(item_count):
                    size = raw[at]
                    if size < 0xFD:
                        at += 1
                    else:
                        size, at = _compact_size(raw, at)
                    at += size
        at += LOCKTIME_BYTES

        if matches:
            spans.append(_Span(index, start, inputs_start, outputs_end, at))
    if at != len(raw):
        raise BlockMalformed(f"the block's transactions end at byte {at} of {len(raw)}")
    return transaction_count, spans


def _transaction(raw: bytes, span: _Span) -> BlockTransaction:
    """Take apart a transaction that the walk has found to lie within the block."""
    inputs: list[OutPoint] = []
    input_count, at = _compact_size(raw, span.inputs_start)
    for _ in range(input_count):
        txid = raw[at : at + 32][::-1].hex()
        inputs.append(OutPoint(txid, int.from_bytes(raw[at + 32 : at + OUTPOINT_BYTES], "little")))
        size, at = _compact_size(raw, at + OUTPOINT_BYTES)
        at += size + SEQUENCE_BYTES

    outputs: list[TransactionOutput] = []
    output_count, at = _compact_size(raw, at)
    for vout in range(output_count):
        amount_sat = int.from_bytes(raw[at : at + VALUE_BYTES], "little")
        if amount_sat > MAX_MONEY_SAT:
            raise BlockMalformed(f"output {vout} of transaction {span.place} has an impossible amount")
        size, at = _compact_size(raw, at + VALUE_BYTES)
        outputs.append(TransactionOutput(vout, Sat(amount_sat), raw[at : at + size]))
        at += size

    version = raw[span.start : span.start + VERSION_BYTES]
    locktime = raw[span.end - LOCKTIME_BYTES : span.end]
    txid_preimage = version + raw[span.inputs_start : span.outputs_end] + locktime
    return BlockTransaction(
        index=span.place,
        txid=_double_sha256(txid_preimage)[::-1].hex(),
        inputs=() if span.place == 0 else tuple(inputs),
        outputs=tuple(outputs),
        raw=raw[span.start : span.end],
    )


def _compact_size(raw: bytes, at: int) -> tuple[int, int]:
    """The CompactSize at `at`, and the position behind it."""
    first = raw[at]
    if first < 0xFD:
        return first, at + 1
    width = 2 << (first - 0xFD)
    end = at + 1 + width
    value = int.from_bytes(raw[at + 1 : end], "little")
    # Bitcoin Core refuses a value that a shorter form could carry.
    if value < (0xFD, 0x1_0000, 0x1_0000_0000)[first - 0xFD]:
        raise BlockMalformed(f"the size at byte {at} is not in its shortest form")
    return value, end


def _double_sha256(message: bytes) -> bytes:
    return sha256(sha256(message).digest()).digest()
