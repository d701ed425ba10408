"""Payouts and their batches in the database: rows to values and back. Decides nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Row, and_, func, insert, or_, select, update

from payments.errors import PayoutNotFound
from payments.money import Sat
from payments.outputs import OutPoint, Presence
from payments.payout import BatchState, Coin, Kind, Payout, Share, State
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import (
    batch_inputs,
    paying_transactions,
    payout_batches,
    payout_versions,
    payouts,
    version_shares,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One transaction of a batch; the newest has the highest fee."""

    batch_id: str
    n: int
    created_at: int
    feerate_sat_kvb: int
    fee_sat: Sat
    unsigned: bytes
    psbt: str
    raw: bytes | None
    """Signed; None until then."""
    txid: str | None
    signed_at: int | None
    presence: Presence | None
    """Where our node sees it; None while it is not signed."""
    height: int | None
    """Of its block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`inputs`, `change_sat` and the payouts are those of every version."""

    id: str
    created_at: int
    state: BatchState
    change_sat: Sat
    change_script_pubkey: bytes | None
    exported_at: int | None
    trouble: str | None
    inputs: tuple[OutPoint, ...]
    inputs_sat: Sat
    versions: tuple[Version, ...]
    """Oldest first; never empty."""
    shares_fee_sat: Sat
    """What of the newest version's fee the payouts bear."""
    whole: bool
    """Whether all that it pays are in it. None of a dead batch is, until one of its versions is mined all the
    same."""

    @property
    def newest(self) -> Version:
        return self.versions[-1]

    @property
    def mined(self) -> Version | None:
        """The version that is in a block of the active chain."""
        return next((one for one in self.versions if one.presence is Presence.BLOCK), None)

    @property
    def may_be_sent(self) -> bool:
        """By somebody else than us, or by us: it was signed, or given out to be signed."""
        return self.exported_at is not None or any(one.raw is not None for one in self.versions)

    @property
    def left_sat(self) -> Sat:
        """Too little for change: the operator's part of each version's fee."""
        return Sat(self.newest.fee_sat - self.shares_fee_sat)


async def insert_payout(tx: Transaction, payout: Payout) -> None:
    await tx.execute(
        insert(payouts).values(
            **{column.name: getattr(payout, column.name) for column in payouts.c},
        )
    )


async def find_payout(tx: Transaction, payout_id: str) -> Payout | None:
    found = await payouts_of(tx, [payout_id])
    return found[0] if found else None


async def load_payout(tx: Transaction, payout_id: str) -> Payout:
    """Raises PayoutNotFound."""
    found = await find_payout(tx, payout_id)
    if found is None:
        raise PayoutNotFound(f"there is no payout {payout_id}")
    return found


async def payouts_of(tx: Transaction, payout_ids: Sequence[str]) -> list[Payout]:
    """In the order of their ids; those that exist."""
    found: list[Payout] = []
    for some in portions(payout_ids):
        chosen = select(payouts).where(payouts.c.id.in_(some))
        rows = await tx.execute(chosen.order_by(payouts.c.id))
        found += [payout_of(row) for row in rows.all()]
    return found


async def payouts_in(tx: Transaction, *states: State) -> list[Payout]:
    """In these states: those ready first come first."""
    chosen = select(payouts).where(payouts.c.state.in_(states))
    rows = await tx.execute(chosen.order_by(payouts.c.ready_at, payouts.c.requested_at, payouts.c.id))
    return [payout_of(row) for row in rows.all()]


async def payouts_of_batch(tx: Transaction, batch_id: str) -> list[Payout]:
    rows = await tx.execute(select(payouts).where(payouts.c.batch_id == batch_id).order_by(payouts.c.id))
    return [payout_of(row) for row in rows.all()]


