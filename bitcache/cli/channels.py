"""What the operator does about payment channels: `channels seed`, `list`, `show`, `close`, `bump`.

All but `bump` work in the database alone, beside the running server and without it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache import config_file
from bitcache.cli.common import confirm, parse_feerate, refuse_to_ask, show_count, show_sat
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

if TYPE_CHECKING:
    from bitcache.channel_operations import ChannelDetails, ChannelLine, CloseLine
    from bitcache.config import Config

app = typer.Typer()
channels_app = typer.Typer(
    help="Payment channels, by which buyers pay chunk by chunk.",
    epilog="Example: bitcache channels list --help",
    no_args_is_help=True,
)
app.add_typer(channels_app, name="channels")

ChannelId = Annotated[str, typer.Argument(metavar="CHANNEL", help="A channel, from `channels list`.")]


@channels_app.command("seed", epilog="Example: bitcache channels seed --data /srv/bitcache")
@expected_errors
def channels_seed(
    copy: Annotated[
        Path | None,
        typer.Option("--copy", metavar="FILE", help="Copy the seed that is there to a new file."),
    ] = None,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Make the channel seed, from which the keys of all channels follow; or copy it, to keep it elsewhere."""
    settings = config_file.load(data)
    fingerprint = run(_seed(settings, copy))
    path = settings.channel_seed if copy is None else copy
    if json_output:
        print_json({"file": str(path), "fingerprint": fingerprint})
    elif copy is not None:
        print_text(f"Copied the channel seed {fingerprint} to {path}.")
    else:
        print_text(f"Made {path}. Next: set `enabled = true` under [channels], and restart the server.")
        say(
            "Back it up apart from the database, by `bitcache channels seed --copy FILE`: without it no "
            "channel can be closed."
        )


