"""Uploads: announce a file, send its parts in any order, complete it. A crash loses nothing acknowledged."""

import asyncio

from aiohttp import web

from bitcache import uploads
from bitcache.api.bodies import octets, read_piece
from bitcache.api.routing import Answer, Auth, BodyKind, Call, Header, Route
from bitcache.api.wire import FileCompletion, FileRequest, FileView
from bitcache.errors import BodyTooSlow, PartLengthWrong, RequestInvalid
from bitcache.services import Services
from bitcache.uploads import StoredFile
from payments.ports import Transaction
from storage import base64url
from storage.digests import DIGEST_SIZE_BYTES
from storage.ports import PART_SIZE_BYTES
from storage.stream import CHUNK_SIZE_BYTES

DIGESTS_HEADER = "Bitcache-Chunk-Digests"
PART_S_MAX = 300
"""A part must come at 28 kB/s or faster: its buffer is needed."""


async def announce(call: Call) -> Answer | web.StreamResponse:
    services, request = call.services, call.body(FileRequest)
    services.limits.files.check(call.seller.account_id)
    services.limits.file_bytes.check(call.seller.account_id, request.size_bytes)
    await services.uploads.check_disk(request.size_bytes)

    async def make(tx: Transaction) -> Answer:
        stored = await services.uploads.announce(tx, call.seller.account_id, request.size_bytes)
        return Answer(201, _view(services, stored, in_parcel=False, parts=[]))

    return await call.create(make)


async def show(call: Call) -> Answer:
    services = call.services

    async def look(tx: Transaction) -> FileView:
        stored = await uploads.load(tx, call.seller.account_id, call.path("file_id"))
        return await _looked_up(services, tx, stored)

    return Answer(200, await services.database.read(look))


