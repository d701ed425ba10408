"""Unspent outputs, as our node's chain has them: single ones, all of a descriptor, and what made them.

Errors as in `bitcoind`. Source: Bitcoin Core's RPC help.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar, cast

from msgspec import Struct, field

from payments.bitcoind import RPC_INVALID_PARAMETER, octets_of, sat_of
from payments.bitcoind_rpc import BitcoindRpc
from payments.errors import CoinsSpent, NodeRefused, NodeUnavailable
from payments.money import Sat
from payments.outputs import OutPoint

SCAN_S_MAX = 1_800.0
"""The whole set of unspent outputs is read: minutes on mainnet."""
ABORT_S_MAX = 5.0
RANGE_INDEXES_MAX = 1_000_000
"""The node refuses a wider range of one descriptor: it is asked for in pieces."""
COINS_PER_BATCH = 500
TRANSACTIONS_PER_BATCH = 50
"""The node reads a whole block for each."""
PREVIOUS_BYTES_MAX = 8_000_000
"""Of previous transactions in one PSBT: they double in hex, and the node takes 32 MiB in one call."""
SCAN_RUNNING_REASON = "Scan already in progress"
OUTPOINTS_PER_CALL = 1_000
LAST_STEP = re.compile(r"\[[0-9a-f]{8}(?:/\d+[h']?)*/(\d+)\]")

T = TypeVar("T")


class DescriptorRange(NamedTuple):
    """Addresses of a descriptor: its text with checksum, indexes `lowest` to `highest`, both included.

    The node derives each of them, some ten thousand a second: name single indexes where they are known.
    """

    descriptor: str
    highest: int
    lowest: int = 0


Descriptors = Sequence[DescriptorRange | tuple[str, int]]
"""A plain pair is (descriptor, highest index)."""


@dataclass(frozen=True, slots=True)
class Coin:
    """An unspent output; `height` is None while its transaction is in the mempool."""

    outpoint: OutPoint
    amount_sat: Sat
    script_pubkey: bytes
    height: int | None

    @property
    def is_taproot(self) -> bool:
        return len(self.script_pubkey) == 34 and self.script_pubkey.startswith(b"\x51\x20")


@dataclass(frozen=True, slots=True)
class UnspentOutput:
    outpoint: OutPoint
    amount_sat: Sat
    script_pubkey: bytes
    height: int
    coinbase: bool
    """Spendable only at 100 confirmations."""
    address_index: int | None = None
    """Of its descriptor, as far as the node tells."""


@dataclass(frozen=True, slots=True)
class UnspentScan:
    """What the chain holds unspent at one block; the mempool has no say."""

    height: int
    block_hash: str
    outputs: tuple[UnspentOutput, ...]

    @property
    def amount_sat(self) -> Sat:
        return Sat(sum(output.amount_sat for output in self.outputs))


def ranges_of(descriptors: Descriptors) -> list[dict[str, Any]]:
    """As the node's calls take them."""
    scanned: list[dict[str, Any]] = []
    for entry in descriptors:
        one = entry if isinstance(entry, DescriptorRange) else DescriptorRange(*entry)
        if "*" not in one.descriptor:
            scanned.append({"desc": one.descriptor})
            continue
        for start in range(one.lowest, one.highest + 1, RANGE_INDEXES_MAX):
            end = min(start + RANGE_INDEXES_MAX - 1, one.highest)
            scanned.append({"desc": one.descriptor, "range": [start, end]})
    return scanned


async def scan_unspent(rpc: BitcoindRpc, descriptors: Descriptors) -> UnspentScan:
    """All unspent outputs of these descriptors in the chain. The node does one such scan at a time.

    Raises NodeUnavailable while somebody else's runs.
    """
    try:
        wire = await rpc.call(
            "scantxoutset", "start", ranges_of(descriptors), answer=_ScanWire, timeout_s=SCAN_S_MAX
        )
    except NodeRefused as exc:
        if exc.code == RPC_INVALID_PARAMETER and SCAN_RUNNING_REASON in exc.message:
            raise NodeUnavailable(
                "the node is scanning its unspent outputs for somebody else: try again in some minutes "
                "(`scantxoutset status` tells how far it is, `scantxoutset abort` ends it)"
            ) from exc
        raise
    except (asyncio.CancelledError, NodeUnavailable):
        # The node would go on for minutes, and refuse the next scan meanwhile.
        await _abort_scan(rpc)
        raise
    if not wire.success:
        raise NodeUnavailable("somebody ended the node's scan of its unspent outputs: try again")
    return await asyncio.to_thread(_scan, wire)


async def coins_at(rpc: BitcoindRpc, outpoints: Sequence[OutPoint]) -> list[Coin]:
    """The unspent outputs at these outpoints, in order. Raises CoinsSpent.

    What only the mempool spends is unspent: that is how a payment of ours is replaced.
    """
    tip_height = await rpc.call("getblockcount", answer=int)
    # With the mempool only those that are not in the chain: it hides what it spends.
    found = await _coins_found(rpc, outpoints, tip_height, mempool=False)
    absent = [outpoint for outpoint in outpoints if outpoint not in found]
    found |= await _coins_found(rpc, absent, tip_height, mempool=True)
    if spent := [outpoint for outpoint in outpoints if outpoint not in found]:
        raise CoinsSpent(spent)
    return [found[outpoint] for outpoint in outpoints]


