"""What a seller runs about money and identity: `login`, `payout`, `earnings`. Mounts `goods` and `offers`."""

import re
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from msgspec import UNSET

from bitcache.api import wire, wire_money
from bitcache.cli import goods, offers
from bitcache.cli import payout as hosted
from bitcache.cli.common import (
    confirm,
    day_start,
    parse_zone,
    read_text,
    refuse_to_ask,
    seller_api,
    show_count,
    show_sat,
    show_time,
    token_of_environment,
)
from bitcache.cli.output import (
    CommandFailed,
    JsonFlag,
    UsageWrong,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.client import credentials, places
from bitcache.client.api import ServerApi
from bitcache.client.credentials import Credentials, check_token
from bitcache.client.link import check_server
from payments.extended_keys import keys_in

app = typer.Typer()
app.add_typer(goods.app)
app.add_typer(offers.app)
app.add_typer(hosted.app)
payout = typer.Typer(
    help="The wallet that buyers pay to, which the server can watch but not spend; payouts of hosted sales.",
    epilog="Example: bitcache payout show",
    no_args_is_help=True,
)
app.add_typer(payout, name="payout")
payout.add_typer(hosted.payout_app)

CLOCKS_APART_S = 300
"""A wallet that counts sooner than this by our clock counts at once: the server's may differ."""
RECOVERY_WORDS = re.compile(r"\s*[a-z]{3,8}(\s+[a-z]{3,8}){11,23}\s*")
"""As BIP39 and Electrum write them."""
WHY_DEDICATED = (
    "Use an account or wallet of its own for sales: every sale takes its next address, so other payments to\n"
    "the same account would collide with buyers', and whoever runs the server sees all its addresses."
)


@app.command("login", epilog="Example: bitcache login https://files.example.org < token.txt")
@expected_errors
def login(
    url: Annotated[str, typer.Argument(help="Address of the server.")],
    token: Annotated[
        str | None,
        typer.Option(
            help="The access token; other users of this computer can see arguments. "
            "Default: $BITCACHE_TOKEN or $BITCACHE_TOKEN_FILE, else stdin."
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="Read the token from this file.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Sign in as a seller. The token is kept on this computer, readable by you alone."""
    given = token
    if token is None and token_file is None:
        given = token_of_environment() or "-"
        if given == "-" and sys.stdin.isatty():
            say("Paste the access token and press Enter, then Ctrl-D:")
    text = read_text(given, token_file, what="access token")
    known = Credentials(check_server(url), check_token(text))

    async def sign_in() -> wire.AccountView:
        async with ServerApi(known.server, known.token) as api:
            return await api.get("/account", wire.AccountView)

    account = run(sign_in())
    credentials.save(places.config_folder(), known)
    if json_output:
        print_json({"server": known.server, "account_id": account.account_id, "name": account.name})
        return
    print_text(f"Signed in to {known.server} as {printable(account.name)}.")
    if account.payout is None and account.settlement == "direct":
        say("Next: bitcache payout set YOUR_DESCRIPTOR_OR_XPUB, so that buyers can pay you.")


@payout.command(
    "set",
    epilog='Example: bitcache payout set "wpkh([d34db33f/84h/0h/1h]xpub.../0/*)" --start-index 0. '
    "Never give a private key (xprv): the server refuses it.",
)
@expected_errors
def payout_set(
    descriptor: Annotated[
        str | None, typer.Argument(metavar="DESCRIPTOR|XPUB", help="Public descriptor or xpub; - for stdin.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read the descriptor or xpub from this file.")] = None,
    start_index: Annotated[
        int | None, typer.Option(min=0, max=2_000_000_000, help="First address index to use.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether the addresses match.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Set the wallet that buyers pay to, after you compared its first addresses with your wallet's."""
    text = read_text(descriptor, file, what="descriptor")
    _check_public(text)
    refuse_to_ask(yes=yes, json_output=json_output, why=" once you have compared the addresses")

    async def change() -> wire.AccountView:
        async with seller_api() as api:
            kept = text if yes else await _compared(api, text)
            patch = wire.AccountPatch(
                payout_descriptor=kept, start_index=UNSET if start_index is None else start_index
            )
            return await api.patch("/account", patch, wire.AccountView)

    view = run(change()).payout
    if view is None:
        raise CommandFailed("The server did not keep the wallet. Try again, or tell its operator.")
    if json_output:
        print_json(view)
        return
    _print_payout(view)
    say(WHY_DEDICATED)


@payout.command("show", epilog="Example: bitcache payout show --json")
@expected_errors
def payout_show(json_output: JsonFlag = False) -> None:
    """Show the wallet, its first addresses, and how many addresses were handed out."""

    async def ask() -> wire.AccountView:
        async with seller_api() as api:
            return await api.get("/account", wire.AccountView)

    view = run(ask()).payout
    if json_output:
        print_json({"payout": view})
    elif view is None:
        say("No wallet is set. Run: bitcache payout set YOUR_DESCRIPTOR_OR_XPUB")
    else:
        _print_payout(view)


@payout.command("gap", epilog="Example: bitcache payout gap 200")
@expected_errors
def payout_gap(
    addresses: Annotated[
        int, typer.Argument(metavar="N", min=20, max=10_000, help="Unused addresses in a row it bridges.")
    ],
    json_output: JsonFlag = False,
) -> None:
    """Say what gap limit your wallet has, once you raised it there; 20 in most wallets.

    So many addresses may be handed out in a row without being paid before buyers' programs must earn one
    with a proof of work. The wallet itself is not changed by this.
    """

    async def change() -> wire.AccountView:
        async with seller_api() as api:
            return await api.patch("/account", wire.AccountPatch(gap_limit=addresses), wire.AccountView)

    view = run(change()).payout
    if json_output:
        print_json({"payout": view})
    elif view is not None:
        _print_payout(view)


@app.command(
    "earnings", epilog="Example: bitcache earnings --since 2030-01-01 --tz Europe/Paris --csv > sales.csv"
)
@expected_errors
def earnings(
    since: Annotated[str | None, typer.Option(help="First day, like 2030-01-31.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day.")] = None,
    tz: Annotated[str, typer.Option(help="Time zone of the days, like Europe/Paris.")] = "UTC",
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Show what was earned, per day and parcel."""
    if csv and json_output:
        raise UsageWrong("Choose --csv or --json.")
    zone = parse_zone(tz)
    query = {"tz": tz}
    if since is not None:
        query["since"] = str(day_start(since, zone=zone))
    if until is not None:
        query["until"] = str(day_start(until, zone=zone) + 86_400)

    async def ask() -> wire_money.EarningsView | str:
        async with seller_api() as api:
            if csv:
                return await api.get_text("/earnings.csv", query=query)
            return await api.get("/earnings", wire_money.EarningsView, query=query)

    view = run(ask())
    if isinstance(view, str):
        print_text(view.rstrip("\r\n"))
    elif json_output:
        print_json(view)
    else:
        _print_earnings(view)


def _check_public(text: str) -> None:
    """Raises UsageWrong. A secret must not even travel to the server that would refuse it."""
    if any(key.version.private for key in keys_in(text)) or RECOVERY_WORDS.fullmatch(text):
        raise UsageWrong(
            "This holds a private key or recovery words. Nothing was sent. Give the descriptor or extended "
            "public key (xpub) that your wallet exports for watching."
        )


async def _compared(api: ServerApi, text: str) -> str:
    """The descriptor as the server reads it, once a person said that its addresses are the right ones.

    Raises CommandFailed; nothing was stored then.
    """
    request = wire.PayoutPreviewRequest(payout_descriptor=text)
    preview = await api.post("/account/payout-preview", request, wire.PayoutPreview, repeatable=True)
    _print_wallet(preview.descriptor, preview.first_addresses)
    if preview.note:
        say(printable(preview.note))
    if preview.effective_at > time.time() + CLOCKS_APART_S:
        say(f"Buyers would pay into it from {show_time(preview.effective_at)} on.")
    if not confirm("Are these the first addresses in your wallet?"):
        raise CommandFailed(
            "Nothing was changed. If they are others, money would go elsewhere: look up your wallet's public "
            "descriptor and run `bitcache payout set` again. If they are the same, answer y, or add --yes."
        )
    return preview.descriptor


def _print_wallet(descriptor: str, first_addresses: list[str]) -> None:
    print_text(f"Wallet  {printable(descriptor)}")
    for number, address in enumerate(first_addresses):
        print_text(f"Address {number}  {printable(address)}")


def _print_payout(view: wire.WalletView) -> None:
    _print_wallet(view.descriptor, view.first_addresses)
    highest = "none yet" if view.highest_index_used is None else f"index {view.highest_index_used}"
    print_text(f"Handed out up to: {highest}; next is index {view.next_index}.")
    print_text(f"Unpaid in a row: {view.unused_streak}; your wallet bridges {view.gap_limit}.")
    if view.pending_descriptor is not None:
        at = "soon" if view.pending_until is None else show_time(view.pending_until)
        print_text(f"Changes on {at} to {printable(view.pending_descriptor)}")
    if view.advice:
        print_text(printable(view.advice))


def _print_earnings(view: wire_money.EarningsView) -> None:
    for day in view.days:
        chunks = f"  {show_count(day.chunks, 'chunk')}" if day.chunks else ""
        print_text(
            f"{day.day}  {day.parcel_id}  {day.sales:>6} sold  {show_sat(day.received_sat):>20}{chunks}"
        )
    chunks = f" and {show_count(view.chunks, 'chunk')}" if view.chunks else ""
    print_text(f"Received {show_sat(view.received_sat)} in {show_count(view.sales, 'sale')}{chunks}.")
    if view.fee_sat:
        print_text(f"The operator's fee, taken off already: {show_sat(view.fee_sat)}.")
    print_text(f"On its way: {show_sat(view.pending_sat)}.")
    if view.in_channels_sat:
        print_text(f"Sold per chunk, yours once the channels are closed: {show_sat(view.in_channels_sat)}.")
    if view.owed_sat:
        print_text(f"You owe buyers {show_sat(view.owed_sat)}: money that came late or was too much.")
    if view.owed_hosted_sat:
        print_text(
            f"The operator holds {show_sat(view.owed_hosted_sat)} of your buyers: they ask for it with their "
            "receipts."
        )
    if view.refunding_sat:
        print_text(f"On its way back to buyers: {show_sat(view.refunding_sat)}.")
    if view.unassigned_sat:
        print_text(
            f"In your wallet for invoices that the server lost: {show_sat(view.unassigned_sat)}. "
            "Its operator can list them."
        )
