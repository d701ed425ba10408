"""What the operator sees of payouts: what waits and why, batches under way, free coins. Reads only."""

from collections.abc import Sequence

from msgspec import Struct
from sqlalchemy import select

from bitcache.config import HostedConfig
from bitcache.db.tables import accounts
from bitcache.errors import NotFound
from bitcache.node_state import node_state
from payments import batch_store, chain_facts, coins, ledger, payable, payout_store
from payments.batch_store import Batch, Version
from payments.outputs import Presence
from payments.payout import BatchState, Payout, State
from payments.ports import Transaction
from payments.tables import batch_inputs, payout_batches

LISTED = (State.REQUESTED, State.APPROVED, State.BATCHED)


class PayoutLine(Struct, kw_only=True):
    payout_id: str
    kind: str
    """`seller`, `refund` or `operator`."""
    state: str
    amount_sat: int
    """The network's fee is taken out of it."""
    address: str
    seller: str | None
    """Name of the seller whose money it is, or whose sale is refunded."""
    invoice_id: str | None
    requested_at: int
    ready_at: int
    """Not paid before, Unix seconds."""
    decided_by: str | None
    reason: str | None
    batch_id: str | None
    waits: str | None
    """For what, in words; None: it is over."""


class BatchLine(Struct, kw_only=True):
    batch_id: str
    state: str
    created_at: int
    payouts: int
    amount_sat: int
    """Of its payouts together."""
    fee_sat: int
    """All that goes to the network, of the version in a block, else of the newest."""
    feerate_sat_vb: float
    change_sat: int
    exported: bool
    txid: str | None
    """Of the version in a block, else of the newest that is signed."""
    confirmations: int
    stands: str
    """For what it waits, or that it is over, in words."""
    trouble: str | None


class VersionLine(Struct, kw_only=True):
    n: int
    created_at: int
    feerate_sat_vb: float
    fee_sat: int
    signed: bool
    txid: str | None
    presence: str | None
    height: int | None


class ShareLine(Struct, kw_only=True):
    payout_id: str
    address: str
    vout: int
    amount_sat: int
    fee_sat: int
    arrives_sat: int


class InputLine(Struct, kw_only=True):
    outpoint: str
    amount_sat: int


class BatchDetails(Struct, kw_only=True):
    batch: BatchLine
    versions: list[VersionLine]
    shares: list[ShareLine]
    """Of the version in a block, else of the newest."""
    inputs: list[InputLine]
    left_sat: int
    """Change too small for an output: the network has it."""


class PayoutDetails(Struct, kw_only=True):
    payout: PayoutLine
    share: ShareLine | None
    """What it gets of its batch, and pays of the fee."""
    batch: BatchLine | None


class Overview(Struct, kw_only=True):
    stopped: str | None
    """Why nothing is paid out now."""
    payouts: list[PayoutLine]
    batches: list[BatchLine]
    free_coins: int
    free_sat: int
    """Deep enough, and in no batch."""
    operator_payable_sat: int
    """The operator's own, for `bitcache payouts withdraw`."""


async def overview(tx: Transaction, hosted: HostedConfig, *, now: int, everything: bool = False) -> Overview:
    """What is not over yet; `everything`: what is, too."""
    states = tuple(State) if everything else LISTED
    shown = await payout_store.payouts_in(tx, *states)
    chosen = payout_batches.c.id.is_not(None) if everything else payout_batches.c.state == BatchState.BUILT
    batches = await batch_store.batches(tx, chosen)
    free = await coins.free(tx, depth=hosted.depth)
    return Overview(
        stopped=await stopped(tx, now=now),
        payouts=await _payout_lines(tx, shown, {one.id: one for one in batches}, hosted.depth, now),
        batches=[await _batch_line(tx, one, hosted.depth) for one in batches],
        free_coins=len(free),
        free_sat=sum(coin.amount_sat for coin in free),
        operator_payable_sat=max(0, await payable.payable_sat(tx, ledger.operator(), depth=hosted.depth)),
    )


async def details(
    tx: Transaction, hosted: HostedConfig, row_id: str, *, now: int
) -> PayoutDetails | BatchDetails:
    """Of the payout or the batch with this id. Raises NotFound."""
    payout = await payout_store.find_payout(tx, row_id)
    if payout is None:
        found = await batch_store.batches(tx, payout_batches.c.id == row_id)
        if not found:
            raise NotFound("payout or batch", row_id)
        return await batch_details(tx, hosted, found[0])
    batch = None if payout.batch_id is None else await batch_store.load_batch(tx, payout.batch_id)
    (line,) = await _payout_lines(tx, [payout], {batch.id: batch} if batch else {}, hosted.depth, now)
    shares = await _share_lines(tx, batch) if batch else []
    return PayoutDetails(
        payout=line,
        share=next((share for share in shares if share.payout_id == payout.id), None),
        batch=await _batch_line(tx, batch, hosted.depth) if batch else None,
    )


