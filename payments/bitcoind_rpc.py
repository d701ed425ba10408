"""JSON-RPC and REST over HTTP to our own bitcoind: what it answers, and whose fault it is when it does not.

Every call ends in a decoded answer, in NodeUnavailable (try again later), in NodeMisconfigured (a setting
must change), or in NodeRefused (the node understood and said no). No call does more when repeated, so one is
sent again once when the node has closed an idle connection or, restarted, has written a new cookie.
"""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from payments.errors import NodeMisconfigured, NodeRefused, NodeUnavailable

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""Larger answers are refused: a full mempool's txids are some 20 MB, a block 4 MB."""
LARGE_BYTES = 256 * 1024
"""Answers from here on are decoded in a thread, calls sent in pieces: the loop has others to serve."""
TIMEOUT_S = 30.0
CONNECTIONS_MAX = 4
"""bitcoind answers with four threads (`rpcthreads`) by default; more connections only queue there."""
IDLE_CONNECTION_S = 15.0
"""bitcoind closes idle connections at 30 s (`rpcservertimeout`); let go of them before it does."""

RPC_IN_WARMUP = -28

T = TypeVar("T")

Call = tuple[str, Sequence[Any]]
"""A method and its positional parameters."""


class BitcoindRpc:
    """One node's HTTP interface. Owns its connections: `await close()` when done, or use `async with`."""

    def __init__(
        self,
        url: str,
        *,
        cookie_file: Path | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`url` is http://host:port. Give either `cookie_file` or `user` and `password`."""
        if cookie_file is not None and user is not None:
            raise NodeMisconfigured("give the node's cookie file, or its RPC user and password, not both")
        if cookie_file is None and (user is None or password is None):
            raise NodeMisconfigured(
                "nothing says how to sign in to the node: give its cookie file, or its RPC user and password"
            )
        self._url = url.rstrip("/")
        self._cookie_file = cookie_file
        self._user_password = None if user is None or password is None else f"{user}:{password}"
        self._auth: str | None = None
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        method: str,
        *params: Any,
        answer: type[T],
        wallet: str | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """The method's result, decoded as `answer`; of this wallet, if one is named.

        `timeout_s` is for what takes the node longer than the usual time.
        """
        path = "/" if wallet is None else f"/wallet/{quote(wallet, safe='')}"
        body = await self._post(_encode(method, params, 0), path=path, timeout_s=timeout_s)
        if len(body) < LARGE_BYTES:
            return _answer(body, method, answer)
        return await asyncio.to_thread(_answer, body, method, answer)

    async def batch(self, calls: Sequence[Call], *, answer: type[T]) -> list[T | NodeRefused]:
        """The results of many calls in one round trip, in order; a refusal stands in its call's place."""
        if not calls:
            return []
        payload = (
            b"[" + b",".join(_encode(method, params, n) for n, (method, params) in enumerate(calls)) + b"]"
        )
        replies = {reply.id: reply for reply in _decode(await self._post(payload), list[_Reply], "a batch")}
        if set(replies) != set(range(len(calls))):
            raise NodeUnavailable("the node left calls of a batch unanswered; try again later")
        return [_result_or_refusal(replies[n], method, answer) for n, (method, _) in enumerate(calls)]

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a REST resource, such as `/rest/block/<hash>.bin`."""
        status, body = await self._exchange("GET", path, None, None)
        if status == 503:
            raise NodeUnavailable(f"the node is not ready: {_words(body)}")
        return status, body

    async def _post(self, payload: bytes, *, path: str = "/", timeout_s: float | None = None) -> bytes:
        status, body = await self._exchange("POST", path, payload, self._authorization(), timeout_s)
        if status == 401 and self._cookie_file is not None:
            # A restarted node has written a new cookie.
            self._auth = None
            status, body = await self._exchange("POST", path, payload, self._authorization(), timeout_s)
        if status == 401:
            raise NodeMisconfigured(
                "the node does not accept our RPC credentials: compare them with its bitcoin.conf"
            )
        if status == 403:
            raise NodeMisconfigured(
                "the node forbids RPC from this address or user: see `rpcallowip` and `rpcwhitelist`"
            )
        if not body.lstrip().startswith((b"{", b"[")):
            raise NodeUnavailable(f"the node answered {status} without a result: {_words(body)}")
        return body

    async def _exchange(
        self,
        verb: str,
        path: str,
        payload: bytes | None,
        auth: str | None,
        timeout_s: float | None = None,
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        if auth is not None:
            headers["Authorization"] = auth
        async with _unavailable_if_unanswered(self._timeout_s if timeout_s is None else timeout_s):
            try:
                return await self._request(verb, path, payload, headers)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # The node closed an idle connection, or was restarted, just as we wrote to it.
                return await self._request(verb, path, payload, headers)

    async def _request(
        self, verb: str, path: str, payload: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        session = self._open_session()
        url = self._url + path
        # As a stream a large one goes out in pieces: a PSBT has megabytes.
        data = payload if payload is None or len(payload) < LARGE_BYTES else BytesIO(payload)
        async with session.request(verb, url, data=data, headers=headers, allow_redirects=False) as response:
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > ANSWER_BYTES_MAX:
                    raise NodeUnavailable(f"the node's answer exceeds {ANSWER_BYTES_MAX} bytes")
            return response.status, bytes(body)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=IDLE_CONNECTION_S)
            # Time is limited once, around the whole exchange.
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._session

    def _authorization(self) -> str:
        if self._auth is None:
            secret = self._user_password if self._cookie_file is None else _read_cookie(self._cookie_file)
            assert secret is not None
            self._auth = "Basic " + base64.b64encode(secret.encode()).decode()
        return self._auth


@asynccontextmanager
async def _unavailable_if_unanswered(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as exc:
        raise NodeUnavailable(f"the node did not answer within {timeout_s:g} s") from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise NodeUnavailable(f"the node cannot be reached ({_without_address(exc)})") from exc


class _RpcError(msgspec.Struct, frozen=True):
    code: int
    message: str


class _Reply(msgspec.Struct, frozen=True):
    id: int | None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _RpcError | None = None


def _encode(method: str, params: Sequence[Any], call_id: int) -> bytes:
    return msgspec.json.encode({"jsonrpc": "1.0", "id": call_id, "method": method, "params": params})


def _decode(body: bytes | msgspec.Raw, wanted: type[T], method: str) -> T:
    try:
        return msgspec.json.decode(body, type=wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise NodeUnavailable(f"the node's answer to {method} is not what Bitcoin Core gives: {exc}") from exc


def _answer(body: bytes, method: str, answer: type[T]) -> T:
    return _result(_decode(body, _Reply, method), method, answer)


def _result_or_refusal(reply: _Reply, method: str, answer: type[T]) -> T | NodeRefused:
    if reply.error is None:
        return _decode(reply.result, answer, method)
    if reply.error.code == RPC_IN_WARMUP:
        raise NodeUnavailable(f"the node is starting: {reply.error.message}")
    return NodeRefused(method, reply.error.code, reply.error.message)


def _result(reply: _Reply, method: str, answer: type[T]) -> T:
    result = _result_or_refusal(reply, method, answer)
    if isinstance(result, NodeRefused):
        raise result
    return result


def _read_cookie(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError as exc:
        raise NodeUnavailable(
            "the node's cookie file is not there: start the node, or correct its path"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise NodeMisconfigured(f"the node's cookie file cannot be read ({_without_address(exc)})") from exc


def _without_address(error: Exception) -> str:
    """What it was; not where, which strangers read in the server's health."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else type(error).__name__


def _words(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace").strip() or "no explanation"
