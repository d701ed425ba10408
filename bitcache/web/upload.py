"""The page to sell on: choose files, set terms, get a link. Everything on it happens in the browser.

GET /upload
"""

from dataclasses import dataclass

from aiohttp import web

from bitcache import accounts
from bitcache.accounts import Seller
from bitcache.payout_wallet import wallet
from bitcache.web.seller_visit import seller_route
from bitcache.web.visit import Visit
from payments.ports import Transaction

PAGE = "/upload"


@dataclass(frozen=True, slots=True)
class _Facts:
    has_wallet: bool
    """Whether buyers could pay: hosted sales need no wallet of the seller's."""
    bytes_free: int
    """What the account may still store."""


async def upload_page(visit: Visit, seller: Seller) -> web.Response:
    config = visit.services.config
    facts = await visit.services.database.read(lambda tx: _facts(visit, tx, seller))
    return visit.page(
        "upload.html",
        {
            "place": PAGE,
            "facts": facts,
            "account_id": seller.account_id,
            "public_url": config.public_url,
            "price_floor_sat": config.price_floor_sat,
            "prefetch_allowed": config.prefetch_allowed,
            "unconfirmed_sat_max": config.zero_conf_key_cap_sat,
        },
        script_words=("js_upload_",),
        api=True,
    )


async def _facts(visit: Visit, tx: Transaction, seller: Seller) -> _Facts:
    account = await accounts.load(tx, seller.account_id)
    return _Facts(
        has_wallet=account.settlement == "hosted"
        or await wallet(tx, seller.account_id, now=visit.now()) is not None,
        bytes_free=max(0, account.bytes_allowed(visit.services.config) - account.bytes_stored),
    )


ROUTES = (seller_route("GET", PAGE, upload_page, "Sell files"),)
