"""Our own bitcoind: the calls this service makes, each typed, in integer sats and bytes.

Hashes and txids are hex in the node's RPC byte order. No wallet is used, and no `-txindex`.
Every method raises NodeUnavailable (no answer: try again later), NodeMisconfigured (a setting must change)
and, where nothing else is said, NodeRefused. Source: Bitcoin Core's RPC help and its doc/REST-interface.md.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self, cast

from msgspec import Meta, MsgspecError, Raw, Struct, field, json

from payments.bitcoind_rpc import TIMEOUT_S, BitcoindRpc
from payments.errors import AmountInvalid, BlockUnavailable, NodeMisconfigured, NodeRefused, NodeUnavailable
from payments.money import Sat, sat_from_btc
from payments.node_fitness import ChainInfo, MempoolInfo, NodeInfo
from payments.outputs import OutPoint

TRANSACTIONS_PER_BATCH = 50
"""A relayed transaction has at most 400 kB, 800 kB in hex, so a batch's answer stays under 40 MB."""
ADDRESSES_PER_BATCH = 500
TXIDS_BYTES = 64 * 1024

# Bitcoin Core's src/rpc/protocol.h.
RPC_METHOD_NOT_FOUND = -32601
RPC_MISC_ERROR = -1
RPC_INVALID_ADDRESS_OR_KEY = -5
RPC_INVALID_PARAMETER = -8
RPC_TRANSACTION_ALREADY_IN_CHAIN = -27

# The first words of sendrawtransaction's refusals, Bitcoin Core's src/validation.cpp and src/policy/rbf.cpp.
INPUTS_MISSING_REASONS = ("bad-txns-inputs-missingorspent", "missing-inputs")
CONFLICT_REASONS = (
    "txn-mempool-conflict",
    "insufficient fee",
    "replacement-",
    "too many potential replacements",
    "bad-txns-spends-conflicting-tx",
)
SAME_TXID_IN_MEMPOOL_REASON = "txn-same-nonwitness-data-in-mempool"


class NetworkInfo(Struct, frozen=True, kw_only=True):
    """`getnetworkinfo`."""

    version: int
    """290500 for 29.5."""
    user_agent: str = field(name="subversion")
    connections: int
    network_active: bool = field(name="networkactive")
    time_offset_s: int = field(name="timeoffset")
    """By how much the peers' clocks are ahead of the node's."""


class BlockHeader(Struct, frozen=True, kw_only=True):
    """`getblockheader`."""

    hash: str
    height: int
    confirmations: int
    """-1 when the block is not in the active chain."""
    time: int
    previous_hash: str | None = field(default=None, name="previousblockhash")
    """None for the genesis block."""


class Peer(Struct, frozen=True, kw_only=True):
    """One of `getpeerinfo`."""

    id: int
    services: list[str] = field(name="servicesnames")

    @property
    def has_all_blocks(self) -> bool:
        return "NETWORK" in self.services


@dataclass(frozen=True, slots=True, kw_only=True)
class MempoolSnapshot:
    """`getrawmempool false true`: every event with a sequence number below `sequence` is in it already."""

    txids: list[str]
    sequence: int


class DescriptorInfo(Struct, frozen=True, kw_only=True):
    """`getdescriptorinfo`."""

    descriptor: str
    """In canonical form with its checksum, without private keys."""
    checksum: str
    is_range: bool = field(name="isrange")
    is_solvable: bool = field(name="issolvable")
    has_private_keys: bool = field(name="hasprivatekeys")
    multipath_expansion: list[str] = field(default_factory=list)
    """A `<0;1>` descriptor's branches in order; empty for any other."""


class ZmqNotification(Struct, frozen=True, kw_only=True):
    """One of `getzmqnotifications`."""

    type: str
    """Such as `pubsequence`."""
    address: str
    hwm: int


@dataclass(frozen=True, slots=True)
class MempoolEntry:
    """`getmempoolentry`."""

    fee_sat: Sat
    vsize_vbytes: int
    entered_at: int
    ancestor_count: int
    """With itself: 1 when it spends confirmed outputs only."""
    descendant_count: int
    descendant_fees_sat: Sat
    """With its own."""


@dataclass(frozen=True, slots=True)
class SeenOutput:
    """`gettxout`."""

    amount_sat: Sat
    script_pubkey: bytes
    coinbase: bool
    confirmations: int
    """0 in the mempool."""
    best_hash: str
    """The tip of which this is said."""


