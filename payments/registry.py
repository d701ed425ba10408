"""Invoices in the database: the shell around `payments.invoice` and `payments.ledger`.

Every change ends in `refresh`: load the facts, derive the standing, book what the ledger lacks, tell
`on_change`, all in the caller's transaction. So status, books and access never disagree, whatever crashes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import msgspec
from sqlalchemy import Row, and_, func, insert, or_, select, update

from payments import books, chain_facts, ledger
from payments.attention import attention
from payments.chain_facts import Payments
from payments.errors import InvoiceNotFound, InvoiceNotRenewable
from payments.invoice import (
    ChainView,
    Fee,
    Invoice,
    Mode,
    Policy,
    Standing,
    Status,
    Term,
    renewal,
    standing,
)
from payments.money import Sat
from payments.outputs import ReceivedOutput, lapses_at
from payments.ports import OnChange, Quote, Transaction
from payments.records import InvoiceRecord, IssuedAddress
from payments.tables import invoice_terms, invoices

SOLD = (Status.SEEN, Status.CONFIRMING, Status.SETTLED)
OUTAGES_S = 7 * 86_400
"""By so much outages may have moved the deadline of an invoice that is looked at again."""
DEPTH_TOLD = 6
"""Confirmations are told at least this far, or as far as the policy asks."""
INVOICES_PER_BATCH = 500


class InvoiceRegistry:
    """Creates, loads and re-derives invoices. Holds no state: everything is in the caller's transaction."""

    def __init__(self, *, on_change: OnChange, quote: Quote) -> None:
        self._on_change = on_change
        self._quote = quote

    async def create(
        self,
        tx: Transaction,
        invoice: Invoice,
        *,
        subject: str,
        frozen: str,
        claim_hash: bytes,
        issued: IssuedAddress | None,
        now: int,
    ) -> InvoiceRecord:
        """Write a new invoice. `issued` is None exactly for a free one, which is born settled."""
        chain = await chain_facts.view(tx, now)
        born = standing(invoice, (), chain, now)
        await tx.execute(
            insert(invoices).values(
                id=invoice.id,
                reference=invoice.reference,
                subject=subject,
                seller_id=invoice.seller_id,
                created_at=invoice.created_at,
                mode=invoice.mode,
                bytes_at=invoice.policy.bytes_at,
                key_at=invoice.policy.key_at,
                tolerance_sat=invoice.policy.tolerance_sat,
                tolerance_ppm=invoice.policy.tolerance_ppm,
                frozen=frozen,
                claim_hash=claim_hash,
                cancelled=invoice.cancelled,
                fee_ppm=invoice.fee.ppm,
                fee_sat=invoice.fee.sat,
                descriptor_id=issued.descriptor_id if issued else None,
                address_index=issued.index if issued else None,
                address=issued.address if issued else None,
                script_pubkey=issued.script_pubkey if issued else None,
                released_at=now if born.status is Status.SETTLED else None,
                status=born.status,
                standing=_encode(born),
                review_at=_review_at(born, (), now),
            )
        )
        for position, term in enumerate(invoice.terms):
            await _insert_term(tx, invoice.id, position, term)
        return InvoiceRecord(
            invoice=invoice,
            subject=subject,
            frozen=frozen,
            claim_hash=claim_hash,
            address=issued.address if issued else None,
            script_pubkey=issued.script_pubkey if issued else None,
            descriptor_id=issued.descriptor_id if issued else None,
            address_index=issued.index if issued else None,
            outputs=(),
            standing=born,
            released_at=now if born.status is Status.SETTLED else None,
            prefetch_fit=True,
        )

    async def find(
        self, tx: Transaction, *, subject: str, claim_hash: bytes, now: int
    ) -> InvoiceRecord | None:
        """The invoice made for this subject with this claim hash, if there is one."""
        row = (
            await tx.execute(
                select(invoices).where(invoices.c.subject == subject, invoices.c.claim_hash == claim_hash)
            )
        ).one_or_none()
        return await _record(tx, row, await chain_facts.view(tx, now), now) if row else None

    async def load(self, tx: Transaction, invoice_id: str, *, now: int) -> InvoiceRecord:
        """One invoice with its standing as of `now`. Raises InvoiceNotFound."""
        row = await _row(tx, invoice_id)
        return await _record(tx, row, await chain_facts.view(tx, now), now)

    async def load_all(self, tx: Transaction, invoice_ids: Iterable[str], *, now: int) -> list[InvoiceRecord]:
        """As `load`, of each, in the order of their ids. Raises InvoiceNotFound."""
        chain = await chain_facts.view(tx, now)
        found: list[InvoiceRecord] = []
        for ids in _batches(sorted(set(invoice_ids))):
            found += await _records(tx, await _rows(tx, ids), chain, now)
        return found

    async def page(
        self, tx: Transaction, *, seller_id: str, after: str | None, limit: int, now: int
    ) -> list[InvoiceRecord]:
        """A seller's invoices, newest first, those that come after the invoice `after`."""
        chosen = select(invoices).where(invoices.c.seller_id == seller_id)
        if after is not None:
            last = await _row(tx, after)
            chosen = chosen.where(
                or_(
                    invoices.c.created_at < last.created_at,
                    and_(invoices.c.created_at == last.created_at, invoices.c.id < last.id),
                )
            )
        newest_first = chosen.order_by(invoices.c.created_at.desc(), invoices.c.id.desc()).limit(limit)
        chain = await chain_facts.view(tx, now)
        return await _records(tx, (await tx.execute(newest_first)).all(), chain, now)

    async def refresh(self, tx: Transaction, invoice_ids: Iterable[str], *, now: int) -> int:
        """Derive each invoice again from the facts, book and tell what changed; how many did."""
        chain = await chain_facts.view(tx, now)
        changed = 0
        for ids in _batches(sorted(set(invoice_ids))):
            rows = await _rows(tx, ids, lock=True)
            booked = await books.booked(tx, ids)
            for row, loaded in zip(rows, await _records(tx, rows, chain, now), strict=True):
                record = await self._renewed_for_late_money(tx, loaded, chain, now)
                desired = ledger.desired_bookings(record.invoice, record.outputs, record.standing, chain)
                news = await books.append_missing(
                    tx, desired, booked[record.invoice.id], reference=record.invoice.id, now=now
                )
                changed += await self._store_standing(tx, row, record, now) or news
        return changed

    async def renew(self, tx: Transaction, invoice_id: str, *, now: int) -> InvoiceRecord:
        """Append one term at today's price, because the buyer asks for it.

        Raises InvoiceNotRenewable when the invoice is paid or cancelled, still holds its price, or is not
        for sale any more.
        """
        row = await _row(tx, invoice_id, lock=True)
        chain = await chain_facts.view(tx, now)
        record = await _record(tx, row, chain, now)
        if record.invoice.cancelled:
            raise InvoiceNotRenewable("this invoice is cancelled; ask for a new one")
        if record.invoice.revoked:
            raise InvoiceNotRenewable("what this invoice was for may not be sold; do not pay it")
        if record.invoice.refunded:
            raise InvoiceNotRenewable("its money was asked back: ask for a new invoice, do not pay this one")
        if record.standing.covered:
            raise InvoiceNotRenewable("this invoice is paid; claim it")
        quote = await self._quote(tx, record.subject, now)
        if quote is None:
            raise InvoiceNotRenewable(
                "this is not for sale any more; money that came is owed to you by the seller"
            )
        term = renewal(record.invoice, record.standing, quote, now, asked=True)
        if term is None:
            raise InvoiceNotRenewable("this invoice still holds its price; pay what is due")
        await _insert_term(tx, invoice_id, len(record.invoice.terms), term)
        await self.refresh(tx, [invoice_id], now=now)
        return await self.load(tx, invoice_id, now=now)

    async def cancel(self, tx: Transaction, invoice_id: str, *, now: int) -> InvoiceRecord:
        """Withdraw an invoice to which nothing was ever paid; its address stays watched for ever."""
        await _row(tx, invoice_id, lock=True)
        await tx.execute(update(invoices).where(invoices.c.id == invoice_id).values(cancelled=True))
        await self.refresh(tx, [invoice_id], now=now)
        return await self.load(tx, invoice_id, now=now)

    async def revoke(
        self, tx: Transaction, invoice_id: str, *, revoked: bool = True, now: int
    ) -> InvoiceRecord:
        """Give nothing for it any more: what came and comes is owed to the buyer. Or take that back.

        `on_change` is called only where the chain has news too. Raises InvoiceNotFound.
        """
        await _row(tx, invoice_id, lock=True)
        await tx.execute(update(invoices).where(invoices.c.id == invoice_id).values(revoked=revoked))
        await self.refresh(tx, [invoice_id], now=now)
        return await self.load(tx, invoice_id, now=now)

    async def refund(self, tx: Transaction, invoice_id: str, *, now: int) -> InvoiceRecord:
        """Nothing is earned on it any more: the buyer has asked for all of it back. For ever.

        Raises InvoiceNotFound.
        """
        await _row(tx, invoice_id, lock=True)
        await tx.execute(update(invoices).where(invoices.c.id == invoice_id).values(refunded=True))
        await self.refresh(tx, [invoice_id], now=now)
        return await self.load(tx, invoice_id, now=now)

    async def ids_of(self, tx: Transaction, subjects: Iterable[str]) -> list[str]:
        """The invoices for these subjects."""
        chosen = select(invoices.c.id).where(invoices.c.subject.in_(list(subjects))).order_by(invoices.c.id)
        return list((await tx.scalars(chosen)).all())

    async def due_for_review(self, tx: Transaction, *, now: int) -> list[str]:
        """Invoices whose standing changes by time alone, their deadline having passed."""
        return list((await tx.scalars(select(invoices.c.id).where(invoices.c.review_at < now))).all())

    async def lately_expired(self, tx: Transaction, *, now: int) -> list[str]:
        """Invoices whose deadline may be to come again, now that the clock was set back."""
        chosen = (
            select(invoices.c.id)
            .join(invoice_terms, invoice_terms.c.invoice_id == invoices.c.id)
            .where(
                invoices.c.status.in_((Status.EXPIRED, Status.SEEN)),
                invoice_terms.c.valid_until >= now - OUTAGES_S,
            )
        )
        return list((await tx.scalars(chosen.distinct())).all())

    async def all_ids(self, tx: Transaction) -> list[str]:
        """Every invoice, for a full recomputation."""
        return list((await tx.scalars(select(invoices.c.id).order_by(invoices.c.id))).all())

    async def sold(self, tx: Transaction, subject: str) -> int:
        """How many invoices for this subject count as sales now: paid, partly paid, or free and taken.

        One whose money was double-spent does not: it would take the last copy for nothing.
        """
        counted = select(func.count()).where(invoices.c.subject == subject, invoices.c.status.in_(SOLD))
        return int(await tx.scalar(counted) or 0)

    async def open_unpaid(self, tx: Transaction, seller_id: str) -> int:
        """How many of a seller's invoices wait for their first payment."""
        counted = select(func.count()).where(
            invoices.c.seller_id == seller_id, invoices.c.status == Status.OPEN
        )
        return int(await tx.scalar(counted) or 0)

    async def _renewed_for_late_money(
        self, tx: Transaction, record: InvoiceRecord, chain: ChainView, now: int
    ) -> InvoiceRecord:
        """The deadline holds the price, not the address: later money gets one term at today's price."""
        if record.standing.status is not Status.EXPIRED or record.standing.late_sat == 0:
            return record
        if record.invoice.refunded:
            return record  # what came goes back
        quote = await self._quote(tx, record.subject, now)
        term = renewal(record.invoice, record.standing, quote, now)
        if term is None:
            return record
        await _insert_term(tx, record.invoice.id, len(record.invoice.terms), term)
        invoice = replace(record.invoice, terms=(*record.invoice.terms, term))
        return replace(record, invoice=invoice, standing=standing(invoice, record.outputs, chain, now))

    async def _store_standing(
        self, tx: Transaction, row: Row[tuple[object, ...]], record: InvoiceRecord, now: int
    ) -> bool:
        before = _decode(row.standing)
        after = record.standing
        changes: dict[str, object] = {"review_at": _review_at(after, record.outputs, now)}
        telling_depth = max(DEPTH_TOLD, record.invoice.policy.key_at)
        if _visible(before, telling_depth) != _visible(after, telling_depth):
            changes |= {"status": after.status, "standing": _encode(after)}
        if row.released_at is None and after.status is Status.SETTLED:
            changes["released_at"] = now
            record = replace(record, released_at=now)
        changes["attention"] = attention(record.invoice, after, released=record.released_at is not None)
        if changes["attention"] is None:
            changes["attended"] = None
        if any(getattr(row, name) != value for name, value in changes.items()):
            await tx.execute(update(invoices).where(invoices.c.id == row.id).values(**changes))
        if "standing" not in changes:
            return False
        await self._on_change(tx, before, record)
        return True


