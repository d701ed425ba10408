"""How often what costs the server something may be done: by one client, and by all of them together.

One number per client says it all (GCRA): when its allowance would be whole again. Where many clients could
take the server between them there is a total as well; nothing that a buyer who paid needs has one, since
strangers could use it up.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from bitcache.config import LimitsConfig
from bitcache.errors import TooManyRequests

CLIENTS_MAX = 50_000
MINUTE_S = 60
QUARTER_S = 900
HOUR_S = 3_600
ALL = "all"

Monotonic = Callable[[], float]


class RateLimit:
    """At most `amount` in any `period_s` for each client; with `total`, at most that for all of them.

    The clients longest silent are forgotten.
    """

    def __init__(
        self, *, amount: int, period_s: int, total: int | None = None, monotonic: Monotonic = time.monotonic
    ) -> None:
        self._amount = amount
        self._period_s = period_s
        self._monotonic = monotonic
        self._whole_at: OrderedDict[str, float] = OrderedDict()
        self._total = (
            None if total is None else RateLimit(amount=total, period_s=period_s, monotonic=monotonic)
        )

    def check(self, client: str, amount: int = 1) -> None:
        """Count `amount`, mostly one call. Raises TooManyRequests, and counts nothing then.

        What is larger than the whole allowance takes all of it.
        """
        whole_at = self._after(client, amount)
        if self._total is not None:
            self._total.check(ALL, amount)
        self._whole_at[client] = whole_at
        self._whole_at.move_to_end(client)
        if len(self._whole_at) > CLIENTS_MAX:
            self._whole_at.popitem(last=False)

    def _after(self, client: str, amount: int) -> float:
        """When the allowance is whole again if `amount` is taken now. Raises TooManyRequests."""
        now = self._monotonic()
        taken_s = min(amount, self._amount) * self._period_s / self._amount
        whole_at = max(self._whole_at.get(client, now), now) + taken_s
        wait_s = whole_at - now - self._period_s
        if wait_s > 1e-6:
            retry_after_s = int(wait_s) + 1
            raise TooManyRequests(f"Too often. Try again in {retry_after_s} s.", retry_after_s=retry_after_s)
        return whole_at


class Pressure:
    """How far what is done outruns `amount` in any `period_s`: for what gets dearer and is never refused."""

    def __init__(self, *, amount: int, period_s: int, monotonic: Monotonic = time.monotonic) -> None:
        self._interval_s = period_s / amount
        self._period_s = period_s
        self._monotonic = monotonic
        self._whole_at = 0.0

    def note(self) -> None:
        """One more was done."""
        self._whole_at = max(self._whole_at, self._monotonic()) + self._interval_s

    def excess(self) -> float:
        """In periods: 0 while the pace is kept, 0.5 with half a period's amount too much."""
        return max(0.0, (self._whole_at - self._monotonic()) / self._period_s - 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """Every pace of this process."""

    accounts: RateLimit
    """Attempts to open one, invited or not."""
    accounts_in_total: RateLimit
    """Those of which nothing but this is missing: who guesses at invitations shuts out nobody."""
    sign_ins: RateLimit
    sign_ins_by_name: RateLimit
    sign_ins_by_browser: RateLimit
    """Of browsers that were signed in before, each with an allowance of its own."""
    reports: RateLimit
    invoices: RateLimit
    invoices_in_total: Pressure
    channel_contracts: RateLimit
    """New ones: each drives the oldest without a deposit out (`contracts_max`)."""
    claims: RateLimit
    files: RateLimit
    file_bytes: RateLimit

    @classmethod
    def of(cls, config: LimitsConfig, monotonic: Monotonic = time.monotonic) -> Self:
        def pace(amount: int, period_s: int, total: int | None = None) -> RateLimit:
            return RateLimit(amount=amount, period_s=period_s, total=total, monotonic=monotonic)

        return cls(
            accounts=pace(config.accounts_per_hour, HOUR_S),
            accounts_in_total=pace(config.accounts_per_hour_in_total, HOUR_S),
            sign_ins=pace(config.sign_ins_per_quarter, QUARTER_S),
            sign_ins_by_name=pace(config.sign_ins_by_name_per_quarter, QUARTER_S),
            sign_ins_by_browser=pace(config.sign_ins_per_quarter, QUARTER_S),
            reports=pace(config.reports_per_hour, HOUR_S, config.reports_per_hour_in_total),
            invoices=pace(config.invoices_per_minute, MINUTE_S),
            invoices_in_total=Pressure(
                amount=config.invoices_per_minute_in_total, period_s=MINUTE_S, monotonic=monotonic
            ),
            channel_contracts=pace(config.channel_contracts_per_minute, MINUTE_S),
            claims=pace(config.claims_per_minute, MINUTE_S),
            files=pace(config.files_per_hour, HOUR_S),
            file_bytes=pace(config.file_bytes_per_hour, HOUR_S),
        )
