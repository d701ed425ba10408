"""Batches of payouts and their versions in the database: rows to values and back. Decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, insert, select, update

from payments.errors import PayoutNotFound
from payments.money import Sat
from payments.outputs import OutPoint, Presence
from payments.payout import BatchState, Coin, Share
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
    return await _filled(tx, rows)


async def has_change(tx: Transaction, script_pubkey: bytes) -> bool:
    """Whether a batch has its change there."""
    taken = select(payout_batches.c.id).where(payout_batches.c.change_script_pubkey == script_pubkey)
    return (await tx.execute(taken.limit(1))).first() is not None


async def change_batch(tx: Transaction, batch_id: str, **values: object) -> None:
    await tx.execute(update(payout_batches).where(payout_batches.c.id == batch_id).values(**values))


def share_of(row: Row[tuple[object, ...]]) -> Share:
    return Share(row.payout_id, row.vout, Sat(row.arrives_sat), Sat(row.fee_sat))


async def _filled(tx: Transaction, rows: Sequence[Row[tuple[object, ...]]]) -> list[Batch]:
    """In a fixed number of queries, however many they are."""
    ids = [row.id for row in rows]
    inputs: dict[str, list[Row[tuple[object, ...]]]] = {}
    versions: dict[str, list[Version]] = {}
    borne: dict[tuple[str, int], tuple[int, int]] = {}
    members: dict[str, int] = {}
    for some in portions(ids):
        of_batches = select(batch_inputs).where(batch_inputs.c.batch_id.in_(some))
        for row in (await tx.execute(of_batches.order_by(batch_inputs.c.position))).all():
            inputs.setdefault(row.batch_id, []).append(row)
        for row in (await tx.execute(_versions().where(payout_versions.c.batch_id.in_(some)))).all():
            versions.setdefault(row.batch_id, []).append(_version(row))
        for row in (await tx.execute(_borne().where(version_shares.c.batch_id.in_(some)))).all():
            borne[row.batch_id, row.n] = int(row.fee_sat), row.shares
        counted = select(payouts.c.batch_id, func.count().label("payouts"))
        of_batches = counted.where(payouts.c.batch_id.in_(some)).group_by(payouts.c.batch_id)
        members |= {row.batch_id: row.payouts for row in (await tx.execute(of_batches)).all()}
    return [
        _batch(
            row,
            inputs[row.id],
            versions[row.id],
            borne[row.id, versions[row.id][-1].n],
            members.get(row.id, 0),
        )
        for row in rows
    ]


def _versions() -> Select[Any]:
    return (
        select(payout_versions, paying_transactions.c.presence, paying_transactions.c.height)
        .outerjoin(paying_transactions, paying_transactions.c.txid == payout_versions.c.txid)
        .order_by(payout_versions.c.n)
    )


def _borne() -> Select[Any]:
    """What the payouts of each version bear of its fee, and how many they are."""
    return select(
        version_shares.c.batch_id,
        version_shares.c.n,
        func.sum(version_shares.c.fee_sat).label("fee_sat"),
        func.count().label("shares"),
    ).group_by(version_shares.c.batch_id, version_shares.c.n)


def _batch(
    row: Row[tuple[object, ...]],
    inputs: Sequence[Row[tuple[object, ...]]],
    versions: Sequence[Version],
    borne: tuple[int, int],
    members: int,
) -> Batch:
    """`borne`: the newest version's fee in sats that its payouts bear, and how many they are."""
    fee_sat, shares = borne
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
        versions=tuple(versions),
        shares_fee_sat=Sat(fee_sat),
        whole=members == shares,
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
