"""`bitcache`: the operator's, the seller's and the buyer's commands in one program."""

import sys
from typing import Annotated

import typer

from bitcache import VERSION, log
from bitcache.cli import (
    backup,
    batches,
    buyer,
    channel,
    channels,
    doctor,
    ledger,
    moderation,
    operator,
    payouts,
    reconcile,
    refund,
    seller,
)
from bitcache.cli.output import EXIT_FAILED, print_text
from bitcache.freed_memory import keep_freed_memory

app = typer.Typer(
    name="bitcache",
    epilog="Example: bitcache get --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (
    operator,
    seller,
    buyer,
    channel,
    refund,
    doctor,
    ledger,
    backup,
    moderation,
    payouts,
    reconcile,
    channels,
):
    app.add_typer(group.app)
payouts.payouts_app.add_typer(batches.app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print_text(f"bitcache {VERSION}")
        raise typer.Exit


@app.callback()
def bitcache(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Sell files for bitcoin: encrypted here, paid to your own wallet, on a server that can read nothing."""


def main() -> None:
    """The entry point of the installed program."""
    keep_freed_memory()
    log.set_up(log_format="text", level="warning")
    try:
        app()
    except Exception as bug:
        log.uncaught(type(bug), bug, bug.__traceback__)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
