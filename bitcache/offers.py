"""Offers: the terms on which a parcel may be downloaded. Changing one changes new invoices only."""

from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, Struct, UnsetType
from sqlalchemy import Row, Select, insert, or_, select, tuple_, update

from bitcache import events
from bitcache.catalog import sharing_files
from bitcache.config import Config
from bitcache.db.tables import accounts, offers, parcels
from bitcache.errors import NotFound, OfferGone, OfferNotOpen, ParcelNotSealed, TakenDown, ValueRefused
from bitcache.grants import OFFER_TOPIC
from bitcache.ids import new_id
from bitcache.metered_terms import check_metered, check_metered_sales, parcel_chunks
from bitcache.on_sale import SaleState, Sold, load_sale_offer, sale_state, whole_price
from payments.invoice import Policy
from payments.money import MAX_MONEY_SAT, MSAT_PER_SAT
from payments.policy import validate_policy
from payments.ports import Transaction

MORE_THAN_THERE_IS_MSAT = (MAX_MONEY_SAT + 1) * MSAT_PER_SAT
"""In place of a price that there is none of: who forgets to look asks for more than anybody has."""


class OfferEvent(Struct, frozen=True):
    """Its terms changed, or it was closed."""

    offer_id: str


@dataclass(frozen=True, slots=True)
class Terms:
    """At least one of the two prices."""

    price_msat: int | None
    """Of the whole parcel, on chain; None: it is sold per chunk alone."""
    bytes_at: int
    key_at: int
    expires_at: int | None
    max_downloads: int | None
    """Of the whole parcel."""
    metered_msat: int | None = None
    """Per started chunk of ciphertext, through a payment channel; None: it is not sold so."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One row of `offers` with what is said of its parcel, and what follows from the time and the sales."""

    id: str
    parcel_id: str
    seller_name: str
    settlement: Literal["direct", "hosted"]
    """Who a new invoice is paid to."""
    created_at: int
    terms: Terms
    size_bytes: int
    files_count: int
    chunks: int | None
    """Of all its files, where it is sold per chunk."""
    sales: int
    state: SaleState


@dataclass(frozen=True, slots=True)
class Changes:
    """What a seller changes; UNSET leaves it as it is."""

    price_msat: int | UnsetType | None = UNSET
    metered_msat: int | UnsetType | None = UNSET
    expires_at: int | UnsetType | None = UNSET
    max_downloads: int | UnsetType | None = UNSET
    close: bool = False


