"""What a buyer runs: `get` a link or a receipt, and list `receipts`."""

from pathlib import Path
from typing import Annotated

import typer

from bitcache.cli.common import parse_price, read_text, refuse_to_ask, show_sat, show_time
from bitcache.cli.getting import Get
from bitcache.cli.output import (
    JsonFlag,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.client import places
from bitcache.client.receipts import ReceiptBook
from bitcache.client.wallets import parse_wallet

app = typer.Typer()


@app.command(
    "get",
    epilog="Example: bitcache get 'https://files.example.org/d/abc...#1.xyz...' -o holiday. Quote the link, "
    "for the # in it. Other users of this computer can see arguments: `-` reads the link from stdin.",
)
@expected_errors
def get(
    link: Annotated[
        str | None,
        typer.Argument(metavar="LINK|RECEIPT", help="The whole link or receipt, in quotes; - for stdin."),
    ] = None,
    link_file: Annotated[Path | None, typer.Option(help="Read the link or receipt from this file.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write to; for one file also its new name."),
    ] = None,
    pay: Annotated[
        str | None,
        typer.Option(
            envvar="BITCACHE_PAY",
            help="Pay from a bitcoind wallet: bitcoind: or "
            "bitcoind:http://user:password@host:port/wallet/NAME; safer in the environment. "
            "Instead of the password: bitcoind:http://host:port/wallet/NAME?cookie=FILE",
        ),
    ] = None,
    metered: Annotated[
        bool, typer.Option("--metered", help="Pay per chunk, through a channel, where both ways are sold.")
    ] = False,
    max_spend: Annotated[
        str | None,
        typer.Option(help="Stop before a metered download costs more, such as 5000sat; again goes on."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait for the payment, or for a block; say what is due.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Pay without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Buy and download a parcel, or download again what a receipt paid for.

    Shows what is sold, the receipt and the address to pay to, waits for the payment, downloads, verifies and
    decrypts. Stopped at any moment, the same command goes on. What is sold per chunk is paid as it comes,
    from a channel that `bitcache channel open` made.
    """
    what = read_text(link, link_file, what="link")
    wallet = None if pay is None else parse_wallet(pay)
    if wallet is not None:
        refuse_to_ask(yes=yes, json_output=json_output, why=" to pay")
    getting = Get(
        output=output,
        wallet=wallet,
        wait=not no_wait,
        yes=yes,
        force=force,
        as_json=json_output,
        metered=metered,
        spend_max_sat=None if max_spend is None else parse_price(max_spend, what="amount"),
    )
    run(getting.run(what))


@app.command("receipts", epilog="Example: bitcache receipts --json")
@expected_errors
def receipts(json_output: JsonFlag = False) -> None:
    """List the receipts kept on this computer, newest first. Each is enough to download again, anywhere."""
    kept = [one for one in ReceiptBook(places.receipts_folder()).all() if one.receipt is not None]
    if json_output:
        print_json(
            [
                {
                    "receipt": str(one.receipt),
                    "invoice_id": one.invoice_id,
                    "reference": one.reference,
                    "title": one.title,
                    "price_sat": one.price_sat,
                    "created_at": one.created_at,
                }
                for one in kept
            ]
        )
        return
    if not kept:
        say("No receipts yet.")
    for one in kept:
        print_text(
            f"{show_time(one.created_at)}  {printable(one.reference)}  {show_sat(one.price_sat)}  "
            f"{printable(one.title)}\n  {one.receipt}"
        )
