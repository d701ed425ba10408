"""What the operator does about payouts: `payouts list`, `show`, `approve`, `decline`, `withdraw`,
`deposit-address`, `resume`. Those about batches are in `bitcache.cli.batches`.

They work beside the running server, and without it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache.cli.common import confirm, parse_price, refuse_to_ask, show_count, show_sat, show_time
from bitcache.cli.data_folder import DATA_FOLDER, DataFolder
from bitcache.cli.output import (
    CommandFailed,
    JsonFlag,
    UsageWrong,
    YesFlag,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.cli.server_side import server_services
from bitcache.errors import HostedSalesOff, NotFound
from payments.errors import AddressesInDoubt, NodeUnavailable, PayoutNotFound

if TYPE_CHECKING:
    from bitcache.payout_desk import Decided
    from bitcache.payout_overview import BatchDetails, BatchLine, Overview, PayoutDetails, PayoutLine
    from bitcache.services import Services
    from payments.money import Sat
    from payments.payout import Payout
    from payments.records import IssuedAddress

app = typer.Typer()
payouts_app = typer.Typer(
    help="Payouts from the wallet that hosted sales are paid to.",
    epilog="Example: bitcache payouts list --help",
    no_args_is_help=True,
)
app.add_typer(payouts_app, name="payouts")


RESUME = """\
The backup that was put back does not know what was paid out after it was taken. What it believes unpaid is
paid when payouts go on: a second time, if it was paid since. Compare first: `bitcache reconcile`, and the
wallet's own list of what it sent."""


