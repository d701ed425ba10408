"""Octets on a plain socket that are nearly HTTP: broken lines, two lengths, absurd chunks, requests in a row.

What must hold: each answer is 1xx to 4xx, 503 or 507; the server closes the connection once the client has
said all it will; nothing of it is a bug in the log.
"""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from random import Random

CLOSE_S_MAX = 5.0
SILENCE_S = 0.05
"""After so long without an answer the client says that it is done."""
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Ends most conversations: swallowed as part of a body where that was promised."""
METHODS = (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE", b"get",
           b"G\tT", b"", b"\x00",
           b"PRI", b"M" * 300)  # fmt: skip
TARGETS = (b"/healthz", b"/api/v1/accounts", b"/api/v1/account", b"/", b"*", b"http://x/healthz", b"//x",
           b"/%", b"/%ff",
           b"/\xff", b"/a b", b"/healthz?\xff=\xff", b"/healthz#x", b"x:99999", b"/" + b"a" * 20_000,
           b"", b"/\x00",
           b"http://[::1", b"/../../etc/passwd", b"/d/" + b"a" * 26, b"/sign-in?lang=\xff")  # fmt: skip
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b"HTTP/1.10",
            b"HTTP/", b"",
            b"HTTP/9.9", b"HTTP/1,1")  # fmt: skip
LINE_ENDS = (b"\r\n",) * 12 + (b"\n", b"\r", b"\r\r\n", b"\x00\r\n")
HEADERS = (
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Content-Length: 0x5", b"Content-Length: 99999999999999999999", b"Content-Length: 5 5",
    b"Content-Length:",
    b"Content-Length : 5", b"content-length: 6", b"Content-Length: \xd9\xa5", b"Content-Length: 5\x00",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding: chunked\r\n obs-fold",
    b"Transfer-Encoding: CHUNKED",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding", b" Transfer-Encoding: chunked",
    b"TE: trailers",
    b"Host: a\r\nHost: b", b"Host:", b"Host: \xff", b": nameless", b"no colon", b"X: \x00", b"X\x00: a",
    b"X: \x7f\x80",
    b"X: a\r\n\tfolded", b"X: a\n b", b"X\xff: a", b"X: " + b"y" * 20_000, b"Y" * 20_000 + b": x",
    b"Expect: 100-continue",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x", b"Upgrade: h2c",
    b"Connection: close",
    b"Connection: keep-alive", b"Cookie: " + b";" * 3_000, b"Cookie: a=\x01\xff",
    b"Content-Encoding: deflate",
    b"Authorization: Bearer bcs_" + b"a" * 52, b"Authorization: \xff", b"Range: bytes=0-",
    b"Content-Type: application/json",
)  # fmt: skip
BODIES = (
    b"", b"{}", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhel", b"0\r\n\r\n",
    b"ffffffffffffffff\r\nx", b"-1\r\nx\r\n",
    b"5;ext=\x00\r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n", b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloX0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"0\r\n" + b"T: x\r\n" * 2_000 + b"\r\n",
    b"1\r\nx\r\n" * 5_000,
    b"5;" + b"e" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
    b"00000000000000000000000005\r\nhello\r\n0\r\n\r\n", b"\r\n\r\n",
    b"G\r\n", b"0\r\n\r\nGET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 70_000,
    b"\x16\x03\x01\x02\x00\x01\x00",
)  # fmt: skip
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def conversation(random: Random) -> bytes:
    """One to three nearly-requests, then perhaps an honest one."""
    said = b"".join(_request(random) for _ in range(random.choice((1, 1, 2, 3))))
    if random.random() < 0.2:
        said = _hurt(random, said)
    return said + LAST if random.random() < 0.6 else said


def run(port: int, number: int, conversations: int) -> str:
    """So many conversations; one line of what was seen. Raises AssertionError, TimeoutError."""
    random = Random(number)
    seen: Counter[int] = Counter()
    slowest_s = 0.0
    for _ in range(conversations):
        octets = conversation(random)
        started = time.monotonic()
        statuses, said = answers(port, octets)
        slowest_s = max(slowest_s, time.monotonic() - started)
        assert all(status < 500 or status in {503, 507} for status in statuses), (octets, said)
        seen.update(statuses)
    told = ", ".join(f"{status}: {count}" for status, count in sorted(seen.items()))
    return f"{conversations}, the slowest {slowest_s:.2f} s; {told}"


def answers(port: int, octets: bytes) -> tuple[list[int], bytes]:
    """(statuses, all that the server said) to these octets. Raises TimeoutError if it does not hang up."""
    said = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=CLOSE_S_MAX) as connection:
        try:
            connection.sendall(octets)
            if not _read(connection, said, SILENCE_S):
                connection.shutdown(socket.SHUT_WR)
                if not _read(connection, said, CLOSE_S_MAX):
                    raise TimeoutError("the server does not hang up")
        except (BrokenPipeError, ConnectionResetError):
            pass
    return [int(status) for status in _STATUS.findall(bytes(said))], bytes(said)


def _read(connection: socket.socket, said: bytearray, silence_s: float) -> bool:
    """Whether the server hung up before it was silent for so long."""
    connection.settimeout(silence_s)
    deadline = time.monotonic() + CLOSE_S_MAX
    try:
        while time.monotonic() < deadline:
            piece = connection.recv(1 << 16)
            if not piece:
                return True
            said += piece
    except TimeoutError:
        pass
    return False


def _request(random: Random) -> bytes:
    """Mostly valid in all but one or two places."""
    odd = random.choice(("line", "headers", "headers", "headers", "body", "all"))
    end = random.choice(LINE_ENDS) if odd == "all" else b"\r\n"
    if odd in {"line", "all"}:
        line = b" ".join((random.choice(METHODS), random.choice(TARGETS), random.choice(VERSIONS)))
    else:
        line = (
            random.choice((b"POST /api/v1/accounts", b"GET /healthz", b"PUT /api/v1/account")) + b" HTTP/1.1"
        )
    headers = [b"Host: x", *random.sample(HEADERS, random.choice((0, 1, 1, 2, 3)))]
    body = random.choice(BODIES)
    if odd == "body":
        headers = [
            b"Host: x",
            random.choice((b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(body))),
        ]
    if random.random() < 0.05:
        headers += [b"X-%d: y" % number for number in range(random.choice((120, 140, 3_000)))]
    return end.join((line, *headers, b"", b"")) + body


def _hurt(random: Random, said: bytes) -> bytes:
    at = random.randrange(len(said) + 1)
    return random.choice((said[:at], said[:at] + random.randbytes(random.randint(1, 4)) + said[at + 1 :]))