def _batches(invoice_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(invoice_ids), INVOICES_PER_BATCH):
        yield invoice_ids[start : start + INVOICES_PER_BATCH]


async def mark_released(tx: Transaction, invoice_id: str, *, now: int) -> None:
    """Remember that the key may be out; settling does the same by itself."""
    await tx.execute(
        update(invoices)
        .where(invoices.c.id == invoice_id, invoices.c.released_at.is_(None))
        .values(released_at=now)
    )


async def _row(tx: Transaction, invoice_id: str, *, lock: bool = False) -> Row[tuple[object, ...]]:
    chosen = select(invoices).where(invoices.c.id == invoice_id)
    # SQLite has one writer and ignores the lock; PostgreSQL locks the aggregate.
    row = (await tx.execute(chosen.with_for_update() if lock else chosen)).one_or_none()
    if row is None:
        raise InvoiceNotFound(f"there is no invoice {invoice_id}")
    return row


async def _rows(
    tx: Transaction, invoice_ids: Sequence[str], *, lock: bool = False
) -> Sequence[Row[tuple[object, ...]]]:
    """In the order of their ids. Raises InvoiceNotFound."""
    chosen = select(invoices).where(invoices.c.id.in_(invoice_ids)).order_by(invoices.c.id)
    rows = (await tx.execute(chosen.with_for_update() if lock else chosen)).all()
    for unknown in set(invoice_ids) - {row.id for row in rows}:
        raise InvoiceNotFound(f"there is no invoice {unknown}")
    return rows


