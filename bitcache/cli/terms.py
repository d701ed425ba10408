"""The terms of an offer as a seller writes them: options, and the requests made of them."""

from typing import Annotated

import msgspec
import typer
from msgspec import UNSET, UnsetType

from bitcache.api import wire
from bitcache.cli.common import local_now, parse_expiry, parse_price, show_sat
from bitcache.cli.output import CommandFailed, UsageWrong

MSAT_PER_SAT = 1_000

Price = Annotated[str, typer.Option(help="5000sat, 5000 or 0.00005btc; 0 is free.")]
ConfirmationCount = Annotated[
    int, typer.Option("--confirmations", min=0, max=100, help="Confirmations before the buyer gets the key.")
]
PrefetchFlag = Annotated[
    bool, typer.Option("--prefetch", help="Send the encrypted files before the payment is confirmed.")
]
Expiry = Annotated[str | None, typer.Option(help="30d, 12h, or a last day like 2030-12-31.")]
MaxDownloads = Annotated[
    int | None, typer.Option(min=1, max=1_000_000_000, help="Close after so many sales.")
]


def offer_request(
    *,
    price: str,
    confirmations: int,
    prefetch: bool,
    expires: str | None,
    max_downloads: int | None,
    parcel_id: str = "",
) -> wire.OfferRequest:
    """The offer these options describe. Raises UsageWrong."""
    return wire.OfferRequest(
        parcel_id=parcel_id,
        price=fixed_price(price),
        policy=wire.PolicyView(bytes_at=0 if prefetch else confirmations, key_at=confirmations),
        expires_at=None if expires is None else parse_expiry(expires, now=local_now()),
        max_downloads=max_downloads,
    )


def for_parcel(request: wire.OfferRequest, parcel_id: str) -> wire.OfferRequest:
    """The same terms for that parcel."""
    return msgspec.structs.replace(request, parcel_id=parcel_id)


def check_payable(account: wire.AccountView, price: wire.FixedPrice | None) -> None:
    """Raises CommandFailed if the server would not take the price, or buyers could not pay it."""
    price_sat = 0 if price is None else price.amount_msat // MSAT_PER_SAT
    if not price_sat:
        return
    if price_sat < account.price_floor_sat:
        raise CommandFailed(
            f"The least price on this server is {show_sat(account.price_floor_sat)}: below it the buyer's "
            "fee is more than the price. Ask for more, or make it free: --price 0"
        )
    if account.settlement == "hosted":
        if not account.hosted_available:
            raise CommandFailed(
                "Nobody could pay you: this server offers no hosted sales any more. "
                "Choose your own wallet: bitcache settlement direct"
            )
    elif account.payout is None:
        hosted = "; or let the operator be paid for you: bitcache settlement hosted"
        raise CommandFailed(
            "Nobody could pay you: set the wallet first: bitcache payout set YOUR_DESCRIPTOR_OR_XPUB"
            + (hosted if account.hosted_available else "")
        )


def fixed_price(text: str) -> wire.FixedPrice:
    """Raises UsageWrong."""
    return wire.FixedPrice(amount_msat=parse_price(text) * MSAT_PER_SAT)


def changed_expiry(text: str | None) -> int | UnsetType | None:
    """For a patch: `never` takes the expiry away. Raises UsageWrong."""
    if text is None:
        return UNSET
    return None if text == "never" else parse_expiry(text, now=local_now())


def changed_max_downloads(text: str | None) -> int | UnsetType | None:
    """For a patch: `any` takes the limit away. Raises UsageWrong."""
    if text is None:
        return UNSET
    if text == "any":
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:12]) <= 1_000_000_000:
        raise UsageWrong(f"{text!r} is no number of downloads. Write 1 or more, or `any`.")
    return int(text)
