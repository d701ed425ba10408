"""What the operator does about reports: `reports`, `takedown`. A running server hears of it at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache.cli.common import confirm, show_count, show_time
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
from bitcache.cli.server_side import server_services
from bitcache.ids import ID_PATTERN

if TYPE_CHECKING:
    from bitcache.reports import Report
    from bitcache.takedown import Reached

app = typer.Typer()

_OFFER = re.compile(rf"(?:https?://\S*/d/)?({ID_PATTERN})(?:[?#/].*)?")


@app.command("reports", epilog="Example: bitcache reports --data /srv/bitcache")
@expected_errors
def reports(
    all_reports: Annotated[bool, typer.Option("--all", help="Those already handled too.")] = False,
    handled: Annotated[
        str | None, typer.Option("--handled", metavar="REPORT", help="Mark this one as handled instead.")
    ] = None,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """List what people have reported about offers, the newest first."""
    if handled is not None:
        run(_mark(data, handled))
        if json_output:
            print_json({"report_id": handled})
        else:
            say("Marked as handled.")
        return
    found = run(_list(data, handled=all_reports))
    if json_output:
        print_json(found)
        return
    for report in found:
        _print_report(report)
    if not found:
        say("No report waits.")


@app.command(
    "takedown", epilog='Example: bitcache takedown OFFER --reason "court order 7" --data /srv/bitcache'
)
@expected_errors
def takedown(
    offer: Annotated[str, typer.Argument(help="The offer's id, or its link.")],
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why, for your own records; nobody else is shown it.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Put it back instead.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Stop selling and serving a parcel, in all its offers; its buyers are told at once, and are owed.

    Files stay on the disk until the seller or you delete the parcel.
    """
    match = _OFFER.fullmatch(offer.strip())
    if match is None:
        raise UsageWrong("Give an offer's id (26 letters and digits) or its link.")
    if undo == (reason is not None):
        raise UsageWrong("Give either --reason or --undo.")
    question = "Put the parcel of this offer back?" if undo else "Take down the parcel of this offer?"
    if not yes and not confirm(f"{question} {match[1]}"):
        raise CommandFailed("Nothing was changed. Answer y, or add --yes.")
    reached = run(_take_down(data, match[1], reason))
    if json_output:
        print_json(reached)
        return
    done = "Put back" if undo else "Taken down"
    print_text(f"{done}: parcel {reached.parcel_id}, in {show_count(len(reached.offer_ids), 'offer')}.")
    told = show_count(reached.invoices, "invoice")
    print_text(f"Buyers of {told} are told; money came for {reached.invoices_with_money} of them.")
    if reached.reports_handled:
        print_text(f"Marked {show_count(reached.reports_handled, 'report')} as handled.")


def _print_report(report: Report) -> None:
    """Its words are a stranger's, and this is a terminal."""
    state = "" if report.handled_at is None else f", handled {show_time(report.handled_at)}"
    print_text(f"{report.id}  {show_time(report.created_at)}  {printable(report.reason)}{state}")
    taken = " (taken down)" if report.taken_down_at is not None else ""
    print_text(f"  offer {report.offer_id}{taken}, by {printable(report.seller_name)}")
    if report.contact:
        print_text(f"  from {printable(report.contact)}")
    for line in report.message.splitlines():
        print_text(f"  | {printable(line)}")


async def _list(data: Path, *, handled: bool) -> list[Report]:
    from bitcache.reports import list_reports

    async with server_services(data) as services:
        return await services.database.read(lambda tx: list_reports(tx, handled=handled))


async def _mark(data: Path, report_id: str) -> None:
    from bitcache.reports import mark_handled

    async with server_services(data) as services:
        await services.database.write(lambda tx: mark_handled(tx, report_id, now=services.clock()))


async def _take_down(data: Path, offer_id: str, reason: str | None) -> Reached:
    """Without a reason it is put back."""
    from bitcache.takedown import put_back, take_down

    async with server_services(data) as services:
        registry, access, now = services.registry, services.access, services.clock()
        if reason is None:
            return await services.database.write(lambda tx: put_back(tx, registry, access, offer_id, now=now))
        return await services.database.write(
            lambda tx: take_down(tx, registry, access, offer_id, reason=reason, now=now)
        )
