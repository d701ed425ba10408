"""Bodies in and out: bounded before they are read, strictly decoded."""

import asyncio
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from bitcache.errors import BodyTooLarge, BodyTooSlow, RequestInvalid, ValueRefused
from bitcache.json_refusals import refusal_words
from storage import base64url

BODY_IDLE_S = 60
"""A body may pause that long; a slow line is no reason to give up, a dead one is."""
BODY_S_MAX = 300
"""A body that is read whole must have come by then: the largest, 6 MiB, at 20 kB/s."""

RequestStruct = TypeVar("RequestStruct", bound=Struct)


def encode(body: Struct | None) -> bytes:
    return b"" if body is None else msgspec.json.encode(body)


def json_response(status: int, octets: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer that nobody keeps, since states change; without `octets` an empty one."""
    if not octets:
        return web.Response(status=status, headers=headers)
    return web.Response(
        status=status,
        body=octets,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


async def read_body(request: web.Request, *, limit_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge before reading where the length is announced, BodyTooSlow."""
    if (request.content_length or 0) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            while piece := await read_piece(request):
                body += piece
                if len(body) > limit_bytes:
                    raise BodyTooLarge(limit_bytes)
    except TimeoutError as exc:
        raise BodyTooSlow(f"The body did not come within {BODY_S_MAX} s. Send the request again.") from exc
    return bytes(body)


async def read_piece(request: web.Request) -> bytes:
    """What has arrived of the body, uncopied; empty at its end. Raises BodyTooSlow, RequestInvalid."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() != "identity":
        raise RequestInvalid(
            "The body is packed (Content-Encoding). Send it plain.", field="Content-Encoding"
        )
    try:
        async with asyncio.timeout(BODY_IDLE_S):
            # Only at_eof tells the end: the one reader that all requests without a body share says "end of a
            # chunk" for ever.
            while not request.content.at_eof():
                piece, _ = await request.content.readchunk()
                if piece:
                    return piece
            return b""
    except web.RequestPayloadError as exc:
        raise RequestInvalid(
            "The body is not framed as its headers say (Transfer-Encoding). Send it again."
        ) from exc
    except TimeoutError as exc:
        raise BodyTooSlow(f"Nothing came for {BODY_IDLE_S} s. Send the request again.") from exc


def decode(octets: bytes, kind: type[RequestStruct]) -> RequestStruct:
    """The JSON document as a `kind`. Raises RequestInvalid (no JSON), ValueRefused (it breaks a rule)."""
    try:
        return msgspec.json.decode(octets, type=kind)
    except msgspec.ValidationError as exc:
        words = refusal_words(exc)
        raise ValueRefused(f"{words}.", field=_field_of(words)) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestInvalid(f"The body is not a JSON document: {refusal_words(exc)}.") from exc


def octets(text: str, field: str) -> bytes:
    """The bytes of a base64url member of a body. Raises ValueRefused."""
    try:
        return base64url.decode(text)
    except ValueError as exc:
        raise ValueRefused(f"`{field}`: {exc}.", field=field) from exc


def _field_of(message: str) -> str | None:
    """The member that msgspec complains of: "... - at `$.price.amount_msat`" or "... unknown field `x`"."""
    place = re.search(r"at `\$\.?([^`]*)`", message)
    named = re.search(r"field `([^`]*)`", message)
    parts = [match[1] for match in (place, named) if match and match[1]]
    return ".".join(parts)[:80] or None
