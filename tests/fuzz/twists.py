"""What happens to a request on its way from the schema to the wire: real values put in, then oddities.

All is drawn from one `Random`, so that a case is known by its seed and what the stock held.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from bitcache.api.files import DIGESTS_HEADER
from storage import base64url, digests
from tests.fuzz.stock import Stock
from tests.fuzz.wire import Sent

ODD_METHODS = ("OPTIONS", "TRACE", "HEAD", "GET", "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "x", "GETT")
ODD_HEADERS: dict[str, tuple[bytes, ...]] = {
    "Accept": (b"*/*", b"text/html;q=0", b"\xff", b","),
    "Accept-Language": (b"fr", b"fr;q=0.5, en;q=nan", b"*", b"\xff\xfe", b"x" * 3000, b";q=1;q=1",
        b"fr;q=1e999"),
    "Accept-Payment": (b"bitcoin/charge", b"bitcoin/charge;q=0", b"*/*;q", b";;;,,,", b"\xff"),
    "Connection": (b"close", b"keep-alive", b"upgrade", b"close, keep-alive", b""),
    "Content-Type": (b"text/plain", b"application/json; charset=utf-7", b"multipart/form-data", b";",
        b"\xff"),
    "Cookie": (b"bitcache_session=" + b"A" * 43, b"a=b; =;;; \xff", b"bitcache_form=x", b"\x01=\x02",
        b"x" * 4000),
    "Expect": (b"100-continue", b"200-ok", b""),
    "Forwarded": (b"for=_hidden, for=1.2.3.4", b"for="),
    "Host": (b"", b"localhost:99999", b"[::1", b"\xff", b"a" * 300, b"@"),
    "Idempotency-Key": (b"once", b"", b" ", b"\xff", b"x" * 129, b"a b", b"0"),
    "If-Match": (b"*", b'"x"'),
    "If-Modified-Since": (b"Thu, 01 Jan 1970 00:00:00 GMT", b"never"),
    "If-Range": (b'"x"', b'W/"x"', b"Thu, 01 Jan 1970 00:00:00 GMT", b"", b"\xff"),
    "Last-Event-ID": (b"0", b"-1", b"9" * 40, b"\xff", b"x"),
    "Range": (
        b"bytes=0-0", b"bytes=0-", b"bytes=-1", b"bytes=-0", b"bytes=5-2", b"bytes=99999999999999999999-",
        b"bytes=0-1,3-4", b"chunks=1-2", b"bytes=", b"bytes", b"bytes=a-b", b"bytes=\xff-", b"BYTES = 1-2",
        b"bytes=9999999999999999999-9999999999999999999", b"bytes=" + b"0" * 200 + b"-1", b"bytes=+1-2",
    ),
    "Sec-Fetch-Site": (b"cross-site", b"none"),
    "Upgrade": (b"websocket", b"h2c"),
    "X-Forwarded-For": (b"", b"::", b"::ffff:1.2.3.4", b"unknown", b"1.2.3.4, " * 200, b"\xff",
        b"fe80::1%eth0"),
    "X-Forwarded-Host": (b"evil.example", b"\xff"),
    "X-Http-Method-Override": (b"DELETE",),
    "Content-Encoding": (b"gzip", b"deflate", b"br", b"zstd", b"identity", b"gzip, gzip", b"\xff"),
}  # fmt: skip
ODD_TOKENS = (
    b"Bearer", b"Bearer ", b"Bearer \xff", b"bearer bcs_" + b"a" * 52, b"Bearer bcw_" + b"A" * 76,
    b"Bearer bcg_" + b"A" * 119, b"Bearer bcg_", b"Basic Og==", b"Basic \xff", b"Payment", b"Payment ",
    b"Payment e30", b"Payment W10", b"Payment " + b"A" * 9_000, b"Payment eyJ",
    b"Bearer " + b"x" * 9_000, b"\xff",
)  # fmt: skip
ODD_JSON: tuple[bytes, ...] = (
    b"", b"{", b"[]", b"null", b"true", b'""', b"0", b"1e999", b"-0", b"NaN",
    b"{}" * 2, b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}", b'{"a":1,"a":2}', b"[" * 60_000, b'{"a":' * 12_000 + b"1" + b"}" * 12_000,
    b'{"name":"\\ud800"}', b'{"name":"\\u0000"}', b'{"name":"' + b"x" * 60_000 + b'"}', b'{"\\u0000":0}',
    b'{"size_bytes":' + b"9" * 5_000 + b"}",
    b'{"size_bytes":1e400}', b'{"size_bytes":56.0}', b'"\\', b"\x00",
    b'{"name":"\xed\xa0\x80"}', b"{" + b" " * 60_000 + b"}", b'{"' + b"k" * 50_000 + b'":1}', b"z" * 70_000,
)  # fmt: skip
ODD_STRINGS = ("", "\0", "a\0b", "\ud7ff", "\U0010ffff", "=cmd|' /C calc'!A0", "' OR 1=1--", "\u202e",
               "x" * 5000,
               "{{7*7}}", "../../etc/passwd", "%s%n", "\r\nSet-Cookie: x=y", "<script>",
               "\u0130" * 40)  # fmt: skip
ODD_NUMBERS = (0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**40, 0.5, 1e308, True, None)
PATH_TAILS = ("/", "//", "/.", "/..", "/%2e%2e", "%00", "?", "?x", "?x=%00&x", "?%ff=1", "?after=%ff",
              "?limit=1e3",
              "?lang=%ff", "%ff", ";x", "?" + "a=1&" * 400, "?limit=" + "9" * 500, "/%2f", "?&&&", "?=",
              "?lang=fr")  # fmt: skip
GZIP_BOMB = gzip.compress(bytes(8 << 20))
_ID_IN_TARGET = re.compile(r"(?<=/)[^/?]+(?=/|\?|$)")


def put_real_values(random: Random, stock: Stock, path: str, parameters: dict[str, Any]) -> None:
    """Real ids for most of the path's parameters, in place."""
    for name in re.findall(r"\{([a-z_]+)\}", path):
        kind = "token_id" if name == "token_id" else name
        real = stock.pick(kind)
        if real is not None and random.random() < 0.8:
            parameters[name] = real