async def put_part(call: Call) -> Answer:
    """204 whether the part is new or was there: an answer that got lost is simply asked for again."""
    services, account_id, file_id = call.services, call.seller.account_id, call.path("file_id")
    part_no = int(call.path("part_no"))
    stored = await services.database.read(lambda tx: uploads.load(tx, account_id, file_id))
    length_bytes = stored.part_length(part_no)
    announced = _announced_digests(call.http, -(-length_bytes // CHUNK_SIZE_BYTES))
    if call.http.content_length not in {None, length_bytes}:
        raise _wrong_length(part_no, length_bytes)
    async with services.part_buffers.lend(account_id) as buffer:
        part = buffer[:length_bytes]
        await _read_exactly(call.http, part, part_no)
        if await services.uploads.store_part(account_id, file_id, part_no, part, announced):
            services.metrics.bytes_received.inc(length_bytes)
    return Answer(204)


async def complete(call: Call) -> Answer:
    services, account_id, file_id = call.services, call.seller.account_id, call.path("file_id")
    root = octets(call.body(FileCompletion).root, "root")
    stored = await services.uploads.complete(account_id, file_id, root)
    return Answer(200, await services.database.read(lambda tx: _looked_up(services, tx, stored)))


async def remove(call: Call) -> Answer:
    await call.services.uploads.remove(call.seller.account_id, call.path("file_id"))
    return Answer(204)


async def _looked_up(services: Services, tx: Transaction, stored: StoredFile) -> FileView:
    in_parcel = await uploads.is_in_parcel(tx, stored.id)
    return _view(services, stored, in_parcel=in_parcel, parts=await uploads.parts_present(tx, stored))


def _view(services: Services, stored: StoredFile, *, in_parcel: bool, parts: list[int]) -> FileView:
    return FileView(
        file_id=stored.id,
        state="uploading" if stored.completed_at is None else "complete",
        size_bytes=stored.size_bytes,
        part_size_bytes=PART_SIZE_BYTES,
        parts_present=parts,
        root=base64url.encode(stored.root) if stored.root else None,
        created_at=stored.created_at,
        expires_at=services.uploads.expires_at(stored, in_parcel=in_parcel),
    )


def _announced_digests(request: web.Request, chunk_count: int) -> bytes:
    """The digests in the header, 32 bytes for each of `chunk_count` chunks. Raises RequestInvalid."""
    text = request.headers.get(DIGESTS_HEADER)
    if text is None:
        raise RequestInvalid(
            f"Send the SHA-256 of each chunk, concatenated, as base64url in {DIGESTS_HEADER}.",
            field=DIGESTS_HEADER,
        )
    try:
        announced = base64url.decode(text)
    except ValueError as exc:
        raise RequestInvalid(f"{DIGESTS_HEADER}: {exc}.", field=DIGESTS_HEADER) from exc
    if len(announced) != chunk_count * DIGEST_SIZE_BYTES:
        raise RequestInvalid(
            f"{DIGESTS_HEADER} has {len(announced)} bytes; this part has {chunk_count} chunks of 1 MiB, "
            f"so {chunk_count * DIGEST_SIZE_BYTES}.",
            field=DIGESTS_HEADER,
        )
    return announced


async def _read_exactly(request: web.Request, part: memoryview, part_no: int) -> None:
    """Fill `part` with the body. Raises PartLengthWrong if it has another length, BodyTooSlow."""
    filled = 0
    try:
        async with asyncio.timeout(PART_S_MAX):
            while piece := await read_piece(request):
                if filled + len(piece) > len(part):
                    raise _wrong_length(part_no, len(part))
                part[filled : filled + len(piece)] = piece
                filled += len(piece)
    except TimeoutError as exc:
        raise BodyTooSlow(f"Part {part_no} did not come within {PART_S_MAX} s. Send it again.") from exc
    if filled != len(part):
        raise _wrong_length(part_no, len(part))


def _wrong_length(part_no: int, length_bytes: int) -> PartLengthWrong:
    return PartLengthWrong(f"Part {part_no} of this file has {length_bytes} bytes. Send exactly those.")


ROUTES = (
    Route(
        method="POST",
        path="/files",
        handler=announce,
        operation_id="createFile",
        summary="Announce a file by the size of its ciphertext",
        request=FileRequest,
        responses={201: FileView},
        problems=("account-full", "server-full", "too-many-requests"),
        auth=Auth.SELLER,
        idempotent=True,
    ),
    Route(
        method="GET",
        path="/files/{file_id}",
        handler=show,
        operation_id="getFile",
        summary="What has arrived of a file",
        responses={200: FileView},
        problems=("not-found",),
        auth=Auth.SELLER,
    ),
    Route(
        method="PUT",
        path="/files/{file_id}/parts/{part_no}",
        handler=put_part,
        operation_id="putPart",
        summary="Send one part: 8 chunks, the last part fewer",
        responses={204: None},
        problems=(
            "bad-request",
            "not-found",
            "part-conflict",
            "part-digest-mismatch",
            "part-out-of-range",
            "part-size-wrong",
            "storage-unavailable",
            "too-slow",
            "too-many-requests",
        ),
        auth=Auth.SELLER,
        body=BodyKind.STREAM,
        request_headers=(
            Header(DIGESTS_HEADER, "SHA-256 of each chunk, concatenated, base64url", required=True),
        ),
    ),
    Route(
        method="POST",
        path="/files/{file_id}/complete",
        handler=complete,
        operation_id="completeFile",
        summary="Make a file whole: all parts are there and have this root",
        request=FileCompletion,
        responses={200: FileView},
        problems=("not-found", "parts-missing", "root-mismatch", "storage-unavailable"),
        auth=Auth.SELLER,
    ),
    Route(
        method="DELETE",
        path="/files/{file_id}",
        handler=remove,
        operation_id="deleteFile",
        summary="Forget a file that is in no parcel",
        responses={204: None},
        problems=("not-found", "file-in-use"),
        auth=Auth.SELLER,
    ),
)
