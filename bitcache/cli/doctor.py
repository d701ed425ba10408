"""`bitcache doctor`: is the service fit to take money, and how to mend it where it is not."""

from pathlib import Path
from typing import Annotated

import typer

from bitcache import config as configuration
from bitcache import doctor
from bitcache.cli.output import JsonFlag, expected_errors, print_json, print_text, run
from bitcache.doctor import Finding, Verdict
from bitcache.services import open_services

DataFolder = Annotated[
    Path,
    typer.Option("--data", envvar="BITCACHE_DATA", help="The server's data folder."),
]
SIGNS = {Verdict.OK: "ok     ", Verdict.WARNING: "warning", Verdict.WRONG: "WRONG  "}


@expected_errors
def doctor_command(
    data: DataFolder = Path("bitcache-data"),
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Derive every invoice's status and bookings again.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Check configuration, database, disk, bitcoin node and clock; say how to mend what is wrong.

    Ends with exit code 1 if something is wrong. Example: bitcache doctor --data /srv/bitcache
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
    if any(finding.verdict is Verdict.WRONG for finding in findings):
        raise typer.Exit(1)


async def _examine(data: Path, *, recompute: bool) -> tuple[list[Finding], tuple[int, int] | None]:
    config = configuration.load(data)
    key = doctor.check_master_key(config)
    findings = [key, doctor.check_public_url(config), doctor.check_disk(config)]
    if key.verdict is Verdict.WRONG:
        return findings, None  # nothing else opens without it
    async with open_services(config) as services:
        database = await doctor.check_database(services)
        findings.append(database)
        if database.verdict is Verdict.WRONG:
            return findings, None
        findings.append(await doctor.check_watcher(services))
        findings += [finding async for finding in doctor.check_node(services)]
        return findings, await doctor.recompute(services) if recompute else None
