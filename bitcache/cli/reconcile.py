"""`bitcache reconcile`: ledger and wallet compared to the satoshi, and what the operator says of a spend."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache import config_file
from bitcache.cli.common import confirm, show_count, show_sat
from bitcache.cli.data_folder import DATA_FOLDER, DataFolder
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

if TYPE_CHECKING:
    from bitcache.config import Config
    from bitcache.reconciling import ReportView
    from payments.foreign_spends import Explained
    from payments.money import Sat
    from payments.ports import Transaction

TXID = re.compile(r"[0-9a-f]{64}")

app = typer.Typer()


@app.command(
    "reconcile",
    epilog="Examples: bitcache reconcile --data /srv/bitcache; bitcache reconcile --explain TXID seller:Ada",
)
@expected_errors
def reconcile(
    accounts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ACCOUNT...]",
            help="With --explain: who bears it: operator, seller:NAME or owed:INVOICE; several as "
            "seller:Ada=40000 seller:Bob=12000 operator, the one without an amount the rest; none: nobody.",
        ),
    ] = None,
    explain: Annotated[
        str,
        typer.Option(metavar="TXID", help="Say whose money a transaction took that is no payout of ours."),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="With --explain: do not ask.")] = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Compare the ledger with the coins of the wallet for hosted sales, and explain every difference.

    Ends with exit code 1 if something is not explained. The node reads its whole set of unspent outputs: on
    mainnet that takes minutes.
    """
    settings = config_file.load(data)
    if explain:
        _explain(settings, explain.lower(), accounts or [], yes=yes, json_output=json_output)
        return
    if accounts:
        raise UsageWrong("An account is for --explain TXID.")
    report = run(_look(settings, quiet=json_output))
    if report is None:
        raise CommandFailed("There are and were no hosted sales here: set `descriptor` under [hosted] first.")
    if json_output:
        print_json(report)
    else:
        _show(report)
    if not report.explained:
        raise typer.Exit(1)


def _show(report: ReportView) -> None:
    print_text(f"Block {report.height:,}, {report.block_hash}")
    print_text(f"{report.node_sat:>16,} sat  in the wallet, says the node")
    print_text(f"{report.coins_sat:>16,} sat  in the wallet, say our records")
    for kind, amount_sat in report.liabilities_sat.items():
        print_text(f"{amount_sat:>16,} sat  owed: {OWED_TO.get(kind, kind)}")
    for line in report.lines:
        sign = "       " if line.explained else "WRONG  "
        print_text(f"{sign}{line.amount_sat:>+16,} sat  {printable(line.subject)}")
        print_text(f"         {printable(line.words)}")
    if len(report.lines) < report.lines_count:
        print_text(f"and {show_count(report.lines_count - len(report.lines), 'more line')}")
    if report.explained:
        print_text("Every satoshi is explained.")
    else:
        print_text(f"{report.difference_sat:,} sat are not explained.")


OWED_TO = {
    "seller": "to sellers",
    "operator": "to the operator",
    "payout": "to payouts under way",
    "owed": "to buyers",
    "unassigned": "for invoices that were lost",
    "pending": "to sellers, once channels are settled",
    "channel": "in channels: what came in by their closes, less what was sold in them",
}


def _explain(settings: Config, txid: str, accounts: list[str], *, yes: bool, json_output: bool) -> None:
    if not TXID.fullmatch(txid):
        raise UsageWrong(
            f"{txid!r} is no transaction id: 64 characters 0-9 and a-f, from `bitcache reconcile`."
        )
    shares = dict(_share(text) for text in accounts)
    if len(shares) < len(accounts):
        raise UsageWrong("Name each account once.")
    said = ", ".join(accounts) or "nobody: what was said before is taken back"
    if not yes and not confirm(f"What {txid} took out of the wallet is borne by {printable(said)}?"):
        raise CommandFailed("Nothing was booked. Answer y, or add --yes.")
    done = run(_book(settings, txid, shares))
    if json_output:
        print_json({"txid": txid, "net_out_sat": done.net_out_sat, "shares_sat": done.shares})
        return
    for account, amount_sat in done.shares.items():
        print_text(f"{show_sat(amount_sat)} of {show_sat(done.net_out_sat)} are borne by {account}.")
    if done.left_sat:
        print_text(f"{show_sat(done.left_sat)} are not explained, and payouts wait.")


def _share(text: str) -> tuple[str, int | None]:
    """`seller:Ada=40000` -> ("seller:Ada", 40000). Raises UsageWrong."""
    given = re.fullmatch(r"(.+)=([0-9]{1,16})", text)
    account, amount_sat = (given[1], int(given[2])) if given else (text, None)
    if account != "operator" and account.partition(":")[0] not in ("seller", "owed"):
        raise UsageWrong(
            f"{text!r} is no account: give operator, seller:NAME or owed:INVOICE, and an amount in whole "
            "sats as seller:NAME=40000."
        )
    return account, amount_sat


async def _look(settings: Config, *, quiet: bool) -> ReportView | None:
    from bitcache.services import open_services
    from bitcache.setup import prepare_database

    async with open_services(settings, with_channels=False) as services:
        await prepare_database(settings, services.database)
        return await services.reconciling.look(tell=(lambda words: None) if quiet else say)


async def _book(settings: Config, txid: str, named: dict[str, int | None]) -> Explained:
    from bitcache.services import now
    from bitcache.setup import open_database
    from payments import foreign_spends, ledger
    from payments.money import Sat

    async def write(tx: Transaction) -> Explained:
        shares: dict[str, Sat | None] = {}
        for account, amount_sat in named.items():
            kind, _, name = account.partition(":")
            if kind == "seller":
                account = ledger.seller(await _account_id(tx, name))
            shares[account] = None if amount_sat is None else Sat(amount_sat)
        return await foreign_spends.explain(tx, txid, shares, now=now())

    async with open_database(settings) as database:
        return await database.write(write)


async def _account_id(tx: Transaction, name: str) -> str:
    """Of an account by its name, or by the id that reports have. Raises CommandFailed."""
    from sqlalchemy import select

    from bitcache.accounts import id_of_name
    from bitcache.db.tables import accounts

    found = await id_of_name(tx, name) or await tx.scalar(select(accounts.c.id).where(accounts.c.id == name))
    if found is None:
        raise CommandFailed(f"There is no account {name!r}. `bitcache account list` shows all.")
    return found
