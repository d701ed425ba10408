"""Claiming: from the secret the buyer kept to a grant token and, when the payment allows it, to the key.

Claiming again gives the same grant, on any device: the receipt is all it takes.
"""

import hashlib
import hmac

from sqlalchemy import select

from bitcache.access import Access, Grant, grant_of
from bitcache.api.wire import ClaimView
from bitcache.catalog import parcel_file_views
from bitcache.db.tables import offers, parcels
from bitcache.errors import ClaimRefused, TakenDown
from bitcache.grants import GrantBook
from bitcache.sealing import Sealer
from payments.errors import InvoiceNotFound
from payments.ports import Clock, Store, Transaction
from payments.registry import InvoiceRegistry
from payments.tables import invoices
from storage import base64url


class Claims:
    """Gives out what an invoice's standing allows, to who can prove to be its buyer."""

    def __init__(
        self,
        *,
        store: Store,
        registry: InvoiceRegistry,
        access: Access,
        book: GrantBook,
        sealer: Sealer,
        clock: Clock,
    ) -> None:
        self._store = store
        self._registry = registry
        self._access = access
        self._book = book
        self._sealer = sealer
        self._clock = clock

    async def claim(self, invoice_id: str, claim_secret: bytes) -> ClaimView:
        """What is allowed now. Before the payment this is a token that opens nothing yet.

        Raises InvoiceNotFound, ClaimRefused, TakenDown.
        """

        # Looked at before the one writer is asked for: who has no receipt keeps nobody waiting.
        await self._store.read(lambda tx: check_claim_secret(tx, invoice_id, claim_secret))

        async def claimed(tx: Transaction) -> tuple[Grant, ClaimView]:
            record = await self._registry.load(tx, invoice_id, now=self._clock())
            grant = await grant_of(tx, invoice_id)
            if await tx.scalar(select(offers.c.taken_down_at).where(offers.c.id == grant.offer_id)):
                raise TakenDown(grant.offer_id)
            # The cap of unconfirmed exposure may have room by now.
            permitted = await self._access.permission(tx, record, grant)
            if (permitted.bytes_allowed, permitted.key_allowed) != (grant.bytes_allowed, grant.key_allowed):
                grant = await self._access.settle(tx, record)
            return grant, await self._claim_view(tx, grant)

        grant, view = await self._store.write(claimed)
        self._book.doubt(grant.id)
        return view

    async def _claim_view(self, tx: Transaction, grant: Grant) -> ClaimView:
        parcel = (await tx.execute(select(parcels).where(parcels.c.id == grant.parcel_id))).one()
        token, expires_at = self._book.issue(
            grant_id=grant.id, offer_id=grant.offer_id, parcel_id=grant.parcel_id
        )
        release_secret = None
        if grant.key_allowed:
            secret = self._sealer.open(parcel.sealed_release_secret, table=parcels.name, row_id=parcel.id)
            release_secret = base64url.encode(secret)
        return ClaimView(
            grant_id=grant.id,
            grant_token=token,
            grant_expires_at=expires_at,
            bytes_allowed=grant.bytes_allowed,
            key_allowed=grant.key_allowed,
            release_secret=release_secret,
            files=await parcel_file_views(tx, parcel.id),
            metadata=base64url.encode(parcel.metadata),
            retained_until=grant.retained_until,
        )


async def check_claim_secret(tx: Transaction, invoice_id: str, claim_secret: bytes) -> None:
    """Raises InvoiceNotFound, ClaimRefused."""
    claim_hash = await tx.scalar(select(invoices.c.claim_hash).where(invoices.c.id == invoice_id))
    if claim_hash is None:
        raise InvoiceNotFound(f"there is no invoice {invoice_id}")
    if not hmac.compare_digest(hashlib.sha256(claim_secret).digest(), claim_hash):
        raise ClaimRefused
