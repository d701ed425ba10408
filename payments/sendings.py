"""By which transactions a payout goes out, or went: the versions of its batches, where our node sees them."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select

from payments.money import Sat
from payments.outputs import Presence
from payments.payout import Payout
from payments.portions import portions
from payments.ports import Transaction
from payments.tables import paying_transactions, payout_versions, version_shares

SEEN = (Presence.MEMPOOL, Presence.BLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A version of a batch's transaction, and what it does to one payout."""

    batch_id: str
    n: int
    txid: str | None
    """None while it is not signed."""
    presence: Presence | None
    height: int | None
    """Of its block."""
    arrives_sat: Sat
    fee_sat: Sat
    """The payout's share of the network fee."""


async def sendings_of(tx: Transaction, payout_ids: Iterable[str]) -> dict[str, list[Sending]]:
    """By payout, oldest first: of every batch that it was ever in."""
    found: dict[str, list[Sending]] = {}
    for some in portions(payout_ids):
        rows = await tx.execute(
            select(version_shares, payout_versions.c.txid)
            .add_columns(paying_transactions.c.presence, paying_transactions.c.height)
            .join(
                payout_versions,
                (payout_versions.c.batch_id == version_shares.c.batch_id)
                & (payout_versions.c.n == version_shares.c.n),
            )
            .outerjoin(paying_transactions, paying_transactions.c.txid == payout_versions.c.txid)
            .where(version_shares.c.payout_id.in_(some))
            .order_by(payout_versions.c.created_at, payout_versions.c.n)
        )
        for row in rows.all():
            found.setdefault(row.payout_id, []).append(
                Sending(
                    batch_id=row.batch_id,
                    n=row.n,
                    txid=row.txid,
                    presence=None if row.presence is None else Presence(row.presence),
                    height=row.height,
                    arrives_sat=Sat(row.arrives_sat),
                    fee_sat=Sat(row.fee_sat),
                )
            )
    return found


def current(payout: Payout, sendings: Iterable[Sending]) -> Sending | None:
    """Of its present batch: the one in a block, else the newest that was sent, else the newest. Pure."""
    of_batch = (one for one in sendings if one.batch_id == payout.batch_id)
    return max(of_batch, key=_weight, default=None)


def _weight(sending: Sending) -> tuple[bool, bool, int]:
    return sending.presence is Presence.BLOCK, sending.presence in SEEN, sending.n