async def page(
    tx: Transaction,
    *,
    after: str | None = None,
    limit: int,
    seller_id: str | None = None,
    kind: Kind | None = None,
) -> list[Payout]:
    """Newest first, those after the payout `after`; of all, or of one seller, of all kinds or one."""
    chosen = select(payouts)
    if seller_id is not None:
        chosen = chosen.where(payouts.c.seller_id == seller_id)
    if kind is not None:
        chosen = chosen.where(payouts.c.kind == kind)
    if after is not None:
        last = await load_payout(tx, after)
        chosen = chosen.where(
            or_(
                payouts.c.requested_at < last.requested_at,
                and_(payouts.c.requested_at == last.requested_at, payouts.c.id < last.id),
            )
        )
    newest_first = chosen.order_by(payouts.c.requested_at.desc(), payouts.c.id.desc()).limit(limit)
    return [payout_of(row) for row in (await tx.execute(newest_first)).all()]


async def change_payouts(tx: Transaction, payout_ids: Iterable[str], **values: object) -> None:
    for some in portions(payout_ids):
        await tx.execute(update(payouts).where(payouts.c.id.in_(some)).values(**values))


async def insert_batch(
    tx: Transaction,
    *,
    batch_id: str,
    coins: Sequence[Coin],
    change_sat: Sat,
    change_script_pubkey: bytes | None,
    now: int,
) -> None:
    await tx.execute(
        insert(payout_batches).values(
            id=batch_id,
            created_at=now,
            state=BatchState.BUILT,
            change_sat=change_sat,
            change_script_pubkey=change_script_pubkey,
        )
    )
    await tx.execute(
        insert(batch_inputs),
        [
            {
                "txid": coin.outpoint.txid,
                "vout": coin.outpoint.vout,
                "batch_id": batch_id,
                "position": position,
                "amount_sat": coin.amount_sat,
            }
            for position, coin in enumerate(coins)
        ],
    )


async def insert_version(
    tx: Transaction,
    *,
    batch_id: str,
    n: int,
    feerate_sat_kvb: int,
    fee_sat: Sat,
    unsigned: bytes,
    psbt: str,
    shares: Sequence[Share],
    now: int,
) -> None:
    await tx.execute(
        insert(payout_versions).values(
            batch_id=batch_id,
            n=n,
            created_at=now,
            feerate_sat_kvb=feerate_sat_kvb,
            fee_sat=fee_sat,
            unsigned=unsigned,
            psbt=psbt,
        )
    )
    await tx.execute(
        insert(version_shares),
        [
            {
                "batch_id": batch_id,
                "n": n,
                "payout_id": share.payout_id,
                "vout": share.vout,
                "arrives_sat": share.arrives_sat,
                "fee_sat": share.fee_sat,
            }
            for share in shares
        ],
    )


async def keep_signed(tx: Transaction, batch_id: str, n: int, *, raw: bytes, txid: str, now: int) -> None:
    await tx.execute(
        update(payout_versions)
        .where(payout_versions.c.batch_id == batch_id, payout_versions.c.n == n)
        .values(raw=raw, txid=txid, signed_at=now)
    )


async def shares_of(tx: Transaction, batch_id: str, n: int) -> list[Share]:
    """In the order of the outputs."""
    rows = await tx.execute(
        select(version_shares)
        .where(version_shares.c.batch_id == batch_id, version_shares.c.n == n)
        .order_by(version_shares.c.vout)
    )
    return [share_of(row) for row in rows.all()]


async def astray_sat(tx: Transaction, txid: str) -> Sat | None:
    """What this transaction takes for payouts that are not in its batch now; None: it is no version."""
    version = (await tx.execute(select(payout_versions).where(payout_versions.c.txid == txid))).one_or_none()
    if version is None:
        return None
    taken: int | None = await tx.scalar(
        select(func.sum(version_shares.c.arrives_sat + version_shares.c.fee_sat))
        .join(payouts, payouts.c.id == version_shares.c.payout_id)
        .where(
            version_shares.c.batch_id == version.batch_id,
            version_shares.c.n == version.n,
            payouts.c.batch_id.is_distinct_from(version.batch_id),
        )
    )
    return Sat(int(taken or 0))


