"""Connections: how many there may be, and how long each may keep its place without using it.

A connection is dropped when

    the head of its first request has not come in `head_s`
    it had no request for `idle_s`, or the head of the next has not come in that time
    it takes nothing of an answer for STALLED_S, or what is left of one for LEFT_S once all is said
    a head is larger than HEAD_BYTES_MAX, in however many pieces it comes

When all places are taken, those that have been without a request for longest make room for new ones: a crowd
that only sits there shuts nobody out. One address has a share of the places alone. Behind a trusted proxy it
is the proxy's connections that are counted, so there the share does not apply.

Bodies have their own pace (`bitcache.api.bodies`, `files`), and so has content that the kernel sends
(`content`). This file knows a few private names of aiohttp's protocol, whose version is pinned.
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
from collections.abc import Callable, Sequence

import msgspec
from aiohttp import web

from bitcache.api import parser_log
from bitcache.api.client_address import Network
from bitcache.api.problems import CONTENT_TYPE, PROBLEMS, problem_view
from bitcache.config import LimitsConfig
from bitcache.errors import ServerBusy
from bitcache.rate_limits import Monotonic

log = logging.getLogger(__name__)

HEAD_BYTES_MAX = 32 * 1024
SWEEP_S = 1
STALLED_S = 300
"""As for content: who reads less than the write buffer in that time reads nothing."""
LEFT_S = 30
GROUP_SHARES = 4
"""So many shares has an IPv6 /48, the least that a customer of a provider mostly gets."""
BACKLOG = 1_024
"""Connections that the system keeps until we take them; Linux has its own maximum, 4,096 mostly."""
EVICTED_AT_ONCE = 64
"""Looking for the idle ones among all costs a millisecond or two: not for each that comes."""
FILES_KEPT = 256
"""Open files that are no connections: database, node, listening sockets, a margin."""
TOLD_EVERY_S = 60
AT_ONCE = struct.pack("ii", 1, 0)
"""For SO_LINGER."""
RETRY_AFTER_S = 10


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
        self._open: dict[Connection, asyncio.Transport] = {}
        self._young: dict[Connection, float] = {}
        """Those that have sent no request yet, in order, and when they came."""
        self._stalled: dict[Connection, float] = {}
        """Those whose answer is not being taken, in order, and since when."""
        self._closing: dict[Connection, float] = {}
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

    def admit(self, connection: "Connection", transport: asyncio.Transport) -> bool:
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

    def leave(self, connection: "Connection") -> None:
        if self._open.pop(connection, None) is None:
            return
        for waiting in (self._young, self._stalled, self._closing):
            waiting.pop(connection, None)
        self._shares.subtract(connection.shares)
        for name in connection.shares:
            if not self._shares[name]:
                del self._shares[name]

    def stalled(self, connection: "Connection") -> None:
        self._stalled[connection] = self._monotonic()

    def flows(self, connection: "Connection") -> None:
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

    def _abort(self, connection: "Connection") -> None:
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


class Connection(web.RequestHandler):
    """aiohttp's protocol of one connection, counted and watched."""

    __slots__ = ("_connections", "_head_bytes", "on_lost", "overdue", "shares")

    def __init__(self, connections: Connections, server: web.Server, **options: object) -> None:
        super().__init__(server, **options)  # type: ignore[arg-type]
        self._connections = connections
        self._head_bytes = 0
        self.shares: tuple[str, ...] = ()
        self.overdue = False
        self.on_lost: Callable[[], None] | None = None
        """For the request under way: the other side has left."""

    @property
    def has_asked(self) -> bool:
        """A whole head of a request has come."""
        return self._request_count > 0

    @property
    def is_idle(self) -> bool:
        """It waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def idle_since(self) -> float:
        """In order only; of one that is idle."""
        return self._next_keepalive_close_time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._connections.admit(self, transport):
            super().connection_made(transport)
        else:
            transport.write(REFUSAL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        known, of_head = self._request_count, self.is_idle or self._is_read
        super().data_received(data)
        if self._request_count == known:
            if of_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES_MAX:
                    self._refuse_head()
            return
        if self._head_bytes + len(data) > HEAD_BYTES_MAX and any(
            _head_size(message) > HEAD_BYTES_MAX for message, _ in self._messages
        ):
            self._refuse_head()
        self._head_bytes = 0

    @property
    def _is_read(self) -> bool:
        """The request under way has come to its end: what comes now is the head of another."""
        return self._current_request is not None and self._current_request.content.is_eof()

    def _refuse_head(self) -> None:
        if self.transport is not None:
            self.transport.write(HEAD_TOO_LARGE)
        self._messages.clear()
        self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.leave(self)
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Of what could not be read. Raises ConnectionError if an answer has begun."""
        super().handle_error(request, status, exc, message)
        return parser_log.refusal(status)

    def pause_writing(self) -> None:
        self._connections.stalled(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._connections.flows(self)
        super().resume_writing()


class Site(web.BaseSite):
    """A place to listen whose connections are `connections`'s; `options` are those of aiohttp's protocol."""

    __slots__ = ("_connections", "_host", "_options", "_port")

    def __init__(
        self,
        runner: web.AppRunner,
        connections: Connections,
        host: str,
        port: int,
        **options: object,
    ) -> None:
        super().__init__(runner)
        self._connections = connections
        self._host = host
        self._port = port
        self._options = options

    @property
    def name(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()

        def made() -> Connection:
            return Connection(self._connections, server, loop=loop, **self._options)

        self._server = await loop.create_server(made, self._host, self._port, backlog=BACKLOG)


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


def _before(waiting: dict[Connection, float], moment: float) -> list[Connection]:
    """Those that wait since `moment` or longer, of a dict in the order of its times."""
    found = []
    for connection, since in waiting.items():
        if since > moment:
            break
        found.append(connection)
    return found


def _head_size(message: object) -> int:
    fields: Sequence[tuple[bytes, bytes]] = getattr(message, "raw_headers", ())
    return sum(len(name) + len(value) for name, value in fields)


def _answer(name: str, error: Exception | None = None) -> bytes:
    """A whole answer, for where no handler can give one."""
    view = problem_view(PROBLEMS[name], error)
    body = msgspec.json.encode(view)
    retry_after = f"Retry-After: {view.retry_after_s}\r\n" if view.retry_after_s is not None else ""
    head = (
        f"HTTP/1.1 {view.status} {view.title}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n{retry_after}Connection: close\r\n\r\n"
    )
    return head.encode() + body


REFUSAL = _answer(
    "server-busy",
    ServerBusy(
        "Too many connections are open, from your address or in total. Use fewer at a time, or try again "
        "soon.",
        retry_after_s=RETRY_AFTER_S,
    ),
)
HEAD_TOO_LARGE = _answer("head-too-large")
