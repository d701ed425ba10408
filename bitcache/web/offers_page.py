"""What a seller has on sale: parcels and their offers.

    GET  /dashboard/offers?after=...
    POST /dashboard/offers/{offer_id}/price        price_sat
    POST /dashboard/offers/{offer_id}/close
    POST /dashboard/parcels/{parcel_id}/offer      price_sat, confirmations
    POST /dashboard/parcels/{parcel_id}/delete

A form that is refused comes back with the page, its words beside it. Titles and links are the browser's.
"""

import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from aiohttp import web
from msgspec import Struct

from bitcache.accounts import Seller
from bitcache.catalog import delete_parcel
from bitcache.errors import NotFound, OfferNotOpen, RequestInvalid, TakenDown
from bitcache.offers import Changes, Terms
from bitcache.shelf import shelf_page
from bitcache.web.render import sat_text
from bitcache.web.seller_visit import seller_route
from bitcache.web.sign_in import SELLER_FORM
from bitcache.web.visit import Visit, see_other
from payments.errors import PolicyInvalid
from payments.money import MSAT_PER_SAT
from payments.ports import Transaction

PAGE = "/dashboard/offers"
PARCELS_SHOWN = 20
CONFIRMATIONS = (0, 1, 2, 3, 6)
DIGITS_MAX = 16
"""Enough for all bitcoins in sat."""
_GROUPING = re.compile(r"[\s\u202f\u00a0']")
_NUMBER = re.compile(rf"[0-9]{{1,{DIGITS_MAX}}}")


class Refused(Struct, frozen=True):
    """Why the form about `subject_id` was not taken, and what was typed into it."""

    subject_id: str = ""
    key: str = ""
    fields: dict[str, object] = {}
    price: str = ""


async def offers_page(visit: Visit, seller: Seller, refused: Refused | None = None) -> web.Response:
    after = visit.after()
    services, now = visit.services, visit.now()
    page = await services.database.read(
        lambda tx: shelf_page(tx, seller.account_id, after=after, limit=PARCELS_SHOWN + 1, now=now)
    )
    listed = page[:PARCELS_SHOWN]
    done = visit.call.query("done") or ""
    with_forms = {one.parcel.id for one in listed if one.parcel.sealed_at}
    with_forms |= {
        shown.offer.id
        for one in listed
        for shown in one.offers
        if not shown.offer.closed and shown.state != "taken_down"
    }
    return visit.page(
        "offers.html",
        {
            "place": "/dashboard",
            "seller_name": seller.name,
            "shelf": listed,
            "older": listed[-1].parcel.id if len(page) > PARCELS_SHOWN else None,
            "after": after,
            "back_query": urlencode({"lang": visit.words.language, **({"after": after} if after else {})}),
            "refused": refused or Refused(),
            # What was refused may have no form any more: then it is said above all.
            "with_forms": with_forms,
            "done": done if f"done_{done}" in visit.words else "",
            "confirmations": CONFIRMATIONS,
            "floor_sat": services.config.price_floor_sat,
            "public_url": services.config.public_url,
        },
        form=SELLER_FORM,
        script_words=("js_shelf_",),
        status=422 if refused else 200,
    )


async def change_price(visit: Visit, seller: Seller) -> web.Response:
    offer_id = visit.call.path("offer_id")

    async def changed(tx: Transaction, price_sat: int, _: dict[str, str]) -> None:
        changes = Changes(price_msat=price_sat * MSAT_PER_SAT)
        await visit.services.offers.change(tx, seller.account_id, offer_id, changes, now=visit.now())

    return await _priced(visit, seller, offer_id, changed, done="price")


async def close_offer(visit: Visit, seller: Seller) -> web.Response:
    await visit.form(SELLER_FORM)
    offer_id = visit.call.path("offer_id")
    await visit.services.database.write(
        lambda tx: visit.services.offers.change(
            tx, seller.account_id, offer_id, Changes(close=True), now=visit.now()
        )
    )
    return _back(visit, "closed", offer_id)


