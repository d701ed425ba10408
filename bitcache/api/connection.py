"""One connection: aiohttp's protocol, counted and watched, with limits on heads and answers without end.

The rest of what limits connections is `bitcache.api.connections`. This file knows a few private names of
aiohttp's protocol, whose version is pinned.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from bitcache.api import parser_log
from bitcache.api.connections import Connections
from bitcache.api.problems import CONTENT_TYPE, PROBLEMS, problem_view
from bitcache.errors import ServerBusy

HEAD_BYTES_MAX = 32 * 1024
"""A head larger than that is refused, in however many pieces it comes."""
RETRY_AFTER_S = 10
BACKLOG = 1_024
"""Connections that the system keeps until we take them; Linux has its own maximum, 4,096 mostly."""
LET_GO_S = 1


class Endless(web.StreamResponse):
    """An answer without end, which somebody else goes on writing once `Connection.hold` was called."""

    @property
    def keep_alive(self) -> bool:
        return True

    async def write_eof(self, data: bytes = b"") -> None:
        """Its end is not the handler's."""


class Connection(web.RequestHandler):
    """See the module. One that is held has an endless answer, and no task that waits for anything."""

    __slots__ = ("_connections", "_head_bytes", "_on_lost", "overdue", "shares")

    def __init__(self, connections: Connections, server: web.Server, **options: object) -> None:
        super().__init__(server, **options)  # type: ignore[arg-type]
        self._connections = connections
        self._head_bytes = 0
        self.shares: tuple[str, ...] = ()
        self.overdue = False
        self._on_lost: Callable[[], None] | None = None
        """Of one that is held."""

    @property
    def has_asked(self) -> bool:
        return self._request_count > 0

    @property
    def is_idle(self) -> bool:
        return self._on_lost is None and self._waits

    @property
    def idle_since(self) -> float:
        return self._next_keepalive_close_time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._connections.admit(self, transport):
            super().connection_made(transport)
        else:
            transport.write(REFUSAL)
            transport.close()

    def hold(self, on_lost: Callable[[], None]) -> asyncio.Transport:
        """For the handler of an `Endless` answer, whose head is sent: what to write the rest to.

        The request and the tasks that served it are let go: thousands of such connections cost little more
        than their sockets. `on_lost` is called when the other side leaves. Raises ConnectionResetError if it
        has left, or talks behind its back: nothing may follow what has no end.
        """
        if self.transport is None or self._messages:
            raise ConnectionResetError("the connection cannot be held")
        self._on_lost = on_lost
        self._loop.call_later(LET_GO_S, self._let_go)
        return self.transport

    def _let_go(self) -> None:
        if self._task_handler is None:
            return
        if not self._waits:
            self._loop.call_later(LET_GO_S, self._let_go)
            return
        self.keep_alive(False)
        self._task_handler.cancel()
        self._task_handler = None

    @property
    def _waits(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def data_received(self, data: bytes) -> None:
        if self._on_lost is not None:
            if data and self.transport is not None:
                self.transport.abort()
            return
        known, of_head = self._request_count, self._waits or self._is_read
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
        # `CONNECT` without an address gets through aiohttp's parser, and it would never be answered.
        for place, (message, _) in enumerate(self._messages):
            if getattr(message, "url", message) is None:
                self._messages[place] = (UNREADABLE, EMPTY_PAYLOAD)

    @property
    def _is_read(self) -> bool:
        """The request under way has come to its end: what comes now is the head of another."""
        return self._current_request is not None and self._current_request.content.is_eof()

    def _refuse_head(self) -> None:
        if self.transport is not None:
            self.transport.write(HEAD_TOO_LARGE)
        self._messages.clear()
        # It may have been woken for one of them already.
        if self._task_handler is not None:
            self._task_handler.cancel()
        self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.leave(self)
        super().connection_lost(exc)
        if self._on_lost is not None:
            self._on_lost()

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
UNREADABLE = _ErrInfo(status=400, exc=BadHttpMessage("no address"), message="")