@payouts_app.command("list", epilog="Example: bitcache payouts list --data /srv/bitcache")
@expected_errors
def payouts_list(
    everything: Annotated[bool, typer.Option("--all", help="What is over, too.")] = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """List what waits to be paid out and why, the batches under way, and what the wallet has free."""
    found = run(_overview(data, everything=everything))
    if json_output:
        print_json(found)
        return
    if found.stopped is not None:
        print_text(f"Nothing is paid out now: {found.stopped}.")
    for payout in found.payouts:
        _print_payout(payout)
    for batch in found.batches:
        print_batch(batch)
    if not found.payouts:
        print_text("No payout waits.")
    print_text(f"Free: {show_sat(found.free_sat)} in {show_count(found.free_coins, 'coin')}.")
    print_text(f"Yours to withdraw: {show_sat(found.operator_payable_sat)}.")


@payouts_app.command("show", epilog="Example: bitcache payouts show ID --data /srv/bitcache")
@expected_errors
def payouts_show(
    row_id: Annotated[str, typer.Argument(metavar="ID", help="Of a payout or a batch.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Show a payout, or a batch with all its versions and what each payout pays of the fee."""
    from bitcache.payout_overview import PayoutDetails

    found = run(_details(data, row_id))
    if json_output:
        print_json(found)
    elif isinstance(found, PayoutDetails):
        _print_payout(found.payout)
        if found.share is not None:
            fee = show_sat(found.share.fee_sat)
            print_text(f"  of that {fee} go to the network: {show_sat(found.share.arrives_sat)} arrive")
        if found.batch is not None:
            print_batch(found.batch)
    else:
        print_details(found)


@payouts_app.command("approve", epilog="Example: bitcache payouts approve ID --data /srv/bitcache")
@expected_errors
def payouts_approve(
    payout_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Payouts, from `payouts list`.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Let payouts go with the next batch, also those that were declined: all of these, or none."""
    _print_decided(run(_approve(data, payout_ids)), json_output=json_output)


@payouts_app.command(
    "decline",
    epilog='Example: bitcache payouts decline ID --reason "paid by hand" --data /srv/bitcache',
)
@expected_errors
def payouts_decline(
    payout_id: Annotated[str, typer.Argument(metavar="ID", help="A payout, from `payouts list`.")],
    reason: Annotated[str, typer.Option("--reason", help="Why: who waits for the money reads it.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Refuse a payout that is in no batch yet: its amount goes back to where it was taken from."""
    if not reason.strip():
        raise UsageWrong("Give a --reason: who waits for the money reads it.")
    _print_decided([run(_decline(data, payout_id, reason.strip()))], json_output=json_output)


@payouts_app.command(
    "withdraw", epilog="Example: bitcache payouts withdraw 50000sat bc1q... --data /srv/bitcache"
)
@expected_errors
def payouts_withdraw(
    words: Annotated[
        list[str], typer.Argument(metavar="[AMOUNT] ADDRESS", help="How much, and to which address.")
    ],
    everything: Annotated[bool, typer.Option("--all", help="All that is yours, in place of AMOUNT.")] = False,
    yes: YesFlag = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Pay out your own part, fees and deposits, with the next batch. The network's fee comes out of it."""
    if len(words) != (1 if everything else 2):
        raise UsageWrong("Give AMOUNT and ADDRESS, or --all and ADDRESS.")
    refuse_to_ask(yes=yes, json_output=json_output)
    amount_sat = None if everything else parse_price(words[0])
    address = words[-1].strip()
    what = "all that is yours" if amount_sat is None else show_sat(amount_sat)
    if not yes and not confirm(f"Pay out {what} to {address}?"):
        raise CommandFailed("Nothing was changed. Answer y, or add --yes.")
    payout = run(_withdraw(data, address, amount_sat))
    if json_output:
        print_json({"payout_id": payout.id, "amount_sat": payout.amount_sat, "address": payout.address})
        return
    print_text(f"{payout.id}  {show_sat(payout.amount_sat)} go to {payout.address} with the next batch.")


@payouts_app.command(
    "deposit-address", epilog="Example: bitcache payouts deposit-address --data /srv/bitcache"
)
@expected_errors
def payouts_deposit_address(data: DataFolder = DATA_FOLDER, json_output: JsonFlag = False) -> None:
    """Print a new address of the wallet, to put money of your own into it: it stays yours in the books."""
    issued = run(_deposit_address(data))
    if json_output:
        print_json({"address": issued.address, "address_index": issued.index})
    else:
        print_text(issued.address)


@payouts_app.command("resume", epilog="Example: bitcache payouts resume --data /srv/bitcache")
@expected_errors
def payouts_resume(
    yes: YesFlag = False, data: DataFolder = DATA_FOLDER, json_output: JsonFlag = False
) -> None:
    """Pay out again after a restore, once you have looked for payouts that the backup does not know."""
    refuse_to_ask(yes=yes, json_output=json_output)
    if not yes:
        say(RESUME)
        if (doubt := run(_doubt(data))) is not None:
            say(doubt)
        if not confirm("Pay out again?"):
            raise CommandFailed("Nothing was changed. Answer y, or add --yes.")
    resumed = run(_resume(data))
    if json_output:
        print_json({"resumed": resumed})
    else:
        print_text("Payouts go on." if resumed else "No restore had stopped payouts: nothing was changed.")


def print_batch(batch: BatchLine) -> None:
    print_text(
        f"{batch.batch_id}  batch of {show_time(batch.created_at)}: {show_count(batch.payouts, 'payout')}, "
        f"{show_sat(batch.amount_sat)}, of which {show_sat(batch.fee_sat)} go to the network "
        f"({batch.feerate_sat_vb:g} sat/vB)"
    )
    print_text(f"  {batch.state}, {_clause(batch.stands)}" + (f"  {batch.txid}" if batch.txid else ""))
    if batch.trouble is not None:
        print_text(f"  {printable(batch.trouble)}")


def print_details(found: BatchDetails) -> None:
    print_batch(found.batch)
    for share in found.shares:
        print_share(share.payout_id, share.amount_sat, share.fee_sat, share.address)
    for one in found.inputs:
        print_text(f"  spends {show_sat(one.amount_sat)}  {one.outpoint}")
    if found.batch.change_sat:
        print_text(f"  change {show_sat(found.batch.change_sat)}")
    if found.left_sat:
        print_text(f"  {show_sat(found.left_sat)} are too little for change: the network has them")
    for version in found.versions:
        where = (version.presence or "signed") if version.signed else "not signed"
        print_text(
            f"  version {version.n} of {show_time(version.created_at)}: {version.feerate_sat_vb:g} sat/vB, "
            f"{show_sat(version.fee_sat)}, {where}" + (f"  {version.txid}" if version.txid else "")
        )


def print_share(payout_id: str, amount_sat: int, fee_sat: int, address: str) -> None:
    print_text(
        f"  {payout_id}  {show_sat(amount_sat)}, less {show_sat(fee_sat)} for the network: "
        f"{show_sat(amount_sat - fee_sat)} to {address}"
    )


@asynccontextmanager
async def desk_services(data: Path) -> AsyncIterator[Services]:
    """The server's; and errors that others meet too say here what the operator must do."""
    try:
        async with server_services(data) as services:
            yield services
    except HostedSalesOff as exc:
        exc.args = ("No wallet is named for hosted sales: set [hosted] `descriptor` in bitcache.toml.",)
        raise
    except (NotFound, PayoutNotFound) as exc:
        exc.args = ("There is no payout or batch of this id: `bitcache payouts list --all` shows all.",)
        raise
    except NodeUnavailable as exc:
        exc.args = (f"{exc}. Run this again when it does; `bitcache doctor` looks at it.",)
        raise
    except AddressesInDoubt as exc:
        exc.args = (
            "After the restore it is not known yet which addresses of the wallet were used: wait until "
            "`bitcache unassigned` says so no more.",
        )
        raise


def _print_payout(payout: PayoutLine) -> None:
    whose = {"seller": "earnings of", "refund": "refund of a sale by", "operator": "yours"}[payout.kind]
    name = "" if payout.seller is None else f" {printable(payout.seller)}"
    print_text(
        f"{payout.payout_id}  {show_time(payout.requested_at)}  {whose}{name}: "
        f"{show_sat(payout.amount_sat)} to {payout.address}"
    )
    waits = "" if payout.waits is None else f", {_clause(payout.waits)}"
    until = f" ({show_time(payout.ready_at)})" if payout.waits == "for its time" else ""
    decided = "" if payout.decided_by is None else f", decided by {printable(payout.decided_by)}"
    reason = "" if payout.reason is None else f": {printable(payout.reason)}"
    print_text(f"  {payout.state}{decided}{reason}{waits}{until}")


def _clause(waits: str) -> str:
    return f"waits {waits}" if waits.startswith(("for ", "to ")) else printable(waits)


def _print_decided(decided: list[Decided], *, json_output: bool) -> None:
    if json_output:
        print_json(
            [{"payout_id": d.payout.id, "state": d.payout.state, "changed": d.changed} for d in decided]
        )
        return
    for one in decided:
        already = "" if one.changed else "already "
        print_text(f"{one.payout.id}  {show_sat(one.payout.amount_sat)}  {already}{one.payout.state}")


async def _overview(data: Path, *, everything: bool) -> Overview:
    from bitcache.payout_overview import overview

    async with desk_services(data) as services:
        hosted, now = services.config.hosted, services.clock()
        return await services.database.read(lambda tx: overview(tx, hosted, now=now, everything=everything))


async def _details(data: Path, row_id: str) -> PayoutDetails | BatchDetails:
    from bitcache.payout_overview import details

    async with desk_services(data) as services:
        hosted, now = services.config.hosted, services.clock()
        return await services.database.read(lambda tx: details(tx, hosted, row_id, now=now))


async def _approve(data: Path, payout_ids: list[str]) -> list[Decided]:
    from bitcache import payout_desk

    async with desk_services(data) as services:
        return await payout_desk.approve(services, payout_ids)


async def _decline(data: Path, payout_id: str, reason: str) -> Decided:
    from bitcache import payout_desk

    async with desk_services(data) as services:
        return await payout_desk.decline(services, payout_id, reason=reason)


async def _withdraw(data: Path, address: str, amount_sat: Sat | None) -> Payout:
    from bitcache import payout_desk
    from bitcache.ids import new_id

    async with desk_services(data) as services:
        return await payout_desk.withdraw(services, new_id(), address, amount_sat)


async def _deposit_address(data: Path) -> IssuedAddress:
    from bitcache import payout_desk

    async with desk_services(data) as services:
        return await payout_desk.deposit_address(services)


async def _doubt(data: Path) -> str | None:
    from bitcache import reconciling

    async with desk_services(data) as services:
        return await services.database.read(reconciling.doubt_since_restore)


async def _resume(data: Path) -> bool:
    from bitcache import payout_desk

    async with desk_services(data) as services:
        return await payout_desk.resume(services)
