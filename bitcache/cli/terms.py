"""The terms of an offer as a seller writes them: options, and the requests made of them."""

from typing import Annotated

import msgspec
import typer
from msgspec import UNSET, UnsetType

from bitcache.api import wire
from bitcache.cli.common import confirm, local_now, parse_expiry, parse_price, show_count, show_sat
from bitcache.cli.output import CommandFailed, UsageWrong, say
from bitcache.cli.price_words import parse_metered, show_msat

MSAT_PER_SAT = 1_000

NONE = "none"
"""In place of a price: not sold so any more."""

Price = Annotated[
    str | None, typer.Option(help="Of the whole, paid at once: 5000sat, 5000 or 0.00005btc; 0 is free.")
]
Metered = Annotated[
    str | None,
    typer.Option(
        help="Of each started MiB, paid to the operator through a channel as it comes: 10sat/chunk or "
        "500msat/chunk. With --price the buyer chooses."
    ),
]
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
    price: str | None,
    metered: str | None,
    confirmations: int,
    prefetch: bool,
    expires: str | None,
    max_downloads: int | None,
    parcel_id: str = "",
) -> wire.OfferRequest:
    """The offer these options describe. Raises UsageWrong."""
    if price is None and metered is None:
        raise UsageWrong("Say what it costs: --price 5000sat, --metered 10sat/chunk, or both.")
    if metered is not None and prefetch:
        raise UsageWrong("What is sold per chunk is never sent before it is paid: leave out --prefetch.")
    if price is None and max_downloads is not None:
        raise UsageWrong("Only sales of the whole are counted: leave out --max-downloads, or add --price.")
    whole = None if price is None else fixed_price(price)
    if metered is not None and whole is not None and not whole.amount_msat:
        raise UsageWrong("Nobody pays per chunk for what is free as a whole: leave out one of the two.")
    return wire.OfferRequest(
        parcel_id=parcel_id,
        price=whole,
        metered=None if metered is None else parse_metered(metered),
        policy=wire.PolicyView(bytes_at=0 if prefetch else confirmations, key_at=confirmations),
        expires_at=None if expires is None else parse_expiry(expires, now=local_now()),
        max_downloads=max_downloads,
    )


def for_parcel(request: wire.OfferRequest, parcel_id: str) -> wire.OfferRequest:
    """The same terms for that parcel."""
    return msgspec.structs.replace(request, parcel_id=parcel_id)


def check_answerable(*, metered: bool, yes: bool, as_json: bool) -> None:
    """Raises UsageWrong where a question would come that nobody can answer."""
    if metered and as_json and not yes:
        raise UsageWrong("With --json nobody can be asked whether to sell per chunk: add --yes.")


def check_metered(
    account: wire.AccountView, *, yes: bool, price: wire.MeteredPrice, chunks: int | None
) -> None:
    """Tell what selling per chunk means, and ask. `chunks`: of all files, where that is known.

    Raises CommandFailed if the server would not take the price, or the answer is no.
    """
    if not account.metered_available:
        raise CommandFailed("This server sells nothing per chunk: its operator has not set up channels.")
    if account.payout_plan.target is None:
        raise CommandFailed(
            "The operator is paid for what is sold per chunk, and owes it to you: first say where it is paid "
            "out to, with `bitcache payout address` or `bitcache payout set`."
        )
    words = f"Sold per chunk: {show_msat(price.amount_msat)} for each started MiB of a file."
    if chunks is not None:
        whole = show_msat(price.amount_msat * chunks)
        words += f" The whole is {show_count(chunks, 'chunk')}: {whole} then."
    say(words)
    say("Buyers pay the operator through channels while they download. The operator holds the money and owes")
    say(f"it to you, less {account.fee_percent} %, once the channels are closed; if the operator loses it or")
    say("keeps it, it is gone. Buyers are told.")
    if not yes and not confirm("Have the operator paid for what you sell per chunk?"):
        raise CommandFailed("Nothing was changed. Answer y, or add --yes.")


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


def changed_price(text: str | None) -> wire.FixedPrice | UnsetType | None:
    """For a patch: `none` stops selling the whole. Raises UsageWrong."""
    if text is None:
        return UNSET
    return None if text == NONE else fixed_price(text)


def changed_metered(text: str | None) -> wire.MeteredPrice | UnsetType | None:
    """For a patch: `none` stops selling per chunk. Raises UsageWrong."""
    if text is None:
        return UNSET
    return None if text == NONE else parse_metered(text)


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
