"""What a parcel sold per chunk must be, and its seller: the rules of a metered price.

The buyer pays as the bytes come, through a channel to the operator's key: the operator owes it to the
seller. The bytes must be worth nothing before they are paid: that is fixed when the parcel is sealed.
"""

from sqlalchemy import func, select

from bitcache.config import Config
from bitcache.db.tables import files, parcel_files
from bitcache.errors import HostedSalesOff, PayoutTargetMissing, ValueRefused
from bitcache.payout_targets import targets
from payments.channel_errors import ChannelsOff
from payments.money import MSAT_PER_SAT
from payments.ports import Transaction
from storage.stream import CHUNK_SIZE_BYTES

METERED_MSAT_MAX = 1_000_000 * MSAT_PER_SAT
"""The highest price of a chunk."""


def check_metered(
    price_msat: int | None, metered_msat: int | None, *, meterable: bool, max_downloads: int | None
) -> None:
    """Whether the two prices of an offer fit each other and the parcel. Pure. Raises ValueRefused."""
    if metered_msat is None:
        if price_msat is None:
            raise ValueRefused("An offer needs a price: of the whole, per chunk, or both.", field="price")
        return
    if not 1 <= metered_msat <= METERED_MSAT_MAX:
        raise ValueRefused("A chunk costs from 1 msat to 1,000,000 sat.", field="metered")
    if not meterable:
        raise ValueRefused(
            "This parcel was not sealed to be sold per chunk: upload it again with --metered (`meterable`).",
            field="metered",
        )
    if price_msat == 0:
        raise ValueRefused(
            "Nobody pays per chunk for what is free as a whole: choose one of the two.", field="metered"
        )
    if price_msat is None and max_downloads is not None:
        raise ValueRefused(
            "Downloads are counted only where the whole is sold: leave `max_downloads` out.",
            field="max_downloads",
        )


async def check_metered_sales(tx: Transaction, config: Config, account_id: str, *, now: int) -> None:
    """Whether this seller can sell per chunk. Raises ChannelsOff, HostedSalesOff, PayoutTargetMissing."""
    if not config.channels.enabled:
        raise ChannelsOff
    if not config.hosted.descriptor:
        raise HostedSalesOff
    if (await targets(tx, account_id, now=now)).current is None:
        # The first target counts at once: whoever stole a token later could name it, and be paid.
        raise PayoutTargetMissing


async def parcel_chunks(tx: Transaction, parcel_id: str) -> int:
    """Of all its files; the last of each may be shorter, and counts as much."""
    started = (files.c.size_bytes + (CHUNK_SIZE_BYTES - 1)) // CHUNK_SIZE_BYTES
    found = await tx.scalar(
        select(func.sum(started))
        .join(parcel_files, parcel_files.c.file_id == files.c.id)
        .where(parcel_files.c.parcel_id == parcel_id)
    )
    return int(found or 0)