async def offer_parcel(visit: Visit, seller: Seller) -> web.Response:
    parcel_id = visit.call.path("parcel_id")

    async def made(tx: Transaction, price_sat: int, fields: dict[str, str]) -> None:
        asked = fields.get("confirmations", "1")
        if asked not in map(str, CONFIRMATIONS):
            raise RequestInvalid("No such number of confirmations.", field="policy")
        terms = Terms(
            price_msat=price_sat * MSAT_PER_SAT,
            bytes_at=int(asked),
            key_at=int(asked),
            expires_at=None,
            max_downloads=None,
        )
        await visit.services.offers.create(tx, seller.account_id, parcel_id, terms, now=visit.now())

    return await _priced(visit, seller, parcel_id, made, done="offered")


async def remove_parcel(visit: Visit, seller: Seller) -> web.Response:
    await visit.form(SELLER_FORM)
    parcel_id = visit.call.path("parcel_id")
    await visit.services.database.write(
        lambda tx: delete_parcel(tx, seller.account_id, parcel_id, now=visit.now())
    )
    return _back(visit, "deleted")


async def _priced(
    visit: Visit,
    seller: Seller,
    subject_id: str,
    write: Callable[[Transaction, int, dict[str, str]], Awaitable[None]],
    *,
    done: str,
) -> web.Response:
    """Take a form with a price, or show the page again with what is wrong. Raises NotFound."""
    fields, _ = await visit.form(SELLER_FORM)
    typed = fields.get("price_sat", "").strip()
    price_sat = parse_sat(typed)
    if price_sat is None:
        return await offers_page(visit, seller, Refused(subject_id, "o_e_number", {}, typed))
    try:
        await visit.services.database.write(lambda tx: write(tx, price_sat, fields))
    except NotFound:
        raise
    except (RequestInvalid, PolicyInvalid, OfferNotOpen, TakenDown) as exc:
        key, values = _words_of(visit, exc)
        return await offers_page(visit, seller, Refused(subject_id, key, values, typed))
    return _back(visit, done, subject_id)


def parse_sat(text: str) -> int | None:
    """Whole sats, as people type them: spaces and apostrophes may group digits. Pure."""
    digits = _GROUPING.sub("", text)
    return int(digits) if digits.isascii() and _NUMBER.fullmatch(digits) else None


def _words_of(visit: Visit, exc: Exception) -> tuple[str, dict[str, object]]:
    """(key of the catalogue, its fields) for why an offer cannot be so."""
    config = visit.services.config
    match exc:
        case OfferNotOpen():
            return "o_e_closed", {}
        case TakenDown():
            return "o_e_taken_down", {}
        case RequestInvalid(field="price"):
            return "o_e_price", {"floor_sat": sat_text(config.price_floor_sat)}
        case RequestInvalid(field="metered"):
            return "o_e_metered", {}
        case _:
            return "o_e_policy", {"cap_sat": sat_text(config.zero_conf_key_cap_sat)}


def _back(visit: Visit, done: str, subject_id: str = "") -> web.Response:
    """To the list where it was, with what was done said."""
    query = {"lang": visit.words.language, "done": done}
    after = visit.after()
    if after and done != "deleted":
        query["after"] = after
    place = f"#at-{subject_id}" if subject_id else ""
    return see_other(f"{PAGE}?{urlencode(query)}{place}")


async def show_offers(visit: Visit, seller: Seller) -> web.Response:
    return await offers_page(visit, seller)


ROUTES = (
    seller_route("GET", PAGE, show_offers, "Parcels and offers", back="/dashboard"),
    seller_route("POST", f"{PAGE}/{{offer_id}}/price", change_price, "Another price", back=PAGE),
    seller_route("POST", f"{PAGE}/{{offer_id}}/close", close_offer, "Close an offer", back=PAGE),
    seller_route("POST", "/dashboard/parcels/{parcel_id}/offer", offer_parcel, "Offer a parcel", back=PAGE),
    seller_route(
        "POST", "/dashboard/parcels/{parcel_id}/delete", remove_parcel, "Delete a parcel", back=PAGE
    ),
)