class Offers:
    """Everything about offers that is not buying."""

    def __init__(self, *, config: Config, sold: Sold) -> None:
        self._config = config
        self._sold = sold

    async def create(
        self, tx: Transaction, account_id: str, parcel_id: str, terms: Terms, *, now: int
    ) -> Offer:
        """Raises NotFound, ParcelNotSealed, TakenDown, ValueRefused, PolicyInvalid.

        And for an offer sold per chunk ChannelsOff, HostedSalesOff, PayoutTargetMissing.
        """
        parcel = (
            await tx.execute(
                select(parcels.c.sealed_at, parcels.c.meterable).where(
                    parcels.c.id == parcel_id,
                    parcels.c.account_id == account_id,
                    parcels.c.deleted_at.is_(None),
                )
            )
        ).first()
        if parcel is None:
            raise NotFound("parcel", parcel_id)
        if parcel.sealed_at is None:
            raise ParcelNotSealed("Seal the parcel first: buyers must be sure that it never changes.")
        await _refuse_taken_down(tx, parcel_id)
        self._check(terms, meterable=parcel.meterable, now=now)
        if terms.metered_msat is not None:
            await check_metered_sales(tx, self._config, account_id, now=now)
        offer_id = new_id()
        await tx.execute(
            insert(offers).values(
                id=offer_id,
                account_id=account_id,
                parcel_id=parcel_id,
                created_at=now,
                price_msat=_price_column(terms.price_msat),
                sold_whole=terms.price_msat is not None,
                metered_msat=terms.metered_msat,
                bytes_at=terms.bytes_at,
                key_at=terms.key_at,
                expires_at=terms.expires_at,
                max_downloads=terms.max_downloads,
            )
        )
        return await self.load(tx, offer_id, now=now)

    async def change(
        self, tx: Transaction, account_id: str, offer_id: str, changes: Changes, *, now: int
    ) -> Offer:
        """Raises NotFound, OfferNotOpen (closed for ever), ValueRefused, and what `create` does."""
        row = await self._own(tx, account_id, offer_id)
        edits: dict[str, int | bool | None] = {}
        if changes.price_msat is not UNSET:
            self._check_price(changes.price_msat)
            self._check_unconfirmed_key(changes.price_msat, key_at=row.key_at)
            edits["price_msat"] = _price_column(changes.price_msat)
            edits["sold_whole"] = changes.price_msat is not None
        if changes.metered_msat is not UNSET:
            if changes.metered_msat is not None:
                await check_metered_sales(tx, self._config, account_id, now=now)
            edits["metered_msat"] = changes.metered_msat
        if changes.expires_at is not UNSET:
            _check_expiry(changes.expires_at, now)
            edits["expires_at"] = changes.expires_at
        if changes.max_downloads is not UNSET:
            edits["max_downloads"] = changes.max_downloads
        if edits:
            await self._check_prices_together(tx, row, edits)
        if edits and row.closed_at is not None:
            raise OfferNotOpen("The offer is closed for good. Make a new offer for the parcel.")
        if changes.close and row.closed_at is None:
            edits["closed_at"] = now
        if edits:
            await tx.execute(update(offers).where(offers.c.id == offer_id).values(**edits))
            # Who sells per chunk remembers it between two requests.
            await events.append(
                tx, topic=OFFER_TOPIC, subject=offer_id, payload=OfferEvent(offer_id=offer_id), now=now
            )
        return await self.load(tx, offer_id, now=now)

    async def load(self, tx: Transaction, offer_id: str, *, now: int) -> Offer:
        """Raises NotFound."""
        row = (await tx.execute(_joined().where(offers.c.id == offer_id))).first()
        if row is None:
            raise NotFound("offer", offer_id)
        return await self._offer(tx, row, now)

    async def page(
        self, tx: Transaction, account_id: str, *, after: str | None, limit: int, now: int
    ) -> list[Offer]:
        """The seller's offers, newest first, those after the offer `after`. Raises NotFound."""
        chosen = _joined().where(offers.c.account_id == account_id)
        if after is not None:
            last = await self._own(tx, account_id, after)
            chosen = chosen.where(tuple_(offers.c.created_at, offers.c.id) < (last.created_at, after))
        newest_first = chosen.order_by(offers.c.created_at.desc(), offers.c.id.desc()).limit(limit)
        return [await self._offer(tx, row, now) for row in (await tx.execute(newest_first)).all()]

    async def _offer(self, tx: Transaction, row: Row[tuple[object, ...]], now: int) -> Offer:
        return Offer(
            id=row.id,
            parcel_id=row.parcel_id,
            seller_name=row.seller_name,
            settlement=row.settlement,
            created_at=row.created_at,
            terms=Terms(
                price_msat=whole_price(row),
                metered_msat=row.metered_msat,
                bytes_at=row.bytes_at,
                key_at=row.key_at,
                expires_at=row.expires_at,
                max_downloads=row.max_downloads,
            ),
            size_bytes=row.size_bytes,
            files_count=row.files_count,
            chunks=None if row.metered_msat is None else await parcel_chunks(tx, row.parcel_id),
            sales=await self._sold(tx, row.id),
            state=await sale_state(tx, await load_sale_offer(tx, row.id, now), self._sold, now),
        )

    async def _own(self, tx: Transaction, account_id: str, offer_id: str) -> Row[tuple[object, ...]]:
        row = (
            await tx.execute(select(offers).where(offers.c.id == offer_id, offers.c.account_id == account_id))
        ).first()
        if row is None:
            raise NotFound("offer", offer_id)
        return row

    def _check(self, terms: Terms, *, meterable: bool, now: int) -> None:
        self._check_price(terms.price_msat)
        check_metered(
            terms.price_msat, terms.metered_msat, meterable=meterable, max_downloads=terms.max_downloads
        )
        _check_expiry(terms.expires_at, now)
        validate_policy(Policy(bytes_at=terms.bytes_at, key_at=terms.key_at))
        if meterable and terms.bytes_at < terms.key_at:
            raise ValueRefused(
                "A meterable parcel serves no bytes before the key: choose bytes_at = key_at.",
                field="policy",
            )
        if terms.bytes_at == 0 and terms.key_at > 0 and not self._config.prefetch_allowed:
            raise ValueRefused("This server serves no bytes before a confirmation.", field="policy")
        self._check_unconfirmed_key(terms.price_msat, key_at=terms.key_at)

    async def _check_prices_together(
        self, tx: Transaction, row: Row[tuple[object, ...]], edits: dict[str, int | bool | None]
    ) -> None:
        """What the offer would be, once it is changed so. Raises ValueRefused."""
        sold_whole = edits.get("sold_whole", row.sold_whole)
        check_metered(
            edits.get("price_msat", row.price_msat) if sold_whole else None,
            edits.get("metered_msat", row.metered_msat),
            meterable=bool(await tx.scalar(select(parcels.c.meterable).where(parcels.c.id == row.parcel_id))),
            max_downloads=edits.get("max_downloads", row.max_downloads),
        )

    def _check_unconfirmed_key(self, price_msat: int | None, *, key_at: int) -> None:
        cap_sat = self._config.zero_conf_key_cap_sat
        if key_at == 0 and price_msat is not None and price_msat > cap_sat * MSAT_PER_SAT:
            raise ValueRefused(
                f"Above {cap_sat} sat this server gives no key before a confirmation: choose key_at >= 1.",
                field="policy",
            )

    def _check_price(self, price_msat: int | None) -> None:
        if price_msat is None:
            return
        floor_sat = self._config.price_floor_sat
        if 0 < price_msat < floor_sat * MSAT_PER_SAT:
            raise ValueRefused(
                f"The least price here is {floor_sat} sat: below it the buyer's fee is more than the price. "
                "Or make it free.",
                field="price",
            )
        if price_msat > MAX_MONEY_SAT * MSAT_PER_SAT:
            raise ValueRefused("There are not so many bitcoins.", field="price")