def mend_body(random: Random, stock: Stock, node: Any) -> Any:
    """A JSON body with some members made real and, more rarely, some made odd."""
    if isinstance(node, list):
        return [mend_body(random, stock, item) for item in node]
    if not isinstance(node, dict):
        return node
    mended: dict[str, Any] = {}
    for name, member in node.items():
        real = stock.pick(name)
        if real is not None and random.random() < 0.7:
            mended[name] = real
        elif random.random() < 0.02:
            mended[name] = random.choice(ODD_STRINGS)
        elif random.random() < 0.02:
            mended[name] = random.choice(ODD_NUMBERS)
        else:
            mended[name] = mend_body(random, stock, member)
    return mended


def credentials(random: Random, stock: Stock, *, of_buyer: bool) -> bytes | None:
    """An Authorization header: mostly of the kind that is wanted; or of another, damaged, nonsense, none."""
    roll = random.random()
    if roll < 0.1:
        return None
    kinds = ["grant_token", "grant_token", "credential"] if of_buyer else ["token"] * 10
    kind = random.choice((*kinds, "token", "grant_token", "credential"))
    real = stock.pick(kind) or "bcs_" + "a" * 52
    scheme = "Payment" if kind == "credential" else "Bearer"
    if roll < 0.85:
        return f"{scheme} {real}".encode()
    if roll < 0.92:
        return f"{scheme} {_damaged(random, real)}".encode()
    return random.choice(ODD_TOKENS)


def real_part(random: Random, stock: Stock) -> Sent | None:
    """A part that a file waits for, whole or hurt a little."""
    if not stock.parts:
        return None
    token, target, octets = random.choice(stock.parts)
    listed = digests.chunk_digests(octets)
    hurt = random.choice(("", "", "short", "long", "other bytes", "other digests", "more digests"))
    if hurt == "short":
        octets = octets[: random.randrange(len(octets))]
    elif hurt == "long":
        octets += random.randbytes(random.randint(1, 4_000))
    elif hurt == "other bytes":
        octets = random.randbytes(len(octets))
    elif hurt == "other digests":
        listed = random.randbytes(32)
    elif hurt == "more digests":
        listed += random.randbytes(random.choice((1, 32, 3_200)))
    headers = [
        (DIGESTS_HEADER, base64url.encode(listed).encode()),
        ("Authorization", f"Bearer {token}".encode()),
    ]
    return Sent("PUT", target, headers, octets, chunked=random.random() < 0.3)


