"""Selling per chunk: from an offer to its price, from a range to a charge. Shell.

What is for sale is read again after a second, and at once when an event says that it changed: a request in
between costs one look-up. A metered buyer has no promise of retention and no place in `max_downloads`: chunks
are paid as they come, and when the offer closes there is nothing left that was paid and not sent.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import select

from bitcache.api.byte_range import ByteRange
from bitcache.channel_desk import ChannelDesk
from bitcache.config import Config
from bitcache.db.tables import parcels
from bitcache.errors import ChannelBusy, NotMetered
from bitcache.on_sale import SaleOffer, selling_offer
from bitcache.sealing import Sealer
from bitcache.session_auth import OpenAction, VoucherAction
from payments.channel import Charge
from payments.channel_registry import Paid
from payments.money import Msat
from payments.ports import Clock, Store, Transaction
from storage import base64url
from storage.stream import CHUNK_SIZE_BYTES

OFFER_AGE_S_MAX = 1.0
"""What no event tells of, such as the operator's takedown, counts after so long at most."""
OFFERS_KEPT_MAX = 1_000
CONNECTIONS_MAX = 16
"""Of one channel at a time."""
RETRY_BUSY_S = 1


@dataclass(frozen=True, slots=True)
class MeteredOffer:
    """What is on sale per chunk now."""

    sale: SaleOffer
    price_msat: Msat
    """Of a chunk."""
    release_secret: str
    """base64url, for a header."""
    read_at: float
    """Monotonic."""


class MeteredSales:
    """In front of every request that pays per chunk."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        desk: ChannelDesk,
        sealer: Sealer,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._store = store
        self._desk = desk
        self._sealer = sealer
        self._clock = clock
        self._monotonic = monotonic
        self._kept: OrderedDict[str, MeteredOffer] = OrderedDict()
        self._changes = 0
        self._connections: Counter[str] = Counter()

    async def offer(self, offer_id: str) -> MeteredOffer:
        """The offer, if it sells per chunk now. Raises NotFound, TakenDown, OfferUnavailable, NotMetered."""
        kept = self._kept.get(offer_id)
        if kept is not None and self._monotonic() - kept.read_at <= OFFER_AGE_S_MAX:
            self._kept.move_to_end(offer_id)
            return kept
        read_at, changes = self._monotonic(), self._changes
        try:
            found = await self._store.read(lambda tx: self._read(tx, offer_id, kept, read_at))
        except BaseException:
            self._kept.pop(offer_id, None)
            raise
        if changes != self._changes:
            return found  # good for this request: a change that came meanwhile may be newer
        self._kept[offer_id] = found
        self._kept.move_to_end(offer_id)
        if len(self._kept) > OFFERS_KEPT_MAX:
            self._kept.popitem(last=False)
        return found

    def forget(self, offer_id: str) -> None:
        """It changed: read it again before its next use. Its release secret goes too."""
        self._changes += 1
        self._kept.pop(offer_id, None)

    @contextmanager
    def connection(self, channel_id: str) -> Iterator[None]:
        """One more download on this channel. Raises ChannelBusy."""
        if self._connections[channel_id] >= CONNECTIONS_MAX:
            raise ChannelBusy(CONNECTIONS_MAX, retry_after_s=RETRY_BUSY_S)
        self._connections[channel_id] += 1
        try:
            yield
        finally:
            self._connections[channel_id] -= 1
            if not self._connections[channel_id]:
                del self._connections[channel_id]

    async def pay(
        self,
        offer: MeteredOffer,
        action: OpenAction | VoucherAction,
        file_id: str,
        chosen: ByteRange,
        *,
        client: str,
    ) -> Paid:
        """Charge these chunks; they are paid for when this returns. Raises as `ChannelDesk.pay`."""
        charge = Charge(
            subject=offer.sale.id,
            seller_id=offer.sale.seller_id,
            fee_ppm=self._config.hosted.fee_ppm,
            item=file_id,
            first_unit=chosen.first // CHUNK_SIZE_BYTES,
            units=-(-chosen.length // CHUNK_SIZE_BYTES),
            price_msat=offer.price_msat,
        )
        return await self._desk.pay(action, charge, client=client, price_msat=offer.price_msat)

    async def _read(
        self, tx: Transaction, offer_id: str, kept: MeteredOffer | None, read_at: float
    ) -> MeteredOffer:
        sale = await selling_offer(tx, offer_id, nothing_sold, self._clock())
        if sale.metered_msat is None:
            raise NotMetered
        if kept is not None and kept.sale.parcel_id == sale.parcel_id:
            secret = kept.release_secret
        else:
            chosen = select(parcels.c.sealed_release_secret).where(parcels.c.id == sale.parcel_id)
            sealed = (await tx.execute(chosen)).scalar_one()
            opened = self._sealer.open(sealed, table=parcels.name, row_id=sale.parcel_id)
            secret = base64url.encode(opened)
        return MeteredOffer(sale, sale.metered_msat, secret, read_at)


async def nothing_sold(_tx: Transaction, _offer_id: str) -> int:
    """`max_downloads` counts invoices: who pays per chunk takes no place."""
    return 0