async def sealed_metadata(tx: Transaction, parcel_id: str) -> bytes:
    """What the seller sealed for who has the link. Raises OfferGone once the parcel was swept away."""
    metadata = await tx.scalar(select(parcels.c.metadata).where(parcels.c.id == parcel_id))
    if metadata is None:
        raise OfferGone(
            "The files of this offer are gone: its seller deleted them and every right has ended."
        )
    return bytes(metadata)


async def _refuse_taken_down(tx: Transaction, parcel_id: str) -> None:
    """What the operator took down is not sold again, in another offer or another parcel. Raises TakenDown."""
    taken = select(offers.c.id).where(
        or_(offers.c.parcel_id == parcel_id, offers.c.parcel_id.in_(sharing_files(parcel_id))),
        offers.c.taken_down_at.is_not(None),
    )
    offer_id = await tx.scalar(taken.limit(1))
    if offer_id is not None:
        raise TakenDown(offer_id)


def _joined() -> Select[tuple[object, ...]]:
    return (
        select(
            offers,
            accounts.c.name.label("seller_name"),
            accounts.c.settlement,
            parcels.c.size_bytes,
            parcels.c.files_count,
        )
        .join(accounts, accounts.c.id == offers.c.account_id)
        .join(parcels, parcels.c.id == offers.c.parcel_id)
    )


def _price_column(price_msat: int | None) -> int:
    return MORE_THAN_THERE_IS_MSAT if price_msat is None else price_msat


def _check_expiry(expires_at: int | None, now: int) -> None:
    if expires_at is not None and expires_at <= now:
        raise ValueRefused("`expires_at` is in the past. Give a later time, or none.", field="expires_at")