def twisted(random: Random, sent: Sent) -> Sent:
    """The request with one to three oddities."""
    for _ in range(random.randint(1, 3)):
        sent = random.choice(_TWISTS)(random, sent)
    return sent


def _other_method(random: Random, sent: Sent) -> Sent:
    return Sent(random.choice(ODD_METHODS), sent.target, sent.headers, sent.body, sent.chunked)


def _odd_header(random: Random, sent: Sent) -> Sent:
    name = random.choice(tuple(ODD_HEADERS))
    return _with_header(sent, name, random.choice(ODD_HEADERS[name]), twice=random.random() < 0.2)


def _many_headers(random: Random, sent: Sent) -> Sent:
    more = [
        (f"X-{number}", b"v" * random.choice((0, 1, 100))) for number in range(random.choice((5, 60, 90)))
    ]
    return Sent(sent.method, sent.target, [*sent.headers, *more], sent.body, sent.chunked)


def _odd_token(random: Random, sent: Sent) -> Sent:
    return _with_header(sent, "Authorization", random.choice(ODD_TOKENS), twice=random.random() < 0.2)


def _odd_body(random: Random, sent: Sent) -> Sent:
    body = random.choice(ODD_JSON) if random.random() < 0.8 else random.randbytes(random.randrange(2_000))
    return _with_body(sent, body, chunked=random.random() < 0.4)


def _cut_body(random: Random, sent: Sent) -> Sent:
    body = sent.body or b"{}"
    at = random.randrange(len(body) + 1)
    changed = random.choice(
        (body[:at], body[:at] + body, body[:at] + bytes([random.randrange(256)]) + body[at:])
    )
    return _with_body(sent, changed, chunked=sent.chunked)


def _encoded_body(random: Random, sent: Sent) -> Sent:
    plain = sent.body or b"{}"
    body = random.choice(
        (plain, gzip.compress(plain), zlib.compress(plain), GZIP_BOMB, gzip.compress(plain)[:-4])
    )
    encoding = random.choice((b"gzip", b"deflate", b"br", b"identity", b"x"))
    return _with_header(_with_body(sent, body, chunked=random.random() < 0.3), "Content-Encoding", encoding)


def _odd_target(random: Random, sent: Sent) -> Sent:
    if random.random() < 0.5:
        target = sent.target + random.choice(PATH_TAILS)
    else:
        target = _ID_IN_TARGET.sub(
            lambda found: _damaged(random, found[0]), sent.target, count=random.randint(1, 6)
        )
    return Sent(sent.method, target[:4_000] or "/", sent.headers, sent.body, sent.chunked)


_TWISTS: tuple[Callable[[Random, Sent], Sent], ...] = (
    _other_method, _odd_header, _odd_header, _odd_header, _many_headers, _odd_token, _odd_body, _odd_body,
    _cut_body, _encoded_body, _odd_target,
)  # fmt: skip


def _with_header(sent: Sent, name: str, text: bytes, *, twice: bool = False) -> Sent:
    others = [kept for kept in sent.headers if twice or kept[0].lower() != name.lower()]
    return Sent(sent.method, sent.target, [*others, (name, text)], sent.body, sent.chunked)


def _with_body(sent: Sent, body: bytes, *, chunked: bool) -> Sent:
    return Sent(sent.method, sent.target, sent.headers, body, chunked)


def _damaged(random: Random, text: str) -> str:
    at = random.randrange(len(text) + 1)
    return random.choice(
        (text[:at], text[:at] + "a" + text[at:], text.upper(), text + "=", text[:at] + "~" + text[at + 1 :])
    )


def json_body(document: Any) -> bytes:
    """As a client would encode it, lone surrogates too."""
    return json.dumps(document).encode()
