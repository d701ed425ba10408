"""What the operator does about batches of payouts: `payouts build`, `export`, `import`, `sign`, `bump`,
`abandon`. What waits to be in one is in `bitcache.cli.payouts`.
"""

from __future__ import annotations

import base64
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache.cli.common import confirm, parse_feerate, refuse_to_ask, show_count, show_sat
from bitcache.cli.data_folder import DATA_FOLDER, DataFolder
from bitcache.cli.output import (
    CommandFailed,
    JsonFlag,
    YesFlag,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.cli.payouts import desk_services, print_details, print_share

if TYPE_CHECKING:
    from bitcache.payout_desk import Sent
    from bitcache.payout_overview import BatchDetails
    from bitcache.services import Services
    from payments.payout_planning import BatchPlan

app = typer.Typer()

PSBT_BYTES_MAX = 24 * 1024 * 1024

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="A batch, from `payouts list`.")]


@app.command("build", epilog="Example: bitcache payouts build --feerate 3.5 --data /srv/bitcache")
@expected_errors
def payouts_build(
    feerate: Annotated[
        str | None,
        typer.Option("--feerate", metavar="SAT_VB", help="What to pay the network; else as configured."),
    ] = None,
    yes: YesFlag = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Put all payouts that are ready into one transaction: shown first, then made if you say so."""
    refuse_to_ask(yes=yes, json_output=json_output)
    feerate_sat_kvb = None if feerate is None else parse_feerate(feerate)
    batch_id, signs = run(_build(data, feerate_sat_kvb, yes=yes, show=not json_output))
    if json_output:
        print_json({"batch_id": batch_id})
    elif batch_id is None:
        print_text("No payout can be in a batch now: `bitcache payouts list` says why.")
    else:
        next_step = "sign" if signs else "export"
        print_text(f"Made batch {batch_id}. Next: bitcache payouts {next_step} {batch_id}")
        if signs:
            say("A running server signs and sends it by itself, within seconds.")


@app.command(
    "export",
    epilog="Example: bitcache payouts export BATCH --out batch.psbt --data /srv/bitcache",
)
@expected_errors
def payouts_export(
    batch_id: BatchId,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A new file, binary; else base64 on stdout.")
    ] = None,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Give out a batch's PSBT, to be signed elsewhere. It cannot be abandoned from then on."""
    if out is not None and (out.exists() or out.is_symlink()):
        raise CommandFailed(f"{out} is there already, and is not overwritten: name another file.")
    psbt = run(_export(data, batch_id))
    if out is not None:
        _write_new(out, base64.b64decode(psbt))
    if json_output:
        print_json({"batch_id": batch_id} | ({"psbt": psbt} if out is None else {"file": str(out)}))
    elif out is None:
        print_text(psbt)
    else:
        print_text(f"Wrote {out}. Sign it, then: bitcache payouts import {batch_id} FILE")


@app.command(
    "import",
    epilog="Example: bitcache payouts import BATCH signed.psbt --data /srv/bitcache",
)
@expected_errors
def payouts_import(
    batch_id: BatchId,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Signed PSBT, base64 or binary, or hex; else from stdin."),
    ] = None,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Take a batch that was signed elsewhere, compare it with what was asked for, and send it."""
    _print_sent(batch_id, run(_import(data, batch_id, _signed_text(file))), json_output=json_output)


@app.command("sign", epilog="Example: bitcache payouts sign BATCH --data /srv/bitcache")
@expected_errors
def payouts_sign(batch_id: BatchId, data: DataFolder = DATA_FOLDER, json_output: JsonFlag = False) -> None:
    """Have a batch signed by the wallet of the node that the configuration names, and send it."""
    _print_sent(batch_id, run(_sign(data, batch_id)), json_output=json_output)


@app.command(
    "bump",
    epilog="Example: bitcache payouts bump BATCH --feerate 12 --data /srv/bitcache",
)
@expected_errors
def payouts_bump(
    batch_id: BatchId,
    feerate: Annotated[str, typer.Option("--feerate", metavar="SAT_VB", help="Higher than before.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Replace a batch's transaction, which no block has yet, by one that pays the network more."""
    found, sent = run(_bump(data, batch_id, parse_feerate(feerate)))
    if sent is not None:
        _print_sent(batch_id, sent, json_output=json_output)
    elif json_output:
        print_json(found)
    else:
        print_details(found)
        print_text(f"Next: bitcache payouts export {batch_id}")


@app.command("abandon", epilog="Example: bitcache payouts abandon BATCH --data /srv/bitcache")
@expected_errors
def payouts_abandon(batch_id: BatchId, data: DataFolder = DATA_FOLDER, json_output: JsonFlag = False) -> None:
    """Give up a batch that nobody can have signed: its payouts go with another one."""
    run(_abandon(data, batch_id))
    if json_output:
        print_json({"batch_id": batch_id})
    else:
        print_text(f"Gave up batch {batch_id}: its payouts go with another one.")


def _signed_text(file: Path | None) -> str:
    """A PSBT in base64, or hex. Raises CommandFailed."""
    try:
        if file is None or str(file) == "-":
            octets = sys.stdin.buffer.read(PSBT_BYTES_MAX + 1)
        else:
            with file.open("rb") as opened:
                octets = opened.read(PSBT_BYTES_MAX + 1)
    except OSError as exc:
        raise CommandFailed(f"The signed PSBT cannot be read: {exc}") from exc
    if len(octets) > PSBT_BYTES_MAX:
        raise CommandFailed(f"These are more than {PSBT_BYTES_MAX:,} bytes, which no signed batch has.")
    if octets.startswith(b"psbt\xff"):
        return base64.b64encode(octets).decode()
    try:
        text = octets.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise CommandFailed("This is no signed PSBT: give it in base64 or binary, or the transaction in hex.")
    return text


def _write_new(path: Path, octets: bytes) -> None:
    """For its owner alone: whose payouts these are is nobody else's business. Raises CommandFailed."""
    from bitcache.master_key import create_private

    try:
        create_private(path, octets)
    except OSError as exc:
        raise CommandFailed(f"{path} cannot be written: {exc.strerror}. Export again, elsewhere.") from exc


def _print_plan(plan: BatchPlan) -> None:
    payouts = {payout.id: payout for payout in plan.payouts}
    print_text(
        f"{show_count(len(plan.shares), 'payout')} from {show_count(len(plan.choice.coins), 'coin')}, at "
        f"{plan.feerate_sat_kvb / 1_000:g} sat/vB: {show_sat(plan.fee_sat)} go to the network."
    )
    for share in plan.shares:
        payout = payouts[share.payout_id]
        print_share(payout.id, payout.amount_sat, share.fee_sat, payout.address)
    if plan.choice.change_sat:
        print_text(f"  change {show_sat(plan.choice.change_sat)}")
    if plan.choice.left_sat:
        print_text(f"  {show_sat(plan.choice.left_sat)} too little for change, for the network too")


def _print_sent(batch_id: str, sent: Sent, *, json_output: bool) -> None:
    if json_output:
        version = {"version": sent.version.n, "txid": sent.version.txid}
        print_json({"batch_id": batch_id, **version, "refusal": sent.refusal})
        return
    print_text(f"Signed: version {sent.version.n}, {sent.version.txid}")
    if sent.refusal is None:
        print_text("The node has it.")
    else:
        say(f"Not sent yet: {printable(sent.refusal)}. A running server goes on trying.")


async def _build(
    data: Path, feerate_sat_kvb: int | None, *, yes: bool, show: bool
) -> tuple[str | None, bool]:
    """The batch, if there is one; whether the node's wallet signs here."""
    from bitcache import payout_desk

    async with desk_services(data) as services:
        signs = services.signer is not None
        plan = await payout_desk.plan(services, feerate_sat_kvb)
        if plan is None:
            return None, signs
        if show:
            _print_plan(plan)
        if not yes and not confirm("Make this batch?"):
            raise CommandFailed("Nothing was changed. Answer y, or add --yes.")
        return await payout_desk.keep(services, plan), signs


async def _export(data: Path, batch_id: str) -> str:
    async with desk_services(data) as services:
        return await services.batches.export(batch_id)


async def _import(data: Path, batch_id: str, text: str) -> Sent:
    from bitcache import payout_desk

    async with desk_services(data) as services:
        return await payout_desk.import_signed(services, batch_id, text)


async def _sign(data: Path, batch_id: str) -> Sent:
    from bitcache import payout_desk

    async with desk_services(data) as services:
        return await payout_desk.sign(services, batch_id)


async def _bump(data: Path, batch_id: str, feerate_sat_kvb: int) -> tuple[BatchDetails, Sent | None]:
    from bitcache import payout_desk

    async with desk_services(data) as services:
        sent = await payout_desk.bump(services, batch_id, feerate_sat_kvb)
        return await _details(services, batch_id), sent


async def _details(services: Services, batch_id: str) -> BatchDetails:
    from bitcache.payout_overview import batch_details
    from payments import batch_store

    batch = await services.database.read(partial(batch_store.load_batch, batch_id=batch_id))
    return await services.database.read(lambda tx: batch_details(tx, services.config.hosted, batch))


async def _abandon(data: Path, batch_id: str) -> None:
    async with desk_services(data) as services:
        await services.batches.abandon(batch_id)
