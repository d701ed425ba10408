"""An offer as the till sees it: whether it sells now, what it costs, and into which wallet it is paid."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Row, select

from bitcache.config import Config
from bitcache.db.tables import accounts, offers, parcels
from bitcache.errors import MeteredOnly, NotFound, OfferUnavailable, TakenDown
from bitcache.payout_wallet import in_force
from payments.invoice import Mode, Term
from payments.money import Msat, sat_rounded_up
from payments.ports import Transaction

SaleState = Literal["open", "closed", "expired", "sold_out", "damaged", "taken_down"]
Sold = Callable[[Transaction, str], Awaitable[int]]
"""How many of an offer are sold; `InvoiceRegistry.sold`."""


@dataclass(frozen=True, slots=True)
class SaleOffer:
    """What a sale needs of an offer, its parcel and its seller, in one row."""

    id: str
    parcel_id: str
    seller_id: str
    price_msat: Msat | None
    """Of the whole parcel, on chain; None: it is sold per chunk alone."""
    metered_msat: Msat | None
    """Per started chunk, through a payment channel; None: it is not sold so."""
    bytes_at: int
    key_at: int
    meterable: bool
    expires_at: int | None
    max_downloads: int | None
    closed: bool
    taken_down: bool
    damaged: bool
    descriptor_id: str | None
    """Of the seller's wallet in force now; None while the seller has set none."""
    mode: Mode
    """Who is paid for the whole: the seller's wallet, or the operator's for the seller."""

    @property
    def sold_whole(self) -> bool:
        return self.price_msat is not None


async def load_sale_offer(tx: Transaction, offer_id: str, now: int) -> SaleOffer:
    """Raises NotFound."""
    found = await sale_offers(tx, offers.c.id == offer_id, now)
    if not found:
        raise NotFound("offer", offer_id)
    return found[0]


async def sale_offers(tx: Transaction, chosen: ColumnElement[bool], now: int) -> list[SaleOffer]:
    """Those for which `chosen`, a condition on `offers`, holds; in no order."""
    joined = (
        select(offers, parcels.c.meterable, parcels.c.deleted_at, parcels.c.damaged)
        .add_columns(accounts.c.descriptor_id, accounts.c.pending_descriptor_id, accounts.c.pending_until)
        .add_columns(accounts.c.settlement)
        .join(parcels, parcels.c.id == offers.c.parcel_id)
        .join(accounts, accounts.c.id == offers.c.account_id)
        .where(chosen)
    )
    return [_sale_offer(row, now) for row in (await tx.execute(joined)).all()]


def _sale_offer(row: Row[tuple[object, ...]], now: int) -> SaleOffer:
    wallet = in_force(row, now)
    return SaleOffer(
        id=row.id,
        parcel_id=row.parcel_id,
        seller_id=row.account_id,
        price_msat=whole_price(row),
        metered_msat=None if row.metered_msat is None else Msat(row.metered_msat),
        bytes_at=row.bytes_at,
        key_at=row.key_at,
        meterable=row.meterable,
        expires_at=row.expires_at,
        max_downloads=row.max_downloads,
        closed=row.closed_at is not None or row.deleted_at is not None,
        taken_down=row.taken_down_at is not None,
        damaged=row.damaged,
        descriptor_id=wallet.descriptor_id if wallet else None,
        mode=Mode(row.settlement),
    )


def whole_price(row: Row[tuple[object, ...]]) -> Msat | None:
    """Of a row of `offers`; None where it is sold per chunk alone. Pure."""
    return Msat(row.price_msat) if row.sold_whole else None


async def sale_state(tx: Transaction, offer: SaleOffer, sold: Sold, now: int) -> SaleState:
    """Only "open" sells."""
    if offer.taken_down:
        return "taken_down"
    if offer.closed:
        return "closed"
    if offer.expires_at is not None and offer.expires_at <= now:
        return "expired"
    if offer.max_downloads is not None and await sold(tx, offer.id) >= offer.max_downloads:
        return "sold_out"
    if offer.damaged:
        return "damaged"
    return "open"


async def selling_offer(tx: Transaction, offer_id: str, sold: Sold, now: int) -> SaleOffer:
    """The offer, if it sells now. Raises NotFound, TakenDown, OfferUnavailable."""
    offer = await load_sale_offer(tx, offer_id, now)
    state = await sale_state(tx, offer, sold, now)
    if state == "taken_down":
        raise TakenDown(offer_id)
    if state != "open":
        raise OfferUnavailable(offer_id, state)
    return offer


def sale_term(offer: SaleOffer, config: Config, now: int) -> Term:
    """The offer's price, held from `now`. Raises MeteredOnly."""
    if offer.price_msat is None:
        raise MeteredOnly(offer.id)
    return Term(sat_rounded_up(offer.price_msat), valid_until=now + config.price_hold_s)


class OfferQuotes:
    """`payments.ports.Quote`: what an offer costs now, for an invoice whose price has expired."""

    def __init__(self, config: Config, *, sold: Sold) -> None:
        self._config = config
        self._sold = sold

    async def __call__(self, tx: Transaction, subject: str, now: int) -> Term | None:
        """None when the offer does not sell any more, or not as a whole: late money is then owed."""
        offer = await load_sale_offer(tx, subject, now)
        if not offer.sold_whole or await sale_state(tx, offer, self._sold, now) != "open":
            return None
        return sale_term(offer, self._config, now)