async def _record(tx: Transaction, row: Row[tuple[object, ...]], chain: ChainView, now: int) -> InvoiceRecord:
    (record,) = await _records(tx, [row], chain, now)
    return record


async def _records(
    tx: Transaction, rows: Sequence[Row[tuple[object, ...]]], chain: ChainView, now: int
) -> list[InvoiceRecord]:
    """In a fixed number of queries, however many they are."""
    ids = [row.id for row in rows]
    terms: dict[str, list[Term]] = {}
    found = await tx.execute(
        select(invoice_terms).where(invoice_terms.c.invoice_id.in_(ids)).order_by(invoice_terms.c.position)
    )
    for term in found.all():
        terms.setdefault(term.invoice_id, []).append(
            Term(Sat(term.amount_sat), term.valid_until, term.offered_at)
        )
    received = await chain_facts.payments_to(tx, ids)
    return [_derived(row, tuple(terms[row.id]), received[row.id], chain, now) for row in rows]


def _derived(
    row: Row[tuple[object, ...]], terms: tuple[Term, ...], payments: Payments, chain: ChainView, now: int
) -> InvoiceRecord:
    invoice = Invoice(
        id=row.id,
        reference=row.reference,
        created_at=row.created_at,
        seller_id=row.seller_id,
        mode=Mode(row.mode),
        policy=Policy(
            bytes_at=row.bytes_at,
            key_at=row.key_at,
            tolerance_sat=Sat(row.tolerance_sat),
            tolerance_ppm=row.tolerance_ppm,
        ),
        terms=terms,
        cancelled=row.cancelled,
        revoked=row.revoked,
        refunded=row.refunded,
        fee=Fee(row.fee_ppm, Sat(row.fee_sat)),
    )
    return InvoiceRecord(
        invoice=invoice,
        subject=row.subject,
        frozen=row.frozen,
        claim_hash=row.claim_hash,
        address=row.address,
        script_pubkey=row.script_pubkey,
        descriptor_id=row.descriptor_id,
        address_index=row.address_index,
        outputs=payments.outputs,
        standing=standing(invoice, payments.outputs, chain, now),
        released_at=row.released_at,
        prefetch_fit=payments.prefetch_fit,
    )


async def _insert_term(tx: Transaction, invoice_id: str, position: int, term: Term) -> None:
    await tx.execute(
        insert(invoice_terms).values(
            invoice_id=invoice_id,
            position=position,
            amount_sat=term.amount_sat,
            valid_until=term.valid_until,
            offered_at=term.offered_at,
        )
    )


def _review_at(current: Standing, outputs: Iterable[ReceivedOutput], now: int) -> int | None:
    """The next moment at which time alone changes the standing."""
    moments = [moment for output in outputs if (moment := lapses_at(output)) is not None]
    if not current.covered and current.status is not Status.CANCELLED:
        moments.append(current.valid_until)
    return min((moment for moment in moments if moment >= now), default=None)


def _visible(current: Standing, telling_depth: int) -> Standing:
    """Without what moves by itself: below `telling_depth` no confirmation changes anything for anyone."""
    return replace(current, depth=min(current.depth, telling_depth), valid_until=0)


def _encode(current: Standing) -> str:
    return msgspec.json.encode(current, order="deterministic").decode()


def _decode(text: str) -> Standing:
    return msgspec.json.decode(text, type=Standing)