async def batch_details(tx: Transaction, hosted: HostedConfig, batch: Batch) -> BatchDetails:
    spent = await tx.execute(
        select(batch_inputs).where(batch_inputs.c.batch_id == batch.id).order_by(batch_inputs.c.position)
    )
    return BatchDetails(
        batch=await _batch_line(tx, batch, hosted.depth),
        versions=[
            VersionLine(
                n=one.n,
                created_at=one.created_at,
                feerate_sat_vb=one.feerate_sat_kvb / 1_000,
                fee_sat=one.fee_sat,
                signed=one.raw is not None,
                txid=one.txid,
                presence=None if one.presence is None else one.presence.value,
                height=one.height,
            )
            for one in batch.versions
        ],
        shares=await _share_lines(tx, batch),
        inputs=[
            InputLine(outpoint=f"{row.txid}:{row.vout}", amount_sat=row.amount_sat) for row in spent.all()
        ],
        left_sat=batch.left_sat,
    )


async def stopped(tx: Transaction, *, now: int) -> str | None:
    """Why nothing is paid out now, in words for the operator."""
    return await payable.stopped(tx) or (await node_state(tx, now)).trouble


def _why_waiting(payout: Payout, stands: str | None, now: int) -> str | None:
    """Pure."""
    match payout.state:
        case State.REQUESTED:
            return f"for your approval: bitcache payouts approve {payout.id}"
        case State.APPROVED if payout.ready_at > now:
            return "for its time"
        case State.APPROVED:
            return payout.trouble or "for the next batch"
        case State.BATCHED:
            return stands
        case State.DONE | State.CANCELLED | State.DECLINED:
            return None


def _where(batch: Batch, confirmations: int, depth: int) -> str:
    """For what it waits, or that it is over. Pure."""
    if batch.state is BatchState.DEAD:
        return "given up: its payouts go with another batch"
    if batch.state is BatchState.DONE:
        return f"mined, {confirmations:,} confirmations deep"
    if confirmations:
        return f"for confirmations: it has {confirmations:,} of {depth}"
    shown = _shown(batch)
    if shown.raw is None:
        return "for the signed PSBT" if batch.exported_at is not None else "for its signatures"
    where = "for a block" if shown.presence is Presence.MEMPOOL else "to be sent"
    return where if batch.newest.raw is not None else f"{where}, and its newest version for signatures"


def _shown(batch: Batch) -> Version:
    """The version that is in a block, else the newest that is signed, else the newest."""
    signed = [version for version in batch.versions if version.raw is not None]
    return batch.mined or (signed[-1] if signed else batch.newest)


async def _payout_lines(
    tx: Transaction, shown: Sequence[Payout], batches: dict[str, Batch], depth: int, now: int
) -> list[PayoutLine]:
    sellers = (await tx.execute(select(accounts.c.id, accounts.c.name))).all() if shown else []
    names = {row.id: row.name for row in sellers}
    height = await chain_facts.tip_height(tx)
    stands = {id_: _where(batch, _confirmations(batch, height), depth) for id_, batch in batches.items()}
    return [
        PayoutLine(
            payout_id=payout.id,
            kind=payout.kind.value,
            state=payout.state.value,
            amount_sat=payout.amount_sat,
            address=payout.address,
            seller=None if payout.seller_id is None else names.get(payout.seller_id),
            invoice_id=payout.invoice_id,
            requested_at=payout.requested_at,
            ready_at=payout.ready_at,
            decided_by=payout.decided_by,
            reason=payout.reason,
            batch_id=payout.batch_id,
            waits=_why_waiting(payout, stands.get(payout.batch_id or ""), now),
        )
        for payout in shown
    ]


async def _batch_line(tx: Transaction, batch: Batch, depth: int) -> BatchLine:
    confirmations = _confirmations(batch, await chain_facts.tip_height(tx))
    priced = batch.mined or batch.newest
    shares = await batch_store.shares_of(tx, batch.id, priced.n)
    return BatchLine(
        batch_id=batch.id,
        state=batch.state.value,
        created_at=batch.created_at,
        payouts=len(shares),
        amount_sat=sum(share.arrives_sat + share.fee_sat for share in shares),
        fee_sat=priced.fee_sat,
        feerate_sat_vb=priced.feerate_sat_kvb / 1_000,
        change_sat=batch.change_sat,
        exported=batch.exported_at is not None,
        txid=_shown(batch).txid,
        confirmations=confirmations,
        stands=_where(batch, confirmations, depth),
        trouble=batch.trouble,
    )


async def _share_lines(tx: Transaction, batch: Batch) -> list[ShareLine]:
    shares = await batch_store.shares_of(tx, batch.id, (batch.mined or batch.newest).n)
    paid = await payout_store.payouts_of(tx, [share.payout_id for share in shares])
    addresses = {payout.id: payout.address for payout in paid}
    return [
        ShareLine(
            payout_id=share.payout_id,
            address=addresses[share.payout_id],
            vout=share.vout,
            amount_sat=share.arrives_sat + share.fee_sat,
            fee_sat=share.fee_sat,
            arrives_sat=share.arrives_sat,
        )
        for share in shares
    ]


def _confirmations(batch: Batch, tip_height: int) -> int:
    mined = batch.mined
    return 0 if mined is None or mined.height is None else tip_height - mined.height + 1
