"""What it costs to decide whether a request may have content, beside the HMAC and look-up that it needs."""

from __future__ import annotations

import base64
import hmac
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.report import Line
from bitcache.api.payment_gate import Ask
from tests.till import open_nodeless_till

ROUNDS = 5
BUDGET_US = 15


async def access_check(checks: int) -> Line:
    """The best of some rounds of so many checks."""
    with TemporaryDirectory(prefix="bitcache-bench-") as folder:
        async with open_nodeless_till(Path(folder)) as till:
            sold = await till.offer(price_sat=0)
            token = await till.token(await till.buy(sold))
            headers = {**token, "Range": "bytes=0-1048575"}
            admit = till.server.services.gate.admit
            found, reference = [], []
            for _ in range(ROUNDS):
                started_at = time.thread_time()
                for _ in range(checks):
                    await admit(Ask.of(method="GET", headers=headers, offer_id=sold.offer_id, client="x"))
                found.append(time.thread_time() - started_at)
                reference.append(_least(token["Authorization"], checks))
    cost_us, least_us = (min(times) / checks * 1e6 for times in (found, reference))
    return Line(
        "access check of a request, CPU",
        f"{cost_us:.1f} us",
        f"{least_us:.1f} us (HMAC-SHA256 + dict)",
        f"{cost_us / least_us:.1f}",
        f"<= {BUDGET_US} us",
        cost_us <= BUDGET_US,
    )


def _least(authorization: str, checks: int) -> float:
    """Seconds of so many times what any such check must do: decode, authenticate, look up."""
    encoded = authorization.partition("bcg_")[2]
    key, book = bytes(32), {}
    octets = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    book[octets[1:17]] = True
    started_at = time.thread_time()
    for _ in range(checks):
        octets = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        hmac.compare_digest(hmac.digest(key, octets[:-32], "sha256"), octets[-32:])
        assert book[octets[1:17]]
    return time.thread_time() - started_at
