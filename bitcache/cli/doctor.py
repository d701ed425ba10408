"""`bitcache doctor`: is the service fit to take money, and how to mend it where it is not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from bitcache.cli.data_folder import DATA_FOLDER, DataFolder
from bitcache.cli.output import JsonFlag, UsageWrong, expected_errors, print_json, print_text, run, say

if TYPE_CHECKING:
    from bitcache.doctor import Finding
    from bitcache.scrub import ScrubbedFile
    from bitcache.services import Services

SIGNS = {"ok": "ok     ", "warning": "warning", "wrong": "WRONG  "}
MB = 1_000_000
PROGRESS_S = 30
CHUNKS_NAMED_MAX = 10

app = typer.Typer()


class Scrubbed(Struct):
    """What a scrub read. `damaged`: the numbers of the damaged chunks of each damaged file."""

    files: int = 0
    size_bytes: int = 0
    damaged: dict[str, list[int]] = {}


class Wanted(Struct):
    """What is asked for besides the checks."""

    recompute: bool
    rescan: bool
    scrub: bool
    rate_mb: float
    file: str
    after: str


class Examination(Struct):
    findings: list[Finding]
    recomputed: tuple[int, int] | None = None
    """(invoices, those that changed)"""
    scrubbed: Scrubbed | None = None
    fetched_blocks: int | None = None


@app.command("doctor", epilog="Example: bitcache doctor --data /srv/bitcache")
@expected_errors
def doctor(
    data: DataFolder = DATA_FOLDER,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Derive every invoice's status and bookings again.")
    ] = False,
    rescan: Annotated[
        bool, typer.Option("--rescan", help="Have the node fetch blocks again that it pruned unscanned.")
    ] = False,
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Read every stored file again and compare it with its digests.")
    ] = False,
    rate_mb: Annotated[float, typer.Option(min=0.1, help="With --scrub: read so many MB/s at most.")] = 50,
    file: Annotated[str, typer.Option(help="With --scrub: only the file with this id.")] = "",
    after: Annotated[str, typer.Option(help="With --scrub: go on after the file with this id.")] = "",
    json_output: JsonFlag = False,
) -> None:
    """Check configuration, database, disk, bitcoin node and clock; say how to mend what is wrong.

    Ends with exit code 1 if something is wrong.
    """
    if (file or after) and not scrub:
        raise UsageWrong("--file and --after are for --scrub: add it.")
    wanted = Wanted(recompute=recompute, rescan=rescan, scrub=scrub, rate_mb=rate_mb, file=file, after=after)
    found = run(_examine(data, wanted))
    if json_output:
        print_json(found)
    else:
        _show(found)
    if any(finding.verdict == "wrong" for finding in found.findings):
        raise typer.Exit(1)


def _show(found: Examination) -> None:
    for finding in found.findings:
        print_text(f"{SIGNS[finding.verdict]}  {finding.check}: {finding.words}")
        if finding.mend:
            print_text(f"         {finding.mend}")
    if found.fetched_blocks is not None:
        print_text(f"{found.fetched_blocks} pruned blocks fetched again; the running server scans them")
    if found.recomputed is not None:
        print_text(f"{found.recomputed[0]} invoices derived again, {found.recomputed[1]} changed")
    if (scrubbed := found.scrubbed) is not None:
        print_text(
            f"{scrubbed.files} files read, {scrubbed.size_bytes} bytes; {len(scrubbed.damaged)} damaged"
        )
        for file_id, chunks in scrubbed.damaged.items():
            print_text(f"         {file_id}: {_chunk_words(chunks)}")


async def _examine(data: Path, wanted: Wanted) -> Examination:
    # The whole server is imported here and not above: a buyer's command must not wait for it.
    from bitcache import backup_checks, config_file, doctor_books, doctor_channels
    from bitcache import doctor as checks
    from bitcache.services import open_services

    config = config_file.load(data)
    key = checks.check_master_key(config)
    found = Examination([key, checks.check_public_url(config), checks.check_disk(config)])
    found.findings += (seed := doctor_channels.check_seed(config))
    if key.verdict == "wrong":
        return found  # nothing else opens without it
    async with open_services(config, with_channels=False) as services:
        database = await checks.check_database(services)
        found.findings.append(database)
        if database.verdict == "wrong":
            return found
        if wanted.scrub:
            found.scrubbed = await _scrub(services, wanted)
        found.findings.append(await checks.check_files(services))
        found.findings.append(await backup_checks.check_key_backup(services))
        found.findings.append(await checks.check_watcher(services))
        found.findings += await backup_checks.check_restore(services)
        found.findings += [finding async for finding in checks.check_node(services)]
        found.findings += [finding async for finding in doctor_books.check_books(services)]
        found.findings += [f async for f in doctor_channels.check_channel_books(services)]
        if all(finding.verdict == "ok" for finding in seed):
            found.findings += await doctor_channels.check_channels(services)
        if wanted.rescan:
            found.fetched_blocks = await checks.rescan(services)
        if wanted.recompute:
            found.recomputed = await checks.recompute(services)
        return found


async def _scrub(services: Services, wanted: Wanted) -> Scrubbed:
    from bitcache.scrub import scrub, scrub_file
    from storage.scrub import Pace

    read = Scrubbed()
    pace = Pace(wanted.rate_mb * MB)
    if wanted.file:
        _count(read, await scrub_file(services, wanted.file, pace=pace))
        return read
    told_at = time.monotonic()
    async for file in scrub(services, pace=pace, after=wanted.after):
        _count(read, file)
        if time.monotonic() - told_at > PROGRESS_S:
            told_at = time.monotonic()
            say(f"{read.files} files, {read.size_bytes / 2**30:.1f} GiB; go on later: --after {file.file_id}")
    return read


def _count(read: Scrubbed, file: ScrubbedFile) -> None:
    read.files += 1
    read.size_bytes += file.size_bytes
    if file.damaged:
        read.damaged[file.file_id] = file.damaged
        say(f"damaged: file {file.file_id}, {_chunk_words(file.damaged)}")


def _chunk_words(chunks: list[int]) -> str:
    named = ", ".join(str(chunk_no) for chunk_no in chunks[:CHUNKS_NAMED_MAX])
    more = f" and {len(chunks) - CHUNKS_NAMED_MAX} more" if len(chunks) > CHUNKS_NAMED_MAX else ""
    return f"{'chunk' if len(chunks) == 1 else 'chunks'} {named}{more}"
