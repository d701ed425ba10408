"""A buyer's payment channels: `channel open | found | list | close | refund | recover`."""

from pathlib import Path
from typing import Annotated

import typer

from bitcache.cli import channel_ending, channel_opening
from bitcache.cli.channel_standing import List
from bitcache.cli.common import parse_price, read_text, refuse_to_ask
from bitcache.cli.output import JsonFlag, UsageWrong, YesFlag, expected_errors, run
from bitcache.client.wallets import parse_wallet

app = typer.Typer()
group = typer.Typer(
    help="Pay sellers per chunk: open a channel to a server, see what is left, close it.",
    epilog="Example: bitcache channel open https://files.example.org --deposit 20000sat --change bc1q...",
    no_args_is_help=True,
)
app.add_typer(group, name="channel")

Server = Annotated[str, typer.Argument(metavar="SERVER", help="Such as https://files.example.org")]


@group.command(
    "open",
    epilog="Example: bitcache channel open https://files.example.org --deposit 20000sat --change bc1q...",
)
@expected_errors
def open_channel(
    server: Server,
    deposit: Annotated[str, typer.Option(help="How much to put in, such as 20000sat.")],
    change: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Of your wallet: what is left in the end goes there.")
    ],
    pay: Annotated[
        str | None,
        typer.Option(
            "--wallet",
            "--pay",
            envvar="BITCACHE_PAY",
            help="Pay from a bitcoind wallet, as `bitcache get --pay` does: bitcoind: or "
            "bitcoind:http://user:password@host:port/wallet/NAME",
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Show where to pay, and end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Pay without asking.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Open a payment channel to the operator of a server, which pays for chunks of all its sellers.

    Shows what it costs, the refund's backup line and the address; any wallet may pay there. A line of backup
    is enough to take the deposit back once the channel has expired, without the server.
    """
    wallet = None if pay is None else parse_wallet(pay)
    if wallet is not None:
        refuse_to_ask(yes=yes, json_output=json_output, why=" to pay")
    opening = channel_opening.Open(
        server,
        deposit_sat=parse_price(deposit, what="deposit"),
        change_address=change.strip(),
        wallet=wallet,
        wait=not no_wait,
        yes=yes,
        as_json=json_output,
    )
    run(opening.run())


@group.command("found", epilog="Example: bitcache channel found TXID:0 --amount 20000sat")
@expected_errors
def found_channel(
    outpoint: Annotated[str, typer.Argument(metavar="TXID:N", help="Of the deposit, as your wallet shows.")],
    amount: Annotated[str, typer.Option(help="How much it is, such as 20000sat.")],
    address: Annotated[
        str | None, typer.Option(help="To which it was paid, if several addresses wait for a deposit.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Open the channel of a deposit that you know of and its server does not: it forgot the address, or came
    back from a backup.
    """
    amount_sat = parse_price(amount, what="amount")
    run(channel_opening.Found(outpoint, amount_sat=amount_sat, address=address, as_json=json_output).run())


@group.command("list", epilog="Example: bitcache channel list --json")
@expected_errors
def list_channels(
    server: Annotated[str | None, typer.Argument(metavar="[SERVER]", help="Only those of this one.")] = None,
    backup: Annotated[
        bool, typer.Option("--backup", help="With the backup lines: they hold your keys.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """List your channels: what is left in them, as you and as the server see it. Opens new deposits."""
    run(List(server, backup=backup, as_json=json_output).run())


@group.command("close", epilog="Example: bitcache channel close https://files.example.org")
@expected_errors
def close_channel(
    which: Annotated[
        str | None, typer.Argument(metavar="[CHANNEL|SERVER]", help="As `bitcache channel list` shows it.")
    ] = None,
    yes: YesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """End a channel together with the server: it gets what was spent, you the rest at today's fee."""
    refuse_to_ask(yes=yes, json_output=json_output)
    run(channel_ending.Close(which, yes=yes, as_json=json_output).run())


@group.command("refund", epilog="Example: bitcache channel refund TXID:0 --to bc1q...")
@expected_errors
def refund_channel(
    which: Annotated[
        str | None, typer.Argument(metavar="CHANNEL|BACKUPLINE", help="In quotes; - for stdin.")
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where the deposit goes.")] = None,
    backup_file: Annotated[Path | None, typer.Option(help="Read the backup line from this file.")] = None,
    outpoint: Annotated[
        str | None, typer.Option(metavar="TXID:N", help="With a backup line: the deposit.")
    ] = None,
    amount: Annotated[
        str | None, typer.Option(help="Of the deposit, in sats; of a channel here if it is not as listed.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="With a backup line: the server that may send it.")
    ] = None,
    feerate: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="sat/vB. Without it as usual, but a tenth of the deposit at most."
        ),
    ] = None,
    yes: YesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Take a deposit back after its channel has expired. Needs nobody: a transaction is made and sent.

    Shows the fee and asks, unless --feerate says what it may cost. Where the server does not send it, the
    transaction is printed for any node.
    """
    if to is None:
        raise UsageWrong("Say where the deposit goes: --to ADDRESS")
    refund = channel_ending.Refund(
        read_text(which, backup_file, what="channel or backup line"),
        to=to.strip(),
        outpoint=outpoint,
        amount_sat=None if amount is None else parse_price(amount, what="amount"),
        server=server,
        feerate_sat_vb=feerate,
        yes=yes,
        as_json=json_output,
    )
    run(refund.run())


@group.command("recover", epilog="Example: bitcache channel recover https://files.example.org - < backup.txt")
@expected_errors
def recover_channel(
    server: Server,
    line: Annotated[str | None, typer.Argument(metavar="BACKUPLINE", help="In quotes; - for stdin.")] = None,
    backup_file: Annotated[Path | None, typer.Option(help="Read the backup line from this file.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Bring a channel to this computer that another one opened, with its backup line.

    The server proves what was signed with the signature of your own key; nothing else is believed.
    """
    backup = read_text(line, backup_file, what="backup line")
    run(channel_ending.Recover(server, backup, as_json=json_output).run())