async def previous_transactions(rpc: BitcoindRpc, coins: Sequence[Coin]) -> list[bytes | None]:
    """For each coin the transaction that made it, where the node can read that from its blocks.

    Devices that trust nobody about amounts want them, but for taproot, where signatures commit to all
    amounts (BIP341). Those in the mempool the node finds itself.
    """
    if all(coin.is_taproot for coin in coins):
        return [None] * len(coins)
    heights = {coin.outpoint.txid: coin.height for coin in coins if coin.height is not None}
    numbers = sorted(set(heights.values()))
    hashes = dict(zip(numbers, await _batch(rpc, "getblockhash", [[n] for n in numbers], str), strict=True))
    wanted = [[txid, False, hashes[height]] for txid, height in heights.items() if hashes[height] is not None]
    answers = await _batch(rpc, "getrawtransaction", wanted, str)
    found = {
        str(call[0]): octets_of(answer)
        for call, answer in zip(wanted, answers, strict=True)
        if answer is not None
    }
    return _within_bounds(coins, found)


async def mempool_spenders(rpc: BitcoindRpc, outpoints: Sequence[OutPoint]) -> dict[OutPoint, str]:
    """Outpoint -> txid of the mempool's transaction that spends it, where there is one."""
    found: dict[OutPoint, str] = {}
    for start in range(0, len(outpoints), OUTPOINTS_PER_CALL):
        some = outpoints[start : start + OUTPOINTS_PER_CALL]
        wanted = [{"txid": outpoint.txid, "vout": outpoint.vout} for outpoint in some]
        answers = await rpc.call("gettxspendingprevout", wanted, answer=list[_SpendingWire])
        for outpoint, answer in zip(some, answers, strict=True):
            if answer.spendingtxid is not None:
                found[outpoint] = answer.spendingtxid
    return found


async def _abort_scan(rpc: BitcoindRpc) -> None:
    try:
        await rpc.call("scantxoutset", "abort", answer=bool, timeout_s=ABORT_S_MAX)
    except (NodeUnavailable, NodeRefused):
        return


async def _coins_found(
    rpc: BitcoindRpc, outpoints: Sequence[OutPoint], tip_height: int, *, mempool: bool
) -> dict[OutPoint, Coin]:
    calls: list[list[Any]] = [[outpoint.txid, outpoint.vout, mempool] for outpoint in outpoints]
    wires = await _batch(rpc, "gettxout", calls, cast("type[_CoinWire]", _CoinWire | None))
    return {
        outpoint: Coin(
            outpoint=outpoint,
            amount_sat=sat_of(wire.value),
            script_pubkey=octets_of(wire.script_pubkey.hex),
            # A block that came in between puts it one too low: then its transaction is not found there, and
            # left out.
            height=tip_height - wire.confirmations + 1 if wire.confirmations else None,
        )
        for outpoint, wire in zip(outpoints, wires, strict=True)
        if wire is not None
    }


async def _batch(
    rpc: BitcoindRpc, method: str, calls: Sequence[list[Any]], answer: type[T]
) -> list[T | None]:
    """Results of one method; None in the place of a refusal."""
    size = TRANSACTIONS_PER_BATCH if method == "getrawtransaction" else COINS_PER_BATCH
    results: list[T | None] = []
    for start in range(0, len(calls), size):
        batch = [(method, call) for call in calls[start : start + size]]
        for result in await rpc.batch(batch, answer=answer):
            results.append(None if isinstance(result, NodeRefused) else result)
    return results


def _within_bounds(coins: Sequence[Coin], found: dict[str, bytes]) -> list[bytes | None]:
    """First those that cannot be signed without: only segwit's signatures commit to the amount."""
    previous: list[bytes | None] = [None] * len(coins)
    left_bytes = PREVIOUS_BYTES_MAX
    for n in sorted(range(len(coins)), key=lambda n: _is_witness(coins[n].script_pubkey)):
        transaction = found.get(coins[n].outpoint.txid)
        if transaction is not None and len(transaction) <= left_bytes:
            previous[n] = transaction
            left_bytes -= len(transaction)
    return previous


def _is_witness(script_pubkey: bytes) -> bool:
    return script_pubkey[:1] == b"\x00" or b"\x51" <= script_pubkey[:1] <= b"\x60"


def _scan(wire: "_ScanWire") -> UnspentScan:
    return UnspentScan(
        height=wire.height,
        block_hash=wire.bestblock,
        outputs=tuple(
            UnspentOutput(
                outpoint=OutPoint(one.txid, one.vout),
                amount_sat=sat_of(one.amount),
                script_pubkey=octets_of(one.script_pubkey),
                height=one.height,
                coinbase=one.coinbase,
                address_index=_index_in(one.desc),
            )
            for one in wire.unspents
        ),
    )


def _index_in(descriptor: str) -> int | None:
    """The last step of the key origin that the node writes into the descriptor of a single output."""
    step = LAST_STEP.search(descriptor)
    return int(step[1]) if step else None


class _SpendingWire(Struct, frozen=True):
    spendingtxid: str | None = None


class _ScriptWire(Struct, frozen=True):
    hex: str


class _CoinWire(Struct, frozen=True):
    value: Decimal
    confirmations: int
    script_pubkey: _ScriptWire = field(name="scriptPubKey")


class _UnspentWire(Struct, frozen=True):
    txid: str
    vout: int
    amount: Decimal
    height: int
    script_pubkey: str = field(name="scriptPubKey")
    coinbase: bool = False
    desc: str = ""


class _ScanWire(Struct, frozen=True):
    success: bool
    height: int = 0
    bestblock: str = ""
    unspents: list[_UnspentWire] = []
