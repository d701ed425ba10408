"""Connections: how many there may be, and how long each may keep its place without using it.

A connection is dropped when

    the head of its first request has not come in `head_s`
    it had no request for `idle_s`, or the head of the next has not come in that time
    it takes nothing of an answer for STALLED_S, or what is left of one for LEFT_S once all is said

When all places are taken, those that have been without a request for longest make room for new ones: a crowd
that only sits there shuts nobody out. One address has a share of the places alone. Behind a trusted proxy it
is the proxy's connections that are counted, so there the share does not apply.

Bodies have their own pace (`bitcache.api.bodies`, `files`), and so has content that the kernel sends
(`content`). The connections themselves are `bitcache.api.connection`.
"""

import asyncio
import heapq
import ipaddress
import logging
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from bitcache.api.client_address import Network
from bitcache.config import LimitsConfig
from bitcache.rate_limits import Monotonic

log = logging.getLogger(__name__)

SWEEP_S = 1
STALLED_S = 300
"""As for content: who reads less than the write buffer in that time reads nothing."""
LEFT_S = 30
GROUP_SHARES = 4
"""So many shares has an IPv6 /48, the least that a customer of a provider mostly gets."""
EVICTED_AT_ONCE = 64
"""Looking for the idle ones among all costs a millisecond or two: not for each that comes."""
FILES_KEPT = 256
"""Open files that are no connections: database, node, listening sockets, a margin."""
TOLD_EVERY_S = 60
AT_ONCE = struct.pack("ii", 1, 0)
"""For SO_LINGER."""


class Placed(Protocol):
    """A connection, as far as its place is concerned."""

    shares: tuple[str, ...]
    """The names under which it is counted."""
    overdue: bool
    """Its head should have come; this was seen once before."""

    @property
    def has_asked(self) -> bool:
        """A whole head of a request has come."""

    @property
    def is_idle(self) -> bool:
        """It waits for a request."""

    @property
    def idle_since(self) -> float:
        """In order only; of one that is idle."""


class Connections:
    """All connections of this process. `run` must be running for the time limits to hold."""

    def __init__(
        self,
        limits: LimitsConfig,
        proxies: Sequence[Network],
        *,
        count_max: int,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        self._limits = limits
        self._proxies = proxies
        self._count_max = count_max
        self._monotonic = monotonic
        self._open: dict[Placed, asyncio.Transport] = {}
        self._young: dict[Placed, float] = {}
        """Those that have sent no request yet, in order, and when they came."""
        self._stalled: dict[Placed, float] = {}
        """Those whose answer is not being taken, in order, and since when."""
        self._closing: dict[Placed, float] = {}
        self._shares: Counter[str] = Counter()
        self._told_at = -float(TOLD_EVERY_S)

    @property
    def count(self) -> int:
        return len(self._open)

    async def run(self) -> None:
        """Look for those whose time is up, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        now = self._monotonic()
        for connection in _before(self._young, now - self._limits.head_s):
            if connection.has_asked:
                del self._young[connection]
            elif connection.overdue:
                self._abort(connection)
            # In a busy moment its head may have come, and we have not got to reading it.
            connection.overdue = True
        for connection in _before(self._stalled, now - STALLED_S):
            self._abort(connection)
        self._closing = {
            connection: self._closing.get(connection, now)
            for connection, transport in self._open.items()
            if transport.is_closing()
        }
        for connection in [one for one, since in self._closing.items() if since <= now - LEFT_S]:
            self._abort(connection)

    def admit(self, connection: Placed, transport: asyncio.Transport) -> bool:
        """Whether there is a place for it; then it has it until `leave`."""
        shares = self._shares_of(transport.get_extra_info("peername"))
        share = self._limits.connections_per_client
        if any(self._shares[name] >= share * weight for name, weight in shares):
            return False
        if len(self._open) >= self._count_max and not self._make_room():
            return False
        connection.shares = tuple(name for name, _ in shares)
        self._shares.update(connection.shares)
        self._open[connection] = transport
        self._young[connection] = self._monotonic()
        return True

    def leave(self, connection: Placed) -> None:
        if self._open.pop(connection, None) is None:
            return
        for waiting in (self._young, self._stalled, self._closing):
            waiting.pop(connection, None)
        self._shares.subtract(connection.shares)
        for name in connection.shares:
            if not self._shares[name]:
                del self._shares[name]

    def stalled(self, connection: Placed) -> None:
        self._stalled[connection] = self._monotonic()

    def flows(self, connection: Placed) -> None:
        self._stalled.pop(connection, None)

    def _make_room(self) -> bool:
        idle = (connection for connection in self._open if connection.is_idle)
        oldest = heapq.nsmallest(EVICTED_AT_ONCE, idle, key=lambda connection: connection.idle_since)
        for connection in oldest:
            self._abort(connection)
            # Its place is free now, though the system tells of its end only later.
            self.leave(connection)
        self._tell(len(oldest))
        return bool(oldest)

    def _tell(self, evicted_count: int) -> None:
        now = self._monotonic()
        if now - self._told_at >= TOLD_EVERY_S:
            self._told_at = now
            log.warning(
                "all %d connections are taken; %s",
                self._count_max,
                "idle ones are dropped for new ones" if evicted_count else "new ones are refused",
            )

    def _abort(self, connection: Placed) -> None:
        transport = self._open[connection]
        # Closed softly, the system would keep what is unsent, some MiB, for a reader that never comes.
        if (line := transport.get_extra_info("socket")) is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        transport.abort()

    def _shares_of(self, peer: object) -> list[tuple[str, int]]:
        """The names under which the peer is counted, and how many shares each has."""
        try:
            address = ipaddress.ip_address(peer[0])  # type: ignore[index]
        except (TypeError, ValueError, IndexError):
            return []
        if any(address in proxy for proxy in self._proxies):
            return []
        if address.version == 4 or address.ipv4_mapped is not None:
            return [(str(address), 1)]
        return [
            (str(ipaddress.IPv6Network((address, 64), strict=False)), 1),
            (str(ipaddress.IPv6Network((address, 48), strict=False)), GROUP_SHARES),
        ]


def count_max(wanted: int) -> int:
    """How many connections there may be: as many as wanted, if the system allows the open files.

    Raises the process's own limit as far as it may. A download opens a file besides its connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return wanted
    allowed = max(1, (hard - FILES_KEPT) * 3 // 4)
    if allowed < wanted:
        log.warning(
            "the system allows this process %d open files, so at most %d connections instead of %d: raise "
            "LimitNOFILE of the service (ulimit -n)",
            hard,
            allowed,
            wanted,
        )
    return min(allowed, wanted)


def _before(waiting: dict[Placed, float], moment: float) -> list[Placed]:
    """Those that wait since `moment` or longer, of a dict in the order of its times."""
    found = []
    for connection, since in waiting.items():
        if since > moment:
            break
        found.append(connection)
    return found
