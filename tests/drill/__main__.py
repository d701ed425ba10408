"""`make soak-drill [SECONDS=600] [SEED=n]`: see `tests.drill.run`. Exit code 1 for any difference.

Before anything else the process moves into a mount namespace of its own, where it may mount the small disk
that gets full; it goes with the process, however that ends. Where the system does not allow that, the
server's reserve stands for the full disk.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.drill.run import run
from tests.drill.schedule import schedule

INSIDE = "DRILL_INSIDE"
TMPFS = "tmpfs"
SECONDS = 600
SELLERS = 10
BUYERS = 100
PARCELS_EACH = 3


def main() -> int:
    way = os.environ.get(INSIDE) or _enter_namespace()
    seconds = int(os.environ.get("SECONDS") or SECONDS)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    plan = schedule(
        seed,
        seconds=seconds,
        sellers=int(os.environ.get("SELLERS") or SELLERS),
        buyers=int(os.environ.get("BUYERS") or BUYERS),
        parcels_each=int(os.environ.get("PARCELS") or PARCELS_EACH),
    )
    people = f"{len(plan.wallets)} sellers, {len(plan.buyers)} buyers"
    print(f"SEED={seed} SECONDS={seconds}: {people}; the faults:")
    print("\n".join(plan.lines()), flush=True)
    disk = "a tmpfs that shrinks" if way == TMPFS else "a restart with a reserve larger than the disk"
    print(f"A full disk is {disk}.", flush=True)
    if "schedule" in sys.argv[1:]:
        return 0
    keep = os.environ.get("KEEP")
    with tempfile.TemporaryDirectory(prefix="bitcache-drill-") as folder:
        wrong = asyncio.run(run(plan, Path(folder), tmpfs=way == TMPFS, keep=Path(keep) if keep else None))
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"SEED={seed}: {f'{len(wrong)} things are WRONG' if wrong else 'everything is as it should be'}")
    return 1 if wrong else 0


def _enter_namespace() -> str:
    """Go on in a mount namespace of our own, and do not return; or say why that is not to be had."""
    ways = [["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]]
    probe = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    for way in ways if shutil.which("unshare") else []:
        if subprocess.run([*way, *probe], capture_output=True, check=False).returncode == 0:
            environment = os.environ | {INSIDE: TMPFS}
            os.execvpe(way[0], [*way, sys.executable, "-m", "tests.drill", *sys.argv[1:]], environment)
    return "reserve"


if __name__ == "__main__":
    sys.exit(main())