async def load_batch(tx: Transaction, batch_id: str) -> Batch:
    """Raises PayoutNotFound."""
    found = await batches(tx, payout_batches.c.id == batch_id)
    if not found:
        raise PayoutNotFound(f"there is no batch {batch_id}")
    return found[0]


async def batches(tx: Transaction, chosen: ColumnElement[bool], *, limit: int | None = None) -> list[Batch]:
    """Those for which the condition `chosen` on `payout_batches` holds, newest first."""
    query = select(payout_batches).where(chosen)
    newest_first = query.order_by(payout_batches.c.created_at.desc(), payout_batches.c.id.desc())
    rows = (await tx.execute(newest_first.limit(limit) if limit else newest_first)).all()
    return [await _batch(tx, row) for row in rows]


async def has_change(tx: Transaction, script_pubkey: bytes) -> bool:
    """Whether a batch has its change there."""
    taken = select(payout_batches.c.id).where(payout_batches.c.change_script_pubkey == script_pubkey)
    return (await tx.execute(taken.limit(1))).first() is not None


async def change_batch(tx: Transaction, batch_id: str, **values: object) -> None:
    await tx.execute(update(payout_batches).where(payout_batches.c.id == batch_id).values(**values))


def payout_of(row: Row[tuple[object, ...]]) -> Payout:
    return Payout(
        id=row.id,
        kind=Kind(row.kind),
        seller_id=row.seller_id,
        invoice_id=row.invoice_id,
        account=row.account,
        amount_sat=Sat(row.amount_sat),
        address=row.address,
        script_pubkey=row.script_pubkey,
        state=State(row.state),
        requested_at=row.requested_at,
        ready_at=row.ready_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
        reason=row.reason,
        batch_id=row.batch_id,
        trouble=row.trouble,
    )


def share_of(row: Row[tuple[object, ...]]) -> Share:
    return Share(row.payout_id, row.vout, Sat(row.arrives_sat), Sat(row.fee_sat))


async def _batch(tx: Transaction, row: Row[tuple[object, ...]]) -> Batch:
    inputs = (
        await tx.execute(
            select(batch_inputs).where(batch_inputs.c.batch_id == row.id).order_by(batch_inputs.c.position)
        )
    ).all()
    versions = (
        await tx.execute(
            select(payout_versions, paying_transactions.c.presence, paying_transactions.c.height)
            .outerjoin(paying_transactions, paying_transactions.c.txid == payout_versions.c.txid)
            .where(payout_versions.c.batch_id == row.id)
            .order_by(payout_versions.c.n)
        )
    ).all()
    shares = await shares_of(tx, row.id, versions[-1].n)
    members = await tx.scalar(select(func.count()).where(payouts.c.batch_id == row.id))
    return Batch(
        id=row.id,
        created_at=row.created_at,
        state=BatchState(row.state),
        change_sat=Sat(row.change_sat),
        change_script_pubkey=row.change_script_pubkey,
        exported_at=row.exported_at,
        trouble=row.trouble,
        inputs=tuple(OutPoint(one.txid, one.vout) for one in inputs),
        inputs_sat=Sat(sum(one.amount_sat for one in inputs)),
        versions=tuple(_version(one) for one in versions),
        shares_fee_sat=Sat(sum(share.fee_sat for share in shares)),
        whole=members == len(shares),
    )


def _version(row: Row[tuple[object, ...]]) -> Version:
    return Version(
        batch_id=row.batch_id,
        n=row.n,
        created_at=row.created_at,
        feerate_sat_kvb=row.feerate_sat_kvb,
        fee_sat=Sat(row.fee_sat),
        unsigned=row.unsigned,
        psbt=row.psbt,
        raw=row.raw,
        txid=row.txid,
        signed_at=row.signed_at,
        presence=None if row.presence is None else Presence(row.presence),
        height=row.height,
    )
