"""What a seller runs about terms: `offers`, `offer add|edit|close`."""

from typing import Annotated

import typer
from msgspec import UNSET

from bitcache.api import wire
from bitcache.cli.common import seller_api, show_time
from bitcache.cli.output import JsonFlag, UsageWrong, expected_errors, print_json, print_text, run, say
from bitcache.cli.price_words import show_prices
from bitcache.cli.terms import (
    ConfirmationCount,
    Expiry,
    MaxDownloads,
    PrefetchFlag,
    Price,
    changed_expiry,
    changed_max_downloads,
    check_payable,
    fixed_price,
    offer_request,
)
from bitcache.client import listing, places
from bitcache.client.receipts import ParcelBook
from bitcache.client.upload import make_offer

app = typer.Typer()
offer_app = typer.Typer(
    help="Terms on which a parcel may be downloaded.",
    epilog="Example: bitcache offer add --help",
    no_args_is_help=True,
)
app.add_typer(offer_app, name="offer")


@app.command("offers", epilog="Example: bitcache offers --json")
@expected_errors
def offers(json_output: JsonFlag = False) -> None:
    """List your offers, newest first, with their links where this computer has them."""

    async def ask() -> tuple[str, list[wire.OfferSummary]]:
        async with seller_api() as api:
            return api.base_url, await listing.offers(api)

    server, items = run(ask())
    book = ParcelBook(places.parcels_folder())
    if json_output:
        print_json([{"offer": offer, "link": _link(book, server, offer)} for offer in items])
        return
    for offer in items:
        until = f", until {show_time(offer.expires_at)}" if offer.expires_at else ""
        print_text(
            f"{offer.offer_id}  {show_prices(offer)}  {offer.sales} sold  "
            f"{offer.state}{until}\n  {_link(book, server, offer) or 'the link is not kept on this computer'}"
        )


@offer_app.command("add", epilog="Example: bitcache offer add PARCEL_ID --price 9000sat --max-downloads 10")
@expected_errors
def offer_add(
    parcel_id: Annotated[str, typer.Argument(metavar="PARCEL", help="Id of the parcel, from `parcels`.")],
    price: Price,
    confirmations: ConfirmationCount = 1,
    prefetch: PrefetchFlag = False,
    expires: Expiry = None,
    max_downloads: MaxDownloads = None,
    json_output: JsonFlag = False,
) -> None:
    """Offer a parcel once more, on other terms, without a new upload."""
    request = offer_request(
        price=price,
        confirmations=confirmations,
        prefetch=prefetch,
        expires=expires,
        max_downloads=max_downloads,
        parcel_id=parcel_id,
    )

    async def add() -> tuple[str, wire.OfferSummary]:
        async with seller_api() as api:
            check_payable(await api.get("/account", wire.AccountView), request.price)
            return api.base_url, await make_offer(api, request)

    server, offer = run(add())
    kept = ParcelBook(places.parcels_folder()).get(server, parcel_id)
    link = str(kept.link(offer.offer_id)) if kept else None
    if json_output:
        print_json({"link": link, "offer_id": offer.offer_id, "parcel_id": parcel_id})
    elif link is not None:
        print_text(link)
    else:
        print_text(f"{server}/d/{offer.offer_id}#")
        say("Put what follows the # in an older link of this parcel behind it: it is not kept here.")


@offer_app.command(
    "edit", epilog="Example: bitcache offer edit OFFER_ID --price 7000sat --expires 2030-12-31"
)
@expected_errors
def offer_edit(
    offer_id: Annotated[str, typer.Argument(metavar="OFFER", help="Id of the offer, from `offers`.")],
    price: Annotated[str | None, typer.Option(help="The new price.")] = None,
    expires: Annotated[str | None, typer.Option(help="30d, a last day, or `never`.")] = None,
    max_downloads: Annotated[str | None, typer.Option(help="A number, or `any`.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Change the terms for those who buy from now on; invoices that were given out stay as they are."""
    patch = wire.OfferPatch(
        price=UNSET if price is None else fixed_price(price),
        expires_at=changed_expiry(expires),
        max_downloads=changed_max_downloads(max_downloads),
    )
    if patch == wire.OfferPatch():
        raise UsageWrong("Say what to change: --price, --expires or --max-downloads.")
    _patch_offer(offer_id, patch, json_output=json_output)


@offer_app.command("close", epilog="Example: bitcache offer close OFFER_ID")
@expected_errors
def offer_close(
    offer_id: Annotated[str, typer.Argument(metavar="OFFER", help="Id of the offer, from `offers`.")],
    json_output: JsonFlag = False,
) -> None:
    """Take no new payments for an offer. Who has paid can still download."""
    _patch_offer(offer_id, wire.OfferPatch(closed=True), json_output=json_output)


def _patch_offer(offer_id: str, patch: wire.OfferPatch, *, json_output: bool) -> None:
    async def change() -> wire.OfferSummary:
        async with seller_api() as api:
            return await api.patch(f"/offers/{offer_id}", patch, wire.OfferSummary)

    offer = run(change())
    if json_output:
        report = {"offer_id": offer.offer_id, "state": offer.state, "price": offer.price}
        print_json({**report, "metered": offer.metered})
    else:
        print_text(f"{offer.offer_id}: {offer.state}, {show_prices(offer)}")


def _link(book: ParcelBook, server: str, offer: wire.OfferSummary) -> str | None:
    kept = book.get(server, offer.parcel_id)
    return None if kept is None else str(kept.link(offer.offer_id))
