"""`make soak-payouts [SECONDS=600] [SEED=n]`: stories of ten sellers and a hundred buyers, one after another,
until the time is over. Exit code 1 for any difference.

A story is drawn by Hypothesis from its seed, which is printed, as is the blob of one that fails: SEED=n plays
it again first. STEPS, SELLERS and BUYERS change its size.
"""

from __future__ import annotations

import os
import random
import sys
import time

from tests.payout_soak.run import Size, played

SECONDS = 600
SIZE = Size(sellers=10, buyers=100, steps=500)


def main() -> int:
    seconds = int(os.environ.get("SECONDS") or SECONDS)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    size = Size(
        sellers=int(os.environ.get("SELLERS") or SIZE.sellers),
        buyers=int(os.environ.get("BUYERS") or SIZE.buyers),
        steps=int(os.environ.get("STEPS") or SIZE.steps),
    )
    until = time.monotonic() + seconds
    wrong = 0
    while True:
        print(f"SEED={seed}: {size}", flush=True)
        began_at = time.monotonic()
        try:
            counts = played(seed, size, loud=not os.environ.get("QUIET")).counts
        except Exception as exc:
            wrong += 1
            blob = getattr(exc, "__notes__", [])[-1:]
            print("\n".join([f"SEED={seed} is WRONG: {exc!r}\n{exc}", *blob]), flush=True)
        else:
            told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            took_s = time.monotonic() - began_at
            print(f"SEED={seed}: everything is as it should be, after {took_s:.0f} s: {told}", flush=True)
        if time.monotonic() > until:
            return 1 if wrong else 0
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
