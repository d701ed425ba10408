"""`make soak-channel [PAYMENTS=5000] [SEED=n]`: that many payments through channels of sixteen payers, while
server and payers are killed and blocks are reorganised; then every way a channel can end, and the books. Exit
code 1 for any difference.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time

from tests.channel_soak.plan import Size
from tests.channel_soak.play import play


def size_of(payments: int) -> Size:
    """As many faults for a payment, however many there are."""
    return Size(
        payments=payments,
        server_kills=max(2, payments // 125),
        payer_kills=max(2, payments // 125),
        reorgs=max(1, payments // 625),
    )


def main() -> int:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    size = size_of(int(os.environ.get("PAYMENTS") or Size.payments))
    print(f"SEED={seed}: {size}", flush=True)
    began_at = time.monotonic()
    outcome = asyncio.run(play(seed, size, loud=not os.environ.get("QUIET")))
    told = ", ".join(f"{count} {name}" for name, count in sorted(outcome.counts.items()))
    took_s = time.monotonic() - began_at
    if outcome.wrong:
        print(
            "\n".join([f"SEED={seed} is WRONG, after {took_s:.0f} s ({told}):", *outcome.wrong]), flush=True
        )
        return 1
    print(f"SEED={seed}: everything is as it should be, after {took_s:.0f} s: {told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
