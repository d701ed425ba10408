"""How often one client may do what costs the server something."""

import time
from collections import OrderedDict
from collections.abc import Callable

from bitcache.errors import TooManyRequests

CLIENTS_MAX = 50_000


class RateLimit:
    """At most `count` calls in any `period_s`, for each client; the clients longest silent are forgotten."""

    def __init__(self, *, count: int, period_s: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = period_s / count
        self._period_s = period_s
        self._monotonic = monotonic
        # When the allowance would be whole again: one number per client says it all (GCRA).
        self._whole_at: OrderedDict[str, float] = OrderedDict()

    def check(self, client: str) -> None:
        """Count one call. Raises TooManyRequests."""
        now = self._monotonic()
        whole_at = max(self._whole_at.get(client, now), now) + self._interval_s
        wait_s = whole_at - now - self._period_s
        if wait_s > 1e-9:
            retry_after_s = int(wait_s) + 1
            raise TooManyRequests(f"Too often. Try again in {retry_after_s} s.", retry_after_s=retry_after_s)
        self._whole_at[client] = whole_at
        self._whole_at.move_to_end(client)
        if len(self._whole_at) > CLIENTS_MAX:
            self._whole_at.popitem(last=False)
