"""Pauses between attempts: growing, a little random so that clients do not march in step, bounded in sum."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp

from bitcache.client.errors import ServerProblem, ServerUnreachable

FIRST_PAUSE_S = 0.25
PAUSE_MAX_S = 10.0
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
# Waiting a minute does not mend these, and the user should know at once.
TOLD_AT_ONCE = frozenset({"node-offline", "too-many-invoices"})

# What aiohttp and the system raise for a connection that broke or never came.
CONNECTION_TROUBLE = (aiohttp.ClientError, TimeoutError, ConnectionError)

T = TypeVar("T")


class Pauses:
    """Waits between attempts until `budget_s` has gone by without success."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self.reset()

    def reset(self) -> None:
        """Something worked: the next trouble gets the whole budget again."""
        self._give_up_at = time.monotonic() + self._budget_s
        self._next_s = FIRST_PAUSE_S

    async def wait(self, retry_after_s: int | None = None) -> bool:
        """Pause before the next attempt; False, at once, when the budget does not allow one."""
        pause_s = self._next_s * random.uniform(0.75, 1.25)  # noqa: S311  # no secret hangs on it
        if retry_after_s is not None:
            pause_s = max(pause_s, float(retry_after_s))
        if time.monotonic() + pause_s > self._give_up_at:
            return False
        self._next_s = min(self._next_s * 2, PAUSE_MAX_S)
        await asyncio.sleep(pause_s)
        return True


def may_pass(problem: ServerProblem) -> bool:
    """Whether the same call may succeed a moment later."""
    return problem.status in RETRIED_STATUSES and problem.name not in TOLD_AT_ONCE


async def retrying(attempt: Callable[[], Awaitable[T]], *, budget_s: float, server: str) -> T:
    """The result of `attempt`, made again while trouble may pass. Raises ServerProblem, ServerUnreachable."""
    pauses = Pauses(budget_s)
    while True:
        try:
            return await attempt()
        except ServerProblem as problem:
            if not may_pass(problem) or not await pauses.wait(problem.retry_after_s):
                raise
        except CONNECTION_TROUBLE as exc:
            if not await pauses.wait():
                raise unreachable(server, exc) from exc


def unreachable(server: str, cause: BaseException) -> ServerUnreachable:
    words = str(cause) or type(cause).__name__
    return ServerUnreachable(
        f"{server} does not answer ({words}). Nothing is lost: run the same command again."
    )