@channels_app.command("list", epilog="Example: bitcache channels list --data /srv/bitcache")
@expected_errors
def channels_list(
    everything: Annotated[bool, typer.Option("--all", help="Closed ones, too.")] = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """List the channels, the soonest to expire first: what they hold, and why one is not closed yet."""
    found = run(_overview(data, everything=everything))
    if json_output:
        print_json(found)
        return
    for line in found:
        _print_line(line)
    if not found:
        print_text("No channels." if everything else "No channel is open: --all shows the closed ones.")


@channels_app.command("show", epilog="Example: bitcache channels show CHANNEL --data /srv/bitcache")
@expected_errors
def channels_show(
    channel_id: ChannelId, data: DataFolder = DATA_FOLDER, json_output: JsonFlag = False
) -> None:
    """Show a channel, what was bought with it, and the transactions that were to close it."""
    found = run(_details(data, channel_id))
    if json_output:
        print_json(found)
        return
    _print_line(found.line)
    print_text(f"  {found.descriptor}")
    print_text(f"  set aside for the close: {show_sat(found.close_fee_sat)}")
    for sale in found.sales:
        spent = show_sat(sale.spent_msat // 1_000)
        print_text(f"  offer {sale.subject}: {show_count(sale.units, 'chunk')}, {spent} to {sale.seller_id}")
    for close in found.closes:
        _print_close(close)


@channels_app.command("close", epilog="Example: bitcache channels close CHANNEL --data /srv/bitcache")
@expected_errors
def channels_close(
    channel_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[CHANNEL...]", help="Channels, from `channels list`.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are open.")] = False,
    yes: YesFlag = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Close channels with the best voucher of each; buyers get back what is left. They pay for no more."""
    if bool(channel_ids) == everything:
        raise UsageWrong("Name channels, or give --all.")
    refuse_to_ask(yes=yes, json_output=json_output)
    what = "all open channels" if everything else show_count(len(set(channel_ids or ())), "channel")
    if not yes and not confirm(f"Close {what}?"):
        raise CommandFailed("Nothing was changed. Answer y, or add --yes.")
    asked = run(_close(data, None if everything else channel_ids))
    if json_output:
        print_json({"asked": asked})
    elif asked:
        print_text(
            f"{show_count(len(asked), 'channel')} to be closed: the running server does it within seconds."
        )
    else:
        print_text("None of them is open: nothing was changed.")


@channels_app.command(
    "bump", epilog="Example: bitcache channels bump CLOSE --feerate 12 --data /srv/bitcache"
)
@expected_errors
def channels_bump(
    close_id: Annotated[str, typer.Argument(metavar="CLOSE", help="A close, from `channels show`.")],
    feerate: Annotated[str, typer.Option("--feerate", metavar="SAT_VB", help="Higher than before.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Replace a close that no block has yet by one that pays the network more, out of what you receive."""
    txid = run(_bump(data, close_id, parse_feerate(feerate)))
    if json_output:
        print_json({"close_id": close_id, "txid": txid})
    else:
        print_text(f"Sent {txid} in its place.")


def _print_line(line: ChannelLine) -> None:
    state = f"{line.state} ({line.reason})" if line.reason is not None and not line.asked else line.state
    if line.asked:
        state = "open, to be closed"
    left = f"{line.blocks_left:,} blocks to expiry" if line.blocks_left >= 0 else "expired"
    print_text(
        f"{line.channel_id}  {state}: deposit {show_sat(line.capacity_sat)}, signed "
        f"{show_sat(line.accepted_sat)}, spent {show_sat(line.spent_msat // 1_000)}; "
        f"{show_count(line.confirmations, 'confirmation')}, {left}"
    )
    if line.trouble is not None:
        print_text(f"  {printable(line.trouble)}")


def _print_close(close: CloseLine) -> None:
    print_text(f"  close {close.close_id} of {show_count(close.channels, 'channel')}")
    for version in close.versions:
        where = f"block {version.height}" if version.height is not None else version.presence
        print_text(
            f"    version {version.n}: {version.feerate_sat_vb:g} sat/vB, {show_sat(version.fee_sat)} to the "
            f"network, {show_sat(version.payee_sat)} to your wallet, {where}  {version.txid}"
        )
        if version.child_txid is not None:
            print_text(f"    paid for by {version.child_txid}")


async def _seed(settings: Config, copy: Path | None) -> str:
    """Its fingerprint."""
    from bitcache import channel_seed
    from bitcache.backup import note_key_backup
    from bitcache.services import now
    from bitcache.setup import open_database

    if copy is None:
        channel_seed.write_channel_seed(settings.channel_seed)
        return channel_seed.fingerprint(channel_seed.read_channel_seed(settings.channel_seed))
    seed = channel_seed.read_channel_seed(settings.channel_seed)
    fingerprint = channel_seed.fingerprint(seed)
    async with open_database(settings) as database:
        channel_seed.copy_channel_seed(seed, copy)
        await database.write(lambda tx: note_key_backup(tx, fingerprint, now=now()))
    return fingerprint


async def _overview(data: Path, *, everything: bool) -> list[ChannelLine]:
    from bitcache import channel_operations
    from bitcache.setup import open_database

    async with open_database(config_file.load(data)) as database:
        return await database.read(partial(channel_operations.overview, everything=everything))


async def _details(data: Path, channel_id: str) -> ChannelDetails:
    from bitcache import channel_operations
    from bitcache.setup import open_database

    async with open_database(config_file.load(data)) as database:
        return await database.read(partial(channel_operations.details, channel_id=channel_id))


async def _close(data: Path, channel_ids: list[str] | None) -> list[str]:
    from bitcache import channel_operations
    from bitcache.services import now
    from bitcache.setup import open_database

    async with open_database(config_file.load(data)) as database:
        return await database.write(
            partial(channel_operations.ask_to_close, channel_ids=channel_ids, now=now())
        )


async def _bump(data: Path, close_id: str, feerate_sat_kvb: int) -> str:
    from payments.channel_errors import ChannelsOff

    async with server_services(data, with_channels=True) as services:
        if services.channels is None:
            raise ChannelsOff
        return await services.channels.closer.bump(close_id, feerate_sat_kvb=feerate_sat_kvb)
