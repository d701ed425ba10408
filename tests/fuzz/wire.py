"""Requests as they come, over one kept connection: no client library mends what is sent."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage

from bitcache.api.payment_gate import HOLD_S
from tests.openapi_check import JSON_TYPES

ANSWER_S_MAX = 5.0
BODY_BYTES_READ = 1 << 22
EVENT_STREAM = "text/event-stream"
Headers = Sequence[tuple[str, bytes]]


class NoAnswer(AssertionError):
    """The server said nothing within `Sent.answer_s_max`, or closed the connection without a word."""


@dataclass(frozen=True)
class Sent:
    """One request."""

    method: str
    target: str
    headers: Headers
    body: bytes | None
    chunked: bool = False

    @property
    def answer_s_max(self) -> float:
        """Within which the answer must come: a payment's credential may wait for its money."""
        names_payment = any(
            name.lower() == "authorization" and text[:7].lower() == b"payment" for name, text in self.headers
        )
        return ANSWER_S_MAX + (HOLD_S if names_payment and "/content" in self.target else 0)

    def __str__(self) -> str:
        head = "".join(f"\n  {name}: {text.decode('latin-1')!r:.300}" for name, text in self.headers)
        body = "" if self.body is None else f"\n  {len(self.body)} bytes: {self.body[:600]!r}"
        return f"{self.method} {self.target}{head}{body}{' (chunked)' if self.chunked else ''}"


@dataclass(frozen=True)
class Answered:
    status: int
    headers: HTTPMessage
    body: bytes
    """Of an event stream its beginning only."""
    elapsed_s: float

    @property
    def media_type(self) -> str:
        return str(self.headers.get("Content-Type", "")).partition(";")[0].strip()

    @property
    def is_json(self) -> bool:
        return self.media_type in JSON_TYPES


class Wire:
    """A client's connection to the server, made anew whenever it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def exchange(self, sent: Sent) -> Answered:
        """The answer. Raises NoAnswer, also for one that takes too long."""
        fresh = self._connection is None
        started = time.monotonic()
        try:
            return self._exchange(sent, started)
        except TimeoutError as exc:
            self.close()
            raise NoAnswer(f"no answer within {sent.answer_s_max:g} s") from exc
        except (OSError, HTTPException) as exc:
            self.close()
            if fresh:
                raise NoAnswer(f"no answer: {exc!r}") from exc
        # The answer before closed it.
        return self.exchange(sent)

    def _exchange(self, sent: Sent, started: float) -> Answered:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port)
            self._connection.connect()
        connection = self._connection
        connection.sock.settimeout(sent.answer_s_max)
        names = {name.lower() for name, _ in sent.headers}
        connection.putrequest(sent.method, sent.target, skip_host="host" in names, skip_accept_encoding=True)
        for name, text in sent.headers:
            connection.putheader(name, text)
        if sent.chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        elif sent.body is not None and "content-length" not in names:
            connection.putheader("Content-Length", str(len(sent.body)))
        broken: OSError | None = None
        try:
            connection.endheaders(
                iter([sent.body or b""]) if sent.chunked else sent.body, encode_chunked=sent.chunked
            )
        except (BrokenPipeError, ConnectionResetError) as exc:
            # Refused before it was sent whole: the answer is there to be read.
            broken = exc
        try:
            answer = connection.getresponse()
        except (OSError, HTTPException):
            if broken is not None:
                raise broken from None
            raise
        done = False
        try:
            stream = str(answer.headers.get("Content-Type", "")).startswith(EVENT_STREAM)
            body = answer.read1(1 << 16) if stream else answer.read(BODY_BYTES_READ)
            done = not stream and broken is None and not answer.will_close and answer.isclosed()
        finally:
            if not done:
                answer.close()
                self.close()
        return Answered(answer.status, answer.headers, body, time.monotonic() - started)