class BroadcastOutcome(StrEnum):
    ACCEPTED = "accepted"
    """In our node's mempool now, newly or already."""
    IN_CHAIN = "in-chain"
    """Confirmed already, with outputs unspent."""
    CONFLICT = "conflict"
    """A transaction in the mempool spends an input and may not be replaced by this one."""
    INPUTS_MISSING = "inputs-missing"
    """An input is unknown or spent in the chain: a parent is missing, or a double spend was mined."""
    REJECTED = "rejected"
    """Invalid, or against the node's relay policy (feerate, dust); `message` says which."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    outcome: BroadcastOutcome
    message: str = ""
    """The node's reason, empty when accepted."""

    @property
    def is_there(self) -> bool:
        """Whether our node has it now, in its mempool or in a block."""
        return self.outcome in (BroadcastOutcome.ACCEPTED, BroadcastOutcome.IN_CHAIN)


class Bitcoind:
    """Our node. Owns its connections: use `async with`, or `await close()` when done."""

    def __init__(
        self,
        url: str,
        *,
        cookie_file: Path | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`url` is http://host:port; credentials are `cookie_file`, or `user` and `password`."""
        self._rpc = BitcoindRpc(
            url, cookie_file=cookie_file, user=user, password=password, timeout_s=timeout_s
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._rpc.close()

    @property
    def rpc(self) -> BitcoindRpc:
        """For the modules that type other calls, on the same connections."""
        return self._rpc

    # The chain

    async def chain_info(self) -> ChainInfo:
        return await self._rpc.call("getblockchaininfo", answer=ChainInfo)

    async def network_info(self) -> NetworkInfo:
        return await self._rpc.call("getnetworkinfo", answer=NetworkInfo)

    async def node_info(self) -> NodeInfo:
        """What `node_fitness.fitness` judges."""
        return NodeInfo(chain=await self.chain_info(), mempool=await self.mempool_info())

    async def block_hash(self, height: int) -> str | None:
        """The active chain's block at `height`; None above the tip."""
        try:
            return await self._rpc.call("getblockhash", height, answer=str)
        except NodeRefused as exc:
            if exc.code == RPC_INVALID_PARAMETER:
                return None
            raise

    async def block_header(self, block_hash: str) -> BlockHeader | None:
        """None for a block that the node has never heard of; blocks that left the active chain are kept."""
        try:
            return await self._rpc.call("getblockheader", block_hash, answer=BlockHeader)
        except NodeRefused as exc:
            if exc.code == RPC_INVALID_ADDRESS_OR_KEY:
                return None
            raise

    async def raw_block(self, block_hash: str) -> bytes:
        """The serialised block, over REST. Raises BlockUnavailable if the node lacks it or has pruned it."""
        status, body = await self._rpc.get(f"/rest/block/{block_hash}.bin")
        if status == 200:
            return body
        reason = body[:200].decode("utf-8", "replace").strip()
        if block_hash not in reason:
            raise NodeMisconfigured(
                "the node does not serve blocks over REST: set `rest=1` in its bitcoin.conf, restart it"
            )
        raise BlockUnavailable(block_hash, reason)

    async def peers(self) -> list[Peer]:
        return await self._rpc.call("getpeerinfo", answer=list[Peer])

    async def fetch_block(self, block_hash: str, peer_id: int) -> bool:
        """Ask a peer for a block whose header is known, such as one that was pruned. It comes in a while.

        False: the peer has left or will not be asked, or the block is here already.
        """
        try:
            await self._rpc.call("getblockfrompeer", block_hash, peer_id, answer=dict[str, object])
        except NodeRefused as exc:
            if exc.code == RPC_MISC_ERROR:
                return False
            raise
        return True

    # The mempool

    async def mempool_info(self) -> MempoolInfo:
        return await self._rpc.call("getmempoolinfo", answer=MempoolInfo)

    async def mempool_feerate_min(self) -> int:
        """Below it no transaction enters the mempool now, in sats per 1,000 vbytes."""
        wire = await self._rpc.call("getmempoolinfo", answer=_MempoolFeerateWire)
        return sat_of(wire.mempoolminfee)

    async def raw_mempool(self) -> MempoolSnapshot:
        wire = await self._rpc.call("getrawmempool", False, True, answer=_MempoolWire)
        txids = await asyncio.to_thread(_txids, bytes(wire.txids))
        return MempoolSnapshot(txids=txids, sequence=wire.mempool_sequence)

    async def raw_transactions(self, txids: Sequence[str]) -> dict[str, bytes | None]:
        """The serialised transactions of the mempool; None for those that have left it."""
        found: dict[str, bytes | None] = {}
        for start in range(0, len(txids), TRANSACTIONS_PER_BATCH):
            wanted = txids[start : start + TRANSACTIONS_PER_BATCH]
            answers = await self._rpc.batch([("getrawtransaction", [txid]) for txid in wanted], answer=str)
            for txid, answer in zip(wanted, answers, strict=True):
                found[txid] = _bytes_unless_absent(answer)
        return found

    async def mempool_entry(self, txid: str) -> MempoolEntry | None:
        """None if the transaction is not in the mempool."""
        try:
            wire = await self._rpc.call("getmempoolentry", txid, answer=_MempoolEntryWire)
        except NodeRefused as exc:
            if exc.code == RPC_INVALID_ADDRESS_OR_KEY:
                return None
            raise
        return MempoolEntry(
            fee_sat=sat_of(wire.fees.base),
            vsize_vbytes=wire.vsize,
            entered_at=wire.time,
            ancestor_count=wire.ancestorcount,
            descendant_count=wire.descendantcount,
            descendant_fees_sat=sat_of(wire.fees.descendant),
        )

    async def send_raw_transaction(self, raw: bytes) -> Broadcast:
        """Offer a serialised transaction to the node and its peers. The node's refusals are values."""
        try:
            # 0: whatever feerate a buyer chose is the buyer's business.
            await self._rpc.call("sendrawtransaction", raw.hex(), 0, answer=str)
        except NodeRefused as exc:
            return Broadcast(_broadcast_outcome(exc), exc.message)
        return Broadcast(BroadcastOutcome.ACCEPTED)

    async def spending_transactions(self, outpoints: Sequence[OutPoint]) -> list[str]:
        """Txids of the mempool's transactions that spend any of these outpoints."""
        wanted = [{"txid": outpoint.txid, "vout": outpoint.vout} for outpoint in outpoints]
        answers = await self._rpc.call("gettxspendingprevout", wanted, answer=list[_SpendingWire])
        return [answer.spendingtxid for answer in answers if answer.spendingtxid is not None]

    async def unspent_output(self, outpoint: OutPoint) -> SeenOutput | None:
        """An output of the chain or the mempool that neither of them spends."""
        call = ("gettxout", [outpoint.txid, outpoint.vout, True])
        (wire,) = await self._rpc.batch([call], answer=cast(type[_UnspentWire | None], _UnspentWire | None))
        if isinstance(wire, NodeRefused):
            raise wire
        if wire is None:
            return None
        return SeenOutput(
            amount_sat=sat_of(wire.value),
            script_pubkey=octets_of(wire.script.hex),
            coinbase=wire.coinbase,
            confirmations=wire.confirmations,
            best_hash=wire.bestblock,
        )

    async def transaction_in_block(self, txid: str, block_hash: str) -> bytes | None:
        """A serialised transaction; None if that block does not have it. Needs no `-txindex`."""
        try:
            answer = await self._rpc.call("getrawtransaction", txid, False, block_hash, answer=str)
        except NodeRefused as exc:
            if exc.code == RPC_INVALID_ADDRESS_OR_KEY:
                return None
            raise
        return octets_of(answer)

    async def estimate_feerate(self, blocks: int) -> int | None:
        """Sats per 1,000 vbytes to confirm within `blocks`; None while the node has seen too little."""
        estimate = await self._rpc.call("estimatesmartfee", blocks, answer=_FeeEstimateWire)
        return None if estimate.feerate is None else sat_of(estimate.feerate)

    # Descriptors and addresses

    async def descriptor_info(self, descriptor: str) -> DescriptorInfo:
        return await self._rpc.call("getdescriptorinfo", descriptor, answer=DescriptorInfo)

    async def derive_addresses(self, descriptor: str, *, start: int, end: int) -> list[str]:
        """The addresses at indexes `start` to `end`, both included; `descriptor` carries its checksum."""
        return await self._rpc.call("deriveaddresses", descriptor, [start, end], answer=list[str])

    async def validate_address(self, address: str) -> bytes | None:
        """The address's scriptPubKey; None if it is no address of the node's network."""
        return (await self.validate_addresses([address]))[0]

    async def validate_addresses(self, addresses: Sequence[str]) -> list[bytes | None]:
        """As `validate_address`, for many, in order."""
        scripts: list[bytes | None] = []
        for start in range(0, len(addresses), ADDRESSES_PER_BATCH):
            wanted = addresses[start : start + ADDRESSES_PER_BATCH]
            answers = await self._rpc.batch([("validateaddress", [a]) for a in wanted], answer=_AddressWire)
            scripts += [_script_pubkey(answer) for answer in answers]
        return scripts

    async def loaded_wallets(self) -> list[str]:
        """Names of the wallets the node has open; none when it was built or started without wallets."""
        try:
            return await self._rpc.call("listwallets", answer=list[str])
        except NodeRefused as exc:
            if exc.code == RPC_METHOD_NOT_FOUND:
                return []
            raise

    async def zmq_notifications(self) -> list[ZmqNotification]:
        return await self._rpc.call("getzmqnotifications", answer=list[ZmqNotification])


class _MempoolWire(Struct, frozen=True):
    txids: Raw
    mempool_sequence: int


def _txids(array: bytes) -> list[str]:
    """The txids of a JSON array, read in pieces: a hundred thousand at once would hold up all threads."""
    txids: list[str] = []
    try:
        start, last = array.index(b"[") + 1, array.rindex(b"]")
        while start < last:
            end = array.find(b",", min(start + TXIDS_BYTES, last), last)
            end = last if end < 0 else end
            txids += json.decode(b"[%b]" % array[start:end], type=list[str])
            start = end + 1
    except (ValueError, MsgspecError) as exc:
        raise NodeUnavailable(f"the node's mempool is not what Bitcoin Core lists: {exc}") from exc
    return txids


class _SpendingWire(Struct, frozen=True):
    spendingtxid: str | None = None


class _ScriptWire(Struct, frozen=True):
    hex: str


class _UnspentWire(Struct, frozen=True):
    bestblock: str
    confirmations: int
    value: Decimal
    script: _ScriptWire = field(name="scriptPubKey")
    coinbase: bool


class _MempoolFeerateWire(Struct, frozen=True):
    mempoolminfee: Decimal


class _FeesWire(Struct, frozen=True):
    base: Decimal
    descendant: Decimal


class _MempoolEntryWire(Struct, frozen=True):
    fees: _FeesWire
    vsize: Annotated[int, Meta(ge=1)]
    time: int
    ancestorcount: int
    descendantcount: int


class _FeeEstimateWire(Struct, frozen=True):
    feerate: Decimal | None = None


class _AddressWire(Struct, frozen=True):
    isvalid: bool
    script_pubkey: str = field(default="", name="scriptPubKey")


def _bytes_unless_absent(answer: str | NodeRefused) -> bytes | None:
    if not isinstance(answer, NodeRefused):
        return octets_of(answer)
    if answer.code == RPC_INVALID_ADDRESS_OR_KEY:
        return None
    raise answer


def _script_pubkey(answer: _AddressWire | NodeRefused) -> bytes | None:
    if isinstance(answer, NodeRefused):
        raise answer
    return octets_of(answer.script_pubkey) if answer.isvalid else None


def octets_of(text: str) -> bytes:
    """Raises NodeUnavailable for what no node of Bitcoin Core's kind says."""
    try:
        return bytes.fromhex(text)
    except ValueError as exc:
        raise NodeUnavailable("the node gave what is not hex where Bitcoin Core gives hex") from exc


def sat_of(amount_btc: Decimal) -> Sat:
    """Raises NodeUnavailable, as `octets_of`."""
    try:
        return sat_from_btc(amount_btc)
    except AmountInvalid as exc:
        raise NodeUnavailable(f"the node gave an impossible amount: {exc}") from exc


def _broadcast_outcome(refusal: NodeRefused) -> BroadcastOutcome:
    if refusal.code == RPC_TRANSACTION_ALREADY_IN_CHAIN:
        return BroadcastOutcome.IN_CHAIN
    if refusal.message.startswith(SAME_TXID_IN_MEMPOOL_REASON):
        return BroadcastOutcome.ACCEPTED
    if refusal.message.startswith(INPUTS_MISSING_REASONS):
        return BroadcastOutcome.INPUTS_MISSING
    if refusal.message.startswith(CONFLICT_REASONS):
        return BroadcastOutcome.CONFLICT
    return BroadcastOutcome.REJECTED
