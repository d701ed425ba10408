"""`backup`, `backup-key`, `restore`, and what a restored server must be told or asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache import config_file
from bitcache.cli.common import show_count, show_time
from bitcache.cli.data_folder import DATA_FOLDER, DataFolder
from bitcache.cli.operator import account_app
from bitcache.cli.output import (
    CommandFailed,
    JsonFlag,
    expected_errors,
    print_json,
    print_text,
    printable,
    run,
    say,
)
from bitcache.cli.payouts import payouts_app

if TYPE_CHECKING:
    from bitcache.backup import BackupDone
    from bitcache.config import Config
    from bitcache.unassigned_money import UnassignedMoney
    from payments.ports import Transaction

app = typer.Typer()


@app.command("backup", epilog="Example: bitcache backup /mnt/backup --data /srv/bitcache")
@expected_errors
def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if need be; what is there is kept.")],
    with_master_key: Annotated[
        bool,
        typer.Option(
            "--with-master-key",
            help="Put the master key in too, and the channel seed: then who has the backup can open it.",
        ),
    ] = False,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Back the whole server up, while it serves. Again into the same folder takes what is new."""
    settings = config_file.load(data)
    done = run(_back_up(settings, folder, with_master_key=with_master_key))
    manifest = done.manifest
    if json_output:
        print_json({"manifest": manifest, "copied": done.copied})
        return
    print_text(
        f"Backed up {show_count(manifest.blobs.count, 'file')} of {manifest.blobs.size_bytes:,} bytes, "
        f"{done.copied.count} of them new, and {show_count(manifest.uploads.count, 'unfinished upload')}."
    )
    if manifest.missing:
        say(
            f"The server itself has lost {show_count(len(manifest.missing), 'file')}, first "
            f"{manifest.missing[0]}: run `bitcache doctor --scrub`."
        )
    if not with_master_key:
        say("The master key is not in it: keep a copy elsewhere, made by `bitcache backup-key FILE`.")
        if settings.channels.enabled:
            say("Nor is the channel seed: keep a copy too, made by `bitcache channels seed --copy FILE`.")


