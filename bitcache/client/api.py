"""Typed calls to a server's /api/v1. Sizes, times and retries are bounded; no answer is trusted.

A call that may be repeated is sent again after a lost connection, 429, 502, 503 or 504, for `RETRY_FOR_S`.
Redirects are refused: they could carry a token to another origin.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from bitcache.api import wire
from bitcache.client.errors import ServerAnswerWrong, ServerProblem
from bitcache.client.link import check_server
from bitcache.client.retry import CONNECTION_TROUBLE, retrying, unreachable
from storage.stream import CHUNK_SIZE_BYTES

ANSWER_BYTES_MAX = 16 << 20
"""An offer of 10,000 files with 4 MiB of metadata is some 8 MiB."""
PROBLEM_BYTES_MAX = 64 << 10
RETRY_FOR_S = 60.0
CONNECT_TIMEOUT_S = 15.0
SILENCE_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 300.0
CHUNK_S_MAX = 600.0
"""For one chunk of 1 MiB: a server that drips a byte now and then is as good as a silent one."""
CONNECTIONS_MAX = 8
READ_BUFFER_BYTES = 512 << 10

T = TypeVar("T")


class ServerApi:
    """One server. Use `async with`, or `await close()` when done. `token` is a seller's access token.

    Every call raises ServerProblem (the server said no), ServerUnreachable, or ServerAnswerWrong.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        retry_for_s: float = RETRY_FOR_S,
        chunk_s_max: float = CHUNK_S_MAX,
    ) -> None:
        """Raises LinkInvalid for an address that is none."""
        self.base_url = check_server(base_url)
        self.retry_for_s = retry_for_s
        self.chunk_s_max = chunk_s_max
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, answer: type[T], *, query: Mapping[str, str] | None = None) -> T:
        """The decoded answer to GET."""
        return _decoded(await self._call("GET", path, query=query), answer)

    async def post(
        self,
        path: str,
        body: wire.Request,
        answer: type[T],
        *,
        key: str | None = None,
        repeatable: bool = False,
        authorization: str | None = None,
    ) -> T:
        """The decoded answer to POST; `key` is an Idempotency-Key, `repeatable` says twice is as once."""
        headers = {} if key is None else {"Idempotency-Key": key}
        if authorization is not None:
            headers["Authorization"] = authorization
        retry = repeatable or key is not None
        return _decoded(await self._call("POST", path, body=body, headers=headers, retry=retry), answer)

    async def patch(self, path: str, body: wire.Request, answer: type[T]) -> T:
        """The decoded answer to PATCH."""
        return _decoded(await self._call("PATCH", path, body=body), answer)

    async def delete(self, path: str) -> None:
        await self._call("DELETE", path)

    async def get_text(self, path: str, *, query: Mapping[str, str] | None = None) -> str:
        """A text answer, such as CSV."""
        return (await self._call("GET", path, query=query)).decode("utf-8", "replace")

    async def get_bytes(self, path: str, *, length_bytes: int) -> bytes:
        """A binary answer of exactly `length_bytes`; ServerAnswerWrong for any other length."""
        octets = await self._call("GET", path, answer_bytes_max=length_bytes)
        if len(octets) != length_bytes:
            raise ServerAnswerWrong(f"The server sent {len(octets)} bytes where {length_bytes} belong.")
        return octets

    async def put_part(self, path: str, part: memoryview, *, chunk_digests: str) -> None:
        """Send one part; the same bytes again are harmless."""
        headers = {
            "Bitcache-Chunk-Digests": chunk_digests,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(part)),
        }

        async def send() -> None:
            async with self._request("PUT", path, headers=headers, data=_in_chunks(part)) as response:
                await _check_status(response)

        await self._retrying(send)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        authorization: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One GET whose body the caller reads and bounds. Not retried, and no limit on the whole time.

        Raises ServerProblem and ServerAnswerWrong; connection trouble comes as CONNECTION_TROUBLE.
        """
        sent = dict(headers) if authorization is None else {**headers, "Authorization": authorization}
        async with self._request("GET", path, headers=sent, query=query, total_s=None) as response:
            await _check_status(response)
            yield response

    async def _call(
        self,
        verb: str,
        path: str,
        *,
        body: wire.Request | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        retry: bool = True,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> bytes:
        sent = dict(headers or {})
        payload = None if body is None else msgspec.json.encode(body)
        if payload is not None:
            sent["Content-Type"] = "application/json"

        async def call() -> bytes:
            data = None if payload is None else _in_chunks(memoryview(payload))
            if payload is not None:
                sent["Content-Length"] = str(len(payload))
            async with self._request(verb, path, headers=sent, data=data, query=query) as response:
                await _check_status(response)
                return await read_at_most(response, answer_bytes_max)

        if retry:
            return await self._retrying(call)
        try:
            return await call()
        except CONNECTION_TROUBLE as exc:
            raise unreachable(self.base_url, exc) from exc

    async def _retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        return await retrying(attempt, budget_s=self.retry_for_s, server=self.base_url)

    @asynccontextmanager
    async def _request(
        self,
        verb: str,
        path: str,
        *,
        headers: Mapping[str, str],
        data: AsyncIterator[memoryview] | None = None,
        query: Mapping[str, str] | None = None,
        total_s: float | None = CALL_TIMEOUT_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        # Compressed answers would only hide their size.
        sent = {"Accept-Encoding": "identity", **headers}
        if self._token is not None:
            sent.setdefault("Authorization", f"Bearer {self._token}")
        async with self._open_session().request(
            verb,
            f"{self.base_url}/api/v1{path}",
            headers=sent,
            data=data,
            params=query,
            timeout=aiohttp.ClientTimeout(
                total=total_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S
            ),
            allow_redirects=False,
        ) as response:
            yield response

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=READ_BUFFER_BYTES,
            )
        return self._session


async def read_at_most(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The body. Raises ServerAnswerWrong as soon as it exceeds `bytes_max`, whatever its header said."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > bytes_max:
            response.close()
            raise ServerAnswerWrong(f"The server's answer is longer than the {bytes_max} bytes it may have.")
    return bytes(body)


async def _check_status(response: aiohttp.ClientResponse) -> None:
    """Raises ServerProblem for 4xx and 5xx, ServerAnswerWrong for anything else that is no success."""
    if 200 <= response.status < 300:
        return
    if response.status < 400:
        raise ServerAnswerWrong(
            "The server wants to send us elsewhere, which a link must not do. Check the address, or ask for "
            "a new link."
        )
    retry_after = response.headers.get("Retry-After", "")
    retry_after_s = int(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
    work: wire.WorkView | None = None
    name, detail = "unknown", f"The server answered {response.status} without a reason."
    if response.content_type == "application/problem+json":
        try:
            problem = msgspec.json.decode(
                await read_at_most(response, PROBLEM_BYTES_MAX), type=wire.ProblemView
            )
            name, detail, work = problem.type.rsplit("/", 1)[-1], problem.detail, problem.work
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # a proxy may claim the type; the status still says enough
    raise ServerProblem(name, response.status, detail, retry_after_s=retry_after_s, work=work)


def _decoded(document: bytes, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(document, type=answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ServerAnswerWrong(f"The server's answer is not what it should be ({exc}).") from exc


async def _in_chunks(body: memoryview) -> AsyncIterator[memoryview]:
    """aiohttp would send a large body in one go, blocking the loop meanwhile."""
    for at in range(0, len(body), CHUNK_SIZE_BYTES):
        yield body[at : at + CHUNK_SIZE_BYTES]
