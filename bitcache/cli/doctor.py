"""`bitcache doctor`: is the service fit to take money, and how to mend it where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitcache.cli.data_folder import DATA_FOLDER, DataFolder
from bitcache.cli.output import JsonFlag, expected_errors, print_json, print_text, run

if TYPE_CHECKING:
    from bitcache.doctor import Finding

SIGNS = {"ok": "ok     ", "warning": "warning", "wrong": "WRONG  "}


app = typer.Typer()


@app.command("doctor", epilog="Example: bitcache doctor --data /srv/bitcache")
@expected_errors
def doctor(
    data: DataFolder = DATA_FOLDER,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Derive every invoice's status and bookings again.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Check configuration, database, disk, bitcoin node and clock; say how to mend what is wrong.

    Ends with exit code 1 if something is wrong.
    """
    findings, recomputed = run(_examine(data, recompute=recompute))
    if json_output:
        print_json({"findings": findings, "recomputed": recomputed})
    else:
        for finding in findings:
            print_text(f"{SIGNS[finding.verdict]}  {finding.check}: {finding.words}")
            if finding.mend:
                print_text(f"         {finding.mend}")
        if recomputed is not None:
            print_text(f"{recomputed[0]} invoices derived again, {recomputed[1]} changed")
    if any(finding.verdict == "wrong" for finding in findings):
        raise typer.Exit(1)


async def _examine(data: Path, *, recompute: bool) -> tuple[list[Finding], tuple[int, int] | None]:
    # The whole server is imported here and not above: a buyer's command must not wait for it.
    from bitcache import config as configuration
    from bitcache import doctor as checks
    from bitcache.services import open_services

    config = configuration.load(data)
    key = checks.check_master_key(config)
    findings = [key, checks.check_public_url(config), checks.check_disk(config)]
    if key.verdict == "wrong":
        return findings, None  # nothing else opens without it
    async with open_services(config) as services:
        database = await checks.check_database(services)
        findings.append(database)
        if database.verdict == "wrong":
            return findings, None
        findings.append(await checks.check_watcher(services))
        findings += [finding async for finding in checks.check_node(services)]
        return findings, await checks.recompute(services) if recompute else None
