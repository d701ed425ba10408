"""Ciphertext for who has a grant or pays per chunk, and the digests to check it with for everybody.

    GET, HEAD /offers/{offer_id}/files/{file_id}/content    Authorization: Bearer bcg_..., or Payment
    GET       /offers/{offer_id}/files/{file_id}/digests    public

The ETag is the root of the digests, strong, and the bytes never change: a download goes on where it broke.

Behind an nginx that is told to (`accel_redirect_prefix`), the answer names the blob and nginx sends the bytes
the client asked for. What leaves is not seen then: all that was asked for counts as sent, and how many
downloads a grant runs at a time is nginx's to limit, by the grant's id in the query. What was paid per chunk
carries an id of its own there, and so is under no such limit: it is paid for already.

Per chunk, nothing is charged before it is sure that the bytes are there and were asked for in whole chunks.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from aiohttp import hdrs, web

from bitcache import damage
from bitcache.api.byte_range import ByteRange, chunk_range, content_range, requested_range
from bitcache.api.channels import PAYING_PROBLEMS
from bitcache.api.payment_gate import Admission, Ask
from bitcache.api.routing import Auth, Call, Header, Route
from bitcache.contents import ServedFile
from bitcache.errors import FileDamaged, OfferGone
from bitcache.ids import id_text, new_id
from bitcache.payment_scheme import Credential, CredentialInvalid
from bitcache.services import Services
from bitcache.session_auth import CloseAction, receipt_header, session_credential
from payments.channel_errors import ChannelsOff
from storage.errors import BlobMissing, RangeOutside, StorageError, StoreUnavailable
from storage.ports import LocalRange, StreamRange

log = logging.getLogger(__name__)

SLICE_BYTES = 4 * 1024 * 1024
SLICE_S_MAX = 300
"""A buyer who takes less than 4 MiB in that time holds a connection for nothing."""
CONTENT_TYPE = "application/octet-stream"
ACCEL_REDIRECT_HEADER = "X-Accel-Redirect"
CONTENT_CACHE_CONTROL = "private, no-transform"
DIGESTS_CACHE_CONTROL = "public, max-age=31536000, immutable, no-transform"
RELEASE_HEADER = "Bitcache-Release-Secret"


class BlobShort(Exception):
    """A finished blob has fewer bytes than it had."""


class Passage(Protocol):
    """Told of what was sent, as it goes."""

    def sent(self, length: int) -> None: ...


class PaidPassage:
    """Of bytes that are paid for, sent or not: nothing is counted."""

    def sent(self, length: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Delivery:
    """One answer that may be sent: of which file which bytes, with which headers."""

    file_id: str
    stored: ServedFile
    chosen: ByteRange
    source: LocalRange | StreamRange
    for_nginx: bool
    nginx_key: str
    """By which nginx counts the downloads under way: an id."""
    headers: Mapping[str, str]
    passage: Passage


async def get_content(call: Call) -> web.StreamResponse:
    """200 or 206 with the bytes, for a grant, a paid challenge or a voucher that allows them now."""
    credential = session_credential(call.http.headers.get(hdrs.AUTHORIZATION))
    if credential is not None:
        return await send_metered(call, credential)
    admission = await call.services.gate.admit(
        Ask.of(
            method=call.http.method,
            headers=call.http.headers,
            offer_id=call.path("offer_id"),
            client=call.client,
        )
    )
    return await send_content(call, admission)


async def send_content(call: Call, admission: Admission) -> web.StreamResponse:
    """What the request asks for of the file, for who has a grant.

    Raises FileNotInOffer, RangeUnsatisfiable, GrantExhausted, OfferGone, FileDamaged, StoreUnavailable.
    """
    request, services = call.http, call.services
    file_id = call.path("file_id")
    grant = admission.grant
    stored = await services.contents.file(grant.parcel_id, file_id)
    if request.method == hdrs.METH_HEAD:
        return await _send_head(call, stored, admission.headers)
    chosen = requested_range(
        request.headers.get(hdrs.RANGE),
        request.headers.get(hdrs.IF_RANGE),
        etag=stored.etag,
        size_bytes=stored.size_bytes,
    )
    with services.grants.passage(grant, chosen.length) as passage:
        source, for_nginx = await _open(call, file_id, chosen)
        return await _deliver(
            call,
            Delivery(
                file_id=file_id,
                stored=stored,
                chosen=chosen,
                source=source,
                for_nginx=for_nginx,
                nginx_key=id_text(grant.grant_id),
                headers=admission.headers,
                passage=passage,
            ),
        )


async def send_metered(call: Call, credential: Credential) -> web.StreamResponse:
    """The chunks that the request asks for and its voucher pays. A HEAD costs nothing.

    Raises ChannelsOff, NotFound, TakenDown, OfferUnavailable, NotMetered, CredentialInvalid, SessionRefused,
    FileNotInOffer, RangeNotChunks, OfferGone, FileDamaged, StoreUnavailable, ChannelBusy, and what
    `ChannelDesk.pay` raises.
    """
    services = call.services
    if services.channels is None:
        raise ChannelsOff
    sales, file_id = services.channels.sales, call.path("file_id")
    offer = await sales.offer(call.path("offer_id"))
    action = await services.channels.desk.action(credential, price_msat=offer.price_msat)
    if isinstance(action, CloseAction):
        raise CredentialInvalid("what closes a channel goes to POST /channels")
    stored = await services.contents.file(offer.sale.parcel_id, file_id)
    if call.http.method == hdrs.METH_HEAD:
        return await _send_head(call, stored, {})
    chosen = chunk_range(
        call.http.headers.get(hdrs.RANGE),
        call.http.headers.get(hdrs.IF_RANGE),
        etag=stored.etag,
        size_bytes=stored.size_bytes,
    )
    source, for_nginx = await _open(call, file_id, chosen, paid_first=True)
    with sales.connection(action.voucher.channel_id):
        paid = await sales.pay(offer, action, file_id, chosen, client=call.client)
        receipt = receipt_header(paid.channel_id, paid.balance, now=services.clock())
        return await _deliver(
            call,
            Delivery(
                file_id=file_id,
                stored=stored,
                chosen=chosen,
                source=source,
                for_nginx=for_nginx,
                nginx_key=new_id() if for_nginx else "",
                headers={"Payment-Receipt": receipt, RELEASE_HEADER: offer.release_secret},
                passage=PaidPassage(),
            ),
        )


async def _send_head(call: Call, stored: ServedFile, headers: Mapping[str, str]) -> web.StreamResponse:
    response = _response(stored, ByteRange(0, stored.size_bytes, partial=False), headers)
    await response.prepare(call.http)
    return response


async def _open(
    call: Call, file_id: str, chosen: ByteRange, *, paid_first: bool = False
) -> tuple[LocalRange | StreamRange, bool]:
    """The bytes, and whether nginx sends them. `paid_first`: they must be there beyond doubt.

    Raises OfferGone, FileDamaged, StoreUnavailable.
    """
    services = call.services
    try:
        source = await services.blobs.open_range(file_id, chosen.first, chosen.length)
        for_nginx = isinstance(source, LocalRange) and _proxy_sends(call, chosen)
        # The store may remember a blob that is gone. Of nginx's 404 nobody would hear, and what is charged
        # first must not break off.
        doubted = source if isinstance(source, LocalRange) and (for_nginx or paid_first) else None
        # As near as the opening of the file that follows: a thread would cost ten times the look.
        if doubted is not None and not _is_there(doubted):
            raise BlobMissing(file_id)
    except (BlobMissing, RangeOutside) as exc:
        await _note_damage(services, file_id)
        raise FileDamaged(file_id) from exc
    return source, for_nginx


def _is_there(source: LocalRange) -> bool:
    try:
        return source.path.stat().st_size >= source.offset + source.length
    except FileNotFoundError:
        return False


async def _deliver(call: Call, delivery: Delivery) -> web.StreamResponse:
    request, services, source = call.http, call.services, delivery.source
    if isinstance(source, LocalRange) and delivery.for_nginx:
        delivery.passage.sent(delivery.chosen.length)
        place = source.path.relative_to(services.config.blobs).as_posix()
        location = f"{services.config.accel_redirect_prefix}/{place}?{delivery.nginx_key}"
        return _redirected(delivery.stored, location, delivery.headers)
    response = _response(delivery.stored, delivery.chosen, delivery.headers)
    await response.prepare(request)
    try:
        match source:
            case LocalRange():
                await _send_file(request, source, delivery.passage)
            case StreamRange():
                await _send_pieces(response, source, delivery.passage)
        await response.write_eof()
    except (OSError, RuntimeError, StorageError, BlobShort) as exc:
        # The answer has begun: another one must not be put into the middle of it.
        if request.transport is not None:
            request.transport.abort()
        if isinstance(exc, BlobShort | FileNotFoundError):
            with suppress(OfferGone, StoreUnavailable):
                await _note_damage(services, delivery.file_id)
        raise ConnectionResetError("a download broke off") from exc
    return response


async def _note_damage(services: Services, file_id: str) -> None:
    """The operator hears of it, and nothing that holds the file is sold any more.

    Raises OfferGone; StoreUnavailable, and nothing is noted, if every file is away with its disk.
    """
    await services.blobs.check(file_id)
    if not await services.database.read(lambda tx: damage.is_kept(tx, file_id)):
        raise OfferGone("The files were kept as long as promised, and are gone now.")
    now = services.clock()
    if await services.database.write(lambda tx: damage.note(tx, file_id, damaged=True, now=now)):
        log.error("the stored bytes of file %s are gone or too few: `bitcache doctor --scrub`", file_id)


async def get_digests(call: Call) -> web.StreamResponse:
    """The SHA-256 of each chunk, 32 bytes each, in order. Their SHA-256 is the root."""
    digests, etag = await call.services.contents.digests(call.path("offer_id"), call.path("file_id"))
    headers = {hdrs.CACHE_CONTROL: DIGESTS_CACHE_CONTROL, hdrs.ETAG: etag}
    return web.Response(body=digests, content_type=CONTENT_TYPE, headers=headers)


def _response(stored: ServedFile, chosen: ByteRange, more_headers: Mapping[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(
        status=206 if chosen.partial else 200,
        headers={
            hdrs.CONTENT_TYPE: CONTENT_TYPE,
            hdrs.ACCEPT_RANGES: "bytes",
            hdrs.ETAG: stored.etag,
            hdrs.CACHE_CONTROL: CONTENT_CACHE_CONTROL,
            **more_headers,
        },
    )
    response.content_length = chosen.length
    if chosen.partial:
        response.headers[hdrs.CONTENT_RANGE] = content_range(chosen, stored.size_bytes)
    return response


def _proxy_sends(call: Call, chosen: ByteRange) -> bool:
    """Whether the request came through the nginx that sends files, and it reads the range as we do.

    It refuses malformed ranges and others that we ignore: those whole files we send ourselves.
    """
    return (
        bool(call.services.config.accel_redirect_prefix)
        and call.is_proxied
        and (chosen.partial or hdrs.RANGE not in call.http.headers)
    )


def _redirected(stored: ServedFile, location: str, more_headers: Mapping[str, str]) -> web.Response:
    """For nginx, which takes the type and the ETag, and cuts the range out by itself."""
    return web.Response(
        headers={
            hdrs.CONTENT_TYPE: CONTENT_TYPE,
            hdrs.ETAG: stored.etag,
            hdrs.CACHE_CONTROL: CONTENT_CACHE_CONTROL,
            ACCEL_REDIRECT_HEADER: location,
            **more_headers,
        }
    )


async def _send_file(request: web.Request, source: LocalRange, passage: Passage) -> None:
    """From the page cache to the socket by the kernel, in slices, so that what was sent is known if it
    breaks."""
    with source.path.open("rb", buffering=0) as file:
        offset, end = source.offset, source.offset + source.length
        while offset < end:
            length = min(SLICE_BYTES, end - offset)
            async with asyncio.timeout(SLICE_S_MAX):
                await _send_slice(request, file, offset, length)
            passage.sent(length)
            offset += length


async def _send_slice(request: web.Request, file: BinaryIO, offset: int, length: int) -> None:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the buyer left")
    sent = await asyncio.get_running_loop().sendfile(transport, file, offset, length)
    if sent != length:
        raise BlobShort(f"a finished blob ends at {offset + sent}")


async def _send_pieces(response: web.StreamResponse, source: StreamRange, passage: Passage) -> None:
    async with aclosing(source.pieces) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            async with asyncio.timeout(SLICE_S_MAX):
                await response.write(piece)
            passage.sent(len(piece))


CONTENT_REQUEST_HEADERS = (
    Header(
        "Accept-Payment", "`bitcoin/charge`: a 402 of a whole GET is to carry a challenge that can be paid"
    ),
    Header("Range", "one range of bytes; several at once, or nonsense, give the whole file"),
    Header("If-Range", "the ETag: the range only if the file is still the same"),
    Header("Authorization", "`Payment ...` of a paid challenge or, of whole chunks, with a voucher"),
)
CONTENT_HEADERS = (
    Header("ETag", "the root of the digests, quoted; strong"),
    Header("Accept-Ranges", "`bytes`"),
    Header("Content-Range", "of a 206, and of a 416 with the size"),
    Header("Cache-Control", CONTENT_CACHE_CONTROL),
    Header("Payment-Receipt", "for a paid challenge, and per chunk: what paid it"),
    Header(RELEASE_HEADER, "per chunk: the release secret, base64url"),
)
CONTENT_PROBLEMS = (
    "token-invalid",
    "credential-invalid",
    "payment-required",
    "payment-unconfirmed",
    "offer-unavailable",
    "too-many-invoices",
    "too-many-requests",
    "seller-not-payable",
    "node-offline",
    "grant-suspended",
    "grant-foreign",
    "not-found",
    "offer-gone",
    "file-damaged",
    "range-unsatisfiable",
    "grant-exhausted",
    "taken-down",
    "disk-full",
    "storage-unavailable",
    "metered-only",
    "not-metered",
    "range-not-chunks",
    "channel-busy",
    *PAYING_PROBLEMS,
)


def _content_route(method: str, operation_id: str) -> Route:
    return Route(
        method=method,
        path="/offers/{offer_id}/files/{file_id}/content",
        handler=get_content,
        operation_id=operation_id,
        summary="The ciphertext of one file, whole or a range of it",
        responses={200: CONTENT_TYPE, 206: CONTENT_TYPE} if method == "GET" else {200: None},
        problems=CONTENT_PROBLEMS,
        auth=Auth.GRANT,
        request_headers=CONTENT_REQUEST_HEADERS,
        response_headers=CONTENT_HEADERS,
    )


ROUTES = (
    _content_route("GET", "getContent"),
    _content_route("HEAD", "headContent"),
    Route(
        method="GET",
        path="/offers/{offer_id}/files/{file_id}/digests",
        handler=get_digests,
        operation_id="getDigests",
        summary="SHA-256 of every chunk of the ciphertext, 32 bytes each",
        responses={200: CONTENT_TYPE},
        problems=("not-found", "taken-down"),
        response_headers=(Header("ETag", "the root of the digests, quoted; strong"),),
    ),
)