@app.command("backup-key", epilog="Example: bitcache backup-key /media/stick/master.key --data /srv/bitcache")
@expected_errors
def backup_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, not where the backups are.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Copy the master key, and remember that it was copied: `bitcache doctor` warns until then."""
    fingerprint = run(_back_up_key(config_file.load(data), file))
    if json_output:
        print_json({"file": str(file), "fingerprint": fingerprint})
    else:
        print_text(f"Copied the master key {fingerprint} to {file}.")


@app.command("restore", epilog="Example: bitcache restore /mnt/backup --data /srv/bitcache --master-key key")
@expected_errors
def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `bitcache backup` made.")],
    master_key: Annotated[
        Path | None,
        typer.Option("--master-key", metavar="FILE", help="Your copy of the key, if the backup has none."),
    ] = None,
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """Make a new data folder from a backup. Everything is checked before anything is written."""
    from bitcache import restore as restoring
    from bitcache.services import now

    restored = run(
        restoring.restore(folder, data, master_key_file=master_key, environment=os.environ, now=now())
    )
    if json_output:
        print_json({"data_folder": str(data), "manifest": restored.manifest})
        return
    print_text(
        f"Restored {show_count(restored.manifest.blobs.count, 'file')}. Read {data}/bitcache.toml, then:"
    )
    print_text(f"bitcache serve --data {data}")
    if restored.config.channels.enabled and not restored.config.channel_seed.exists():
        say(f"Before that, put your copy of the channel seed at {restored.config.channel_seed}.")
    say("New invoices wait until the addresses in use since the backup are found: see `bitcache unassigned`.")
    if restored.config.accel_redirect_prefix:
        say("nginx cannot read the restored files yet: open them to it, see docs/OPERATING.md.")
    say("Passwords, tokens, wallets and offers that were changed since the backup are as they were.")


@app.command("unassigned", epilog="Example: bitcache unassigned --data /srv/bitcache")
@expected_errors
def unassigned(data: DataFolder = DATA_FOLDER, json_output: JsonFlag = False) -> None:
    """List what was paid to addresses handed out between the backup and the loss: the invoices are lost."""
    found = run(_list_unassigned(config_file.load(data)))
    if json_output:
        print_json(found)
        return
    for payment in found.payments:
        names = _names(payment.sellers, hosted=payment.hosted)
        print_text(
            f"{payment.amount_sat:>14,} sat  {payment.address}  index {payment.address_index}  "
            f"{payment.presence}, {show_count(payment.confirmations, 'confirmation')}  {payment.outpoint}  "
            f"{show_time(payment.first_seen_at)}  {names}"
        )
    if not found.payments:
        print_text("Nothing was paid to invoices that were lost.")
    else:
        print_text(f"{found.confirmed_sat:>14,} sat confirmed, in these wallets")
    for sellers in found.searching:
        if sellers or not found.hosted_searching:
            names = _names(sellers, hosted=False)
            print_text(f"No new invoices yet for: {names}. Used addresses are still searched for.")
    if found.hosted_searching:
        print_text("No new invoices of hosted sales yet, and no payouts: used addresses are searched for.")


def _names(sellers: tuple[str, ...], *, hosted: bool) -> str:
    named = [printable(name) for name in sellers] + (["your wallet for hosted sales"] if hosted else [])
    return ", ".join(named) or "a wallet no seller has now"


@account_app.command(
    "start-index", epilog='Example: bitcache account start-index "Ada\'s music" 700 --data /srv/bitcache'
)
@expected_errors
def account_start_index(
    name: Annotated[str, typer.Argument(help="Name of the account, from `account list`.")],
    index: Annotated[int, typer.Argument(min=0, max=2**31 - 1, help="Above every address handed out.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """After a restore whose blocks cannot be had: end the search for used addresses, and sell on."""
    decided = run(_decide(config_file.load(data), name, index))
    if not decided:
        raise CommandFailed(f"No wallet of {name!r} waits. `bitcache unassigned` says who does.")
    if json_output:
        print_json({"name": name, "start_index": index, "wallets": decided})
    else:
        print_text(f"{printable(name)} goes on at address {index}, within seconds of the server's next look.")


@payouts_app.command("start-index", epilog="Example: bitcache payouts start-index 700 --data /srv/bitcache")
@expected_errors
def payouts_start_index(
    index: Annotated[int, typer.Argument(min=0, max=2**31 - 1, help="Above every address handed out.")],
    data: DataFolder = DATA_FOLDER,
    json_output: JsonFlag = False,
) -> None:
    """After a restore: say from which address the wallet of hosted sales goes on, if the blocks cannot."""
    decided = run(_decide(config_file.load(data), None, index))
    if not decided:
        raise CommandFailed(
            "No wallet of hosted sales waits for an index, as one does after a restore: nothing was changed."
        )
    if json_output:
        print_json({"start_index": index, "wallets": decided})
    else:
        print_text(f"Hosted sales go on at address {index}, within seconds of the server's next look.")


async def _back_up(settings: Config, folder: Path, *, with_master_key: bool) -> BackupDone:
    from bitcache.backup import back_up, note_key_backup
    from bitcache.channel_seed import fingerprint, read_channel_seed
    from bitcache.services import now
    from bitcache.setup import open_database

    done = await back_up(settings, folder, with_master_key=with_master_key, now=now())
    if with_master_key:
        async with open_database(settings) as database:
            await database.write(lambda tx: note_key_backup(tx, done.manifest.master_key, now=now()))
            if settings.channels.enabled:
                seed = fingerprint(read_channel_seed(settings.channel_seed))
                await database.write(lambda tx: note_key_backup(tx, seed, now=now()))
    return done


async def _back_up_key(settings: Config, file: Path) -> str:
    from bitcache.backup import copy_master_key, note_key_backup
    from bitcache.services import now
    from bitcache.setup import open_database

    async with open_database(settings) as database:
        fingerprint = copy_master_key(settings, file)
        await database.write(lambda tx: note_key_backup(tx, fingerprint, now=now()))
    return fingerprint


async def _list_unassigned(settings: Config) -> UnassignedMoney:
    from bitcache.setup import open_database
    from bitcache.unassigned_money import listed

    async with open_database(settings) as database:
        return await database.read(listed)


async def _decide(settings: Config, name: str | None, start_index: int) -> int:
    """`name` None: the wallet of hosted sales."""
    from bitcache.setup import open_database
    from bitcache.unassigned_money import decide_hosted_start_index, decide_start_index

    async def decide(tx: Transaction) -> int:
        if name is None:
            return await decide_hosted_start_index(tx, start_index)
        return await decide_start_index(tx, name, start_index)

    async with open_database(settings) as database:
        return await database.write(decide)
