"""The books: `statement` for sellers, `ledger` for the operator on the server's machine."""

from __future__ import annotations

import re
import sys
from datetime import UTC, date, datetime, tzinfo
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache import config_file
from bitcache.api import wire_money
from bitcache.cli.common import day_start, parse_zone, seller_api, show_sat
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
)
from bitcache.client.retry import CONNECTION_TROUBLE

if TYPE_CHECKING:
    from bitcache.config import Config
    from bitcache.earnings import Period
    from bitcache.operator_books import Held, OperatorBooks

app = typer.Typer()
ledger = typer.Typer(
    help="The server's double-entry ledger: what was earned, and what is held for whom.",
    epilog="Example: bitcache ledger --help",
    no_args_is_help=True,
)
app.add_typer(ledger, name="ledger")

END_OF_TIME = 2**62
_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")

Month = Annotated[str | None, typer.Option(help="A whole month, like 2030-01.")]
Since = Annotated[str | None, typer.Option(help="First day, like 2030-01-31.")]
Until = Annotated[str | None, typer.Option(help="Last day.")]
Zone = Annotated[str, typer.Option(help="Time zone of the days, like Europe/Paris.")]


class ExportFormat(StrEnum):
    CSV = "csv"
    HLEDGER = "hledger"


@app.command(
    "statement", epilog="Example: bitcache statement --month 2030-01 --tz Europe/Paris --csv > january.csv"
)
@expected_errors
def statement(
    month: Month = None,
    since: Since = None,
    until: Until = None,
    tz: Zone = "UTC",
    csv: Annotated[bool, typer.Option("--csv", help="Print every line as CSV.")] = False,
    transfers: Annotated[
        bool, typer.Option("--ledger", help="Print the ledger's transfers on your accounts as CSV.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Show what the operator holds of your earnings, and how it came about; by default this month."""
    if csv + transfers + json_output > 1:
        raise UsageWrong("Choose one of --csv, --ledger and --json.")
    first, end = _asked(month, since, until, parse_zone(tz))
    query = {"since": str(first), "until": str(end), "tz": tz}
    if csv or transfers:
        run(_print_table("/ledger.csv" if transfers else "/statement.csv", query))
        return

    async def ask() -> wire_money.StatementView:
        async with seller_api() as api:
            return await api.get("/statement", wire_money.StatementView, query=query)

    view = run(ask())
    if json_output:
        print_json(view)
    else:
        _print_statement(view)


@ledger.command("show", epilog="Example: bitcache ledger show --month 2030-01 --data /srv/bitcache")
@expected_errors
def ledger_show(
    month: Month = None,
    since: Since = None,
    until: Until = None,
    tz: Zone = "UTC",
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Show what moved in a period, over all sellers, and what your wallet held for whom at its end."""
    from bitcache.earnings import Period

    zone = parse_zone(tz)
    period = Period(*_asked(month, since, until, zone), zone)
    found = run(_operator_books(config_file.load(data), period))
    facts = _facts(found)
    if json_output:
        print_json({"since": period.since, "until": period.until, **facts})
    else:
        _print_books(found)


@ledger.command(
    "export", epilog="Example: bitcache ledger export --format hledger --data /srv/bitcache > books.journal"
)
@expected_errors
def ledger_export(
    since: Annotated[str | None, typer.Option(help="First day, UTC, like 2030-01-31.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day, UTC.")] = None,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="A table, or a journal for hledger or ledger-cli.")
    ] = ExportFormat.CSV,
    data: DataFolder = DATA_FOLDER,
) -> None:
    """Print every transfer of the ledger, oldest first: by default since the beginning."""
    first = 0 if since is None else day_start(since, zone=UTC)
    end = END_OF_TIME if until is None else day_start(until, zone=UTC) + 86_400
    run(_export(config_file.load(data), form, first, end))


async def _print_table(path: str, query: dict[str, str]) -> None:
    """As it comes: years of lines need no memory."""
    try:
        async with seller_api() as api, api.stream(path, headers={}, query=query) as answer:
            async for piece in answer.content.iter_any():
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise  # `| head` has seen enough
    except CONNECTION_TROUBLE as exc:
        raise CommandFailed(
            "The table broke off: what was printed is not all of it. Run this again."
        ) from exc


async def _operator_books(settings: Config, period: Period) -> OperatorBooks:
    from bitcache.operator_books import operator_books
    from bitcache.setup import open_database

    async with open_database(settings) as database:
        return await database.read(lambda tx: operator_books(tx, period))


async def _export(settings: Config, form: ExportFormat, since: int, until: int) -> None:
    from bitcache.ledger_export import Format, export
    from bitcache.setup import open_database
    from payments.ports import Transaction

    async def write(tx: Transaction) -> None:
        async for text in export(tx, Format(form.value), since=since, until=until):
            sys.stdout.buffer.write(text.encode())

    async with open_database(settings) as database:
        await database.read(write)
    sys.stdout.buffer.flush()


def _asked(month: str | None, since: str | None, until: str | None, zone: tzinfo) -> tuple[int, int]:
    """[first, end) in Unix seconds: the month, the days, or the month that is now. Raises UsageWrong."""
    today = datetime.now(zone).date()
    if month is not None:
        if since is not None or until is not None:
            raise UsageWrong("Choose --month, or --since and --until.")
        parts = _MONTH.fullmatch(month)
        if parts is None or not (1 <= int(parts[2]) <= 12 and 2009 <= int(parts[1]) <= 9998):
            raise UsageWrong(f"{month!r} is no month. Write it as 2030-01.")
        first = date(int(parts[1]), int(parts[2]), 1)
        after = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        return _start(first, zone), _start(after, zone)
    begin = _start(today.replace(day=1), zone) if since is None else day_start(since, zone=zone)
    end = (_start(today, zone) if until is None else day_start(until, zone=zone)) + 86_400
    if end <= begin:
        raise UsageWrong("The first day comes after the last.")
    return begin, end


def _start(day: date, zone: tzinfo) -> int:
    return day_start(day.isoformat(), zone=zone)


def _print_statement(view: wire_money.StatementView) -> None:
    sums = view.sums
    _print_amounts(
        (
            ("Balance before", view.opening_sat),
            ("Sold, hosted", sums.gross_sat - sums.metered_sat),
            ("Sold per chunk", sums.metered_sat),
            ("Operator's fee", -sums.operator_fee_sat),
            ("Paid out, arrived", -sums.paid_out_sat),
            ("Paid out, to the network", -sums.network_fee_sat),
            ("Corrections", -sums.corrections_sat),
            ("Balance after", view.closing_sat),
        )
    )
    if view.reserved_sat:
        print_text(f"Of it {show_sat(view.reserved_sat)} are set aside for payouts that no block has yet.")
    if sums.reversed_sat:
        print_text(f"Taken back of sales, and in the sums already: {show_sat(sums.reversed_sat)}.")
    if sums.refunds_sat:
        print_text(
            f"Refunded to buyers: {show_sat(sums.refunds_sat)}, and {show_sat(sums.refunds_network_fee_sat)} "
            "to the network: out of what was owed to them, not out of your balance."
        )
    if sums.direct_sat:
        print_text(f"Sold to your own wallet: {show_sat(sums.direct_sat)}.")
    for part in view.parts:
        print_text(
            f"{printable(part.name)}  sold {show_sat(part.sums.gross_sat)}, fee "
            f"{show_sat(part.sums.operator_fee_sat)}, paid out {show_sat(part.sums.paid_out_sat)}, direct "
            f"{show_sat(part.sums.direct_sat)}"
        )


def _facts(found: OperatorBooks) -> dict[str, object]:
    """In whole sats."""
    sums, held = found.sums, found.held
    held_sat = _held_sat(held)
    return {
        "sums": {
            name.replace("_msat", "_sat"): getattr(sums, name) // 1_000 for name in sums.__dataclass_fields__
        },
        "held": {
            "sellers": [
                {"account_id": id_, "name": found.names.get(id_), "balance_sat": amount // 1_000}
                for id_, amount in sorted(held.sellers_msat.items())
            ],
            "sellers_sat": sum(amount // 1_000 for amount in held.sellers_msat.values()),
            **{f"{name}_sat": amount for name, amount in held_sat.items()},
            "sum_sat": held.sum_msat // 1_000,
        },
    }


def _print_books(found: OperatorBooks) -> None:
    sums, held = found.sums, found.held
    held_sat = _held_sat(held)
    print_text("Moved in the period")
    _print_amounts(
        (
            ("Hosted sales", sums.hosted_msat // 1_000),
            ("Sold per chunk", sums.metered_msat // 1_000),
            ("Your fees of both", sums.fees_msat // 1_000),
            ("Left to you by closes", sums.channels_msat // 1_000),
            ("Paid out to sellers", sums.paid_to_sellers_msat // 1_000),
            ("Refunded to buyers", sums.refunded_msat // 1_000),
            ("Network fees of both", sums.network_fee_msat // 1_000),
            ("Network fees you bore", sums.own_network_fee_msat // 1_000),
            ("Deposited by you", sums.deposited_msat // 1_000),
            ("Withdrawn by you", sums.withdrawn_msat // 1_000),
            ("Spent otherwise", sums.spent_msat // 1_000),
            ("Direct sales, not yours", sums.direct_msat // 1_000),
        )
    )
    print_text("Held at its end")
    _print_amounts(
        (
            *(
                (f"For {printable(found.names.get(id_, id_), length_max=40)}", amount // 1_000)
                for id_, amount in sorted(held.sellers_msat.items())
            ),
            ("For buyers", held_sat["buyers"]),
            ("Of closes not yet deep", held_sat["channels"]),
            ("For payers of channels", held_sat["payers"]),
            ("For payouts under way", held_sat["payouts"]),
            ("Unassigned", held_sat["unassigned"]),
            ("Your own", held_sat["operator"]),
            ("Unexplained", held_sat["unexplained"]),
            ("In the wallet", held.sum_msat // 1_000),
        )
    )


def _held_sat(held: Held) -> dict[str, int]:
    """Whole sats that add up to what the wallet holds: fractions, of what is sold per chunk, are your own."""
    found = {
        "buyers": held.buyers_msat // 1_000,
        "channels": held.channels_msat // 1_000,
        "payers": held.payers_msat // 1_000,
        "payouts": held.payouts_msat // 1_000,
        "unassigned": held.unassigned_msat // 1_000,
        "unexplained": held.unexplained_msat // 1_000,
    }
    sellers_sat = sum(amount // 1_000 for amount in held.sellers_msat.values())
    return {**found, "operator": held.sum_msat // 1_000 - sellers_sat - sum(found.values())}


def _print_amounts(rows: tuple[tuple[str, int], ...]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, amount_sat in rows:
        print_text(f"  {name:<{width}}  {show_sat(amount_sat):>20}")
