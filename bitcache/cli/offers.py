"""What a seller runs about terms: `offers`, `offer add|edit|close`."""

from typing import Annotated

import typer

from bitcache.api import wire
from bitcache.cli.common import seller_api, show_time
from bitcache.cli.output import (
    JsonFlag,
    UsageWrong,
    YesFlag,
    expected_errors,
    print_json,
    print_text,
    run,
    say,
)
from bitcache.cli.price_words import show_prices
from bitcache.cli.terms import (
    ConfirmationCount,
    Expiry,
    MaxDownloads,
    Metered,
    PrefetchFlag,
    Price,
    changed_expiry,
    changed_max_downloads,
    changed_metered,
    changed_price,
    check_answerable,
    check_metered,
    check_payable,
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


@offer_app.command(
    "add", epilog="Example: bitcache offer add PARCEL_ID --price 9000sat --metered 10sat/chunk"
)
@expected_errors
def offer_add(
    parcel_id: Annotated[str, typer.Argument(metavar="PARCEL", help="Id of the parcel, from `parcels`.")],
    price: Price = None,
    metered: Metered = None,
    confirmations: ConfirmationCount = 1,
    prefetch: PrefetchFlag = False,
    expires: Expiry = None,
    max_downloads: MaxDownloads = None,
    yes: YesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Offer a parcel once more, on other terms, without a new upload."""
    request = offer_request(
        price=price,
        metered=metered,
        confirmations=confirmations,
        prefetch=prefetch,
        expires=expires,
        max_downloads=max_downloads,
        parcel_id=parcel_id,
    )
    check_answerable(metered=request.metered is not None, yes=yes, as_json=json_output)

    async def add() -> tuple[str, wire.OfferSummary]:
        async with seller_api() as api:
            account = await api.get("/account", wire.AccountView)
            check_payable(account, request.price)
            if request.metered is not None:
                check_metered(account, yes=yes, price=request.metered, chunks=None)
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
    price: Annotated[
        str | None, typer.Option(help="The new price of the whole; `none`: it is sold per chunk alone.")
    ] = None,
    metered: Annotated[
        str | None, typer.Option(help="The new price of a chunk; `none`: it is sold whole alone.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="30d, a last day, or `never`.")] = None,
    max_downloads: Annotated[str | None, typer.Option(help="A number, or `any`.")] = None,
    yes: YesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Change the terms for those who buy from now on; invoices that were given out stay as they are."""
    patch = wire.OfferPatch(
        price=changed_price(price),
        metered=changed_metered(metered),
        expires_at=changed_expiry(expires),
        max_downloads=changed_max_downloads(max_downloads),
    )
    if patch == wire.OfferPatch():
        raise UsageWrong("Say what to change: --price, --metered, --expires or --max-downloads.")
    check_answerable(metered=bool(patch.metered), yes=yes, as_json=json_output)
    _patch_offer(offer_id, patch, yes=yes, json_output=json_output)


@offer_app.command("close", epilog="Example: bitcache offer close OFFER_ID")
@expected_errors
def offer_close(
    offer_id: Annotated[str, typer.Argument(metavar="OFFER", help="Id of the offer, from `offers`.")],
    json_output: JsonFlag = False,
) -> None:
    """Take no new payments for an offer. Who has paid can still download."""
    _patch_offer(offer_id, wire.OfferPatch(closed=True), yes=True, json_output=json_output)


def _patch_offer(offer_id: str, patch: wire.OfferPatch, *, yes: bool, json_output: bool) -> None:
    async def change() -> wire.OfferSummary:
        async with seller_api() as api:
            if patch.metered:
                account = await api.get("/account", wire.AccountView)
                known = (await api.get(f"/offers/{offer_id}", wire.OfferView)).metered
                # Who sells it per chunk already knows what that means.
                chunks = known.chunks if known else None
                check_metered(account, yes=yes or known is not None, price=patch.metered, chunks=chunks)
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
