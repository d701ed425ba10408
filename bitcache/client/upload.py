"""Files into a parcel on the server, encrypted here. Kill it and run it again: it goes on where it was.

What must survive is in `upload_state`; what a killed run has in flight, at most `LANES` parts, is sent again.
"""

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from bitcache.api import wire
from bitcache.client.api import ServerApi
from bitcache.client.errors import ServerAnswerWrong, ServerProblem, SourceRefused
from bitcache.client.lanes import run_in_lanes
from bitcache.client.progress import Progress
from bitcache.client.sealing import SourceDiffers, part_count, seal_part
from bitcache.client.sources import Source, open_source
from bitcache.client.upload_state import FileState, UploadState
from storage import base64url, digests, keys, stream
from storage.metadata import FileEntry, ParcelMetadata, Preview, seal_metadata
from storage.ports import PART_SIZE_BYTES

LANES = 3
ANNOUNCING_LANES = 6
FRESH_STARTS_MAX = 3

_FACT_PARCEL_ID = "parcel_id"


@dataclass(frozen=True)
class Description:
    """What the buyer reads before paying, besides the names and sizes of the files."""

    title: str
    note: str = ""
    preview: Preview | None = None


def state_name(server: str, paths: Sequence[Path]) -> str:
    """Name of the state of this upload: the same command finds it again."""
    words = [server, *(os.path.abspath(path) for path in paths)]
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class _Announced(NamedTuple):
    source: Source
    state: FileState
    missing: list[int]
    """Numbers of the parts to send."""


@dataclass
class _OpenFile:
    source: Source
    state: FileState
    descriptor: int
    parts_left: int


class _MustStartAnew(Exception):
    """The file needs fresh keys, since other bytes may have left under the old ones."""

    def __init__(self, source: Source) -> None:
        self.source = source


class Upload:
    """One parcel. `await run()` once; then `state.remove()` when the link is in safe hands."""

    def __init__(
        self,
        api: ServerApi,
        state: UploadState,
        sources: Sequence[Source],
        description: Description,
        *,
        meterable: bool,
        progress: Progress,
    ) -> None:
        self._api = api
        self._state = state
        self._sources = sources
        self._description = description
        self._meterable = meterable
        self._progress = progress
        self._threads = ThreadPoolExecutor(LANES, thread_name_prefix="seal")

    async def run(self) -> str:
        """The id of the parcel, complete and sealed.

        Raises SourceRefused, MetadataInvalid, ServerProblem, ServerUnreachable, ServerAnswerWrong, OSError.
        """
        # A description that cannot be sealed is refused before hours of uploading, not after.
        seal_metadata(self._state.link_secret, self._metadata([bytes(32)] * len(self._sources)))
        try:
            self._state.keep_only(source.path for source in self._sources)
            await self._send_files_in_the_end()
            return await self._seal_parcel()
        finally:
            self._threads.shutdown(wait=True)

    # Files

    async def _send_files_in_the_end(self) -> None:
        fresh_starts = 0
        while True:
            try:
                await self._send_files()
                return
            except _MustStartAnew as change:
                fresh_starts += 1
                if fresh_starts > FRESH_STARTS_MAX:
                    file = str(change.source.file)
                    raise SourceRefused(file, "it keeps changing; try when it is at rest") from change
                self._state.start_anew(change.source)

    async def _send_files(self) -> None:
        total_bytes = sum(stream.ciphertext_size(source.size_bytes) for source in self._sources)
        self._progress.start("uploaded", total_bytes)
        to_open = iter(await self._announce_all())
        is_open: list[_OpenFile] = []
        queue: deque[tuple[_OpenFile, int]] = deque()

        async def next_part() -> tuple[_OpenFile, int] | None:
            while not queue:
                announced = next(to_open, None)
                if announced is None:
                    return None
                source, file, missing = announced
                opened = _OpenFile(source, file, open_source(source), len(missing))
                is_open.append(opened)
                queue.extend((opened, part_no) for part_no in missing)
            return queue.popleft()

        async def send(job: tuple[_OpenFile, int]) -> None:
            opened, part_no = job
            await self._send_part(opened, part_no)
            opened.parts_left -= 1
            if not opened.parts_left:
                await self._complete(opened.source, opened.state)
                await close(opened)

        async def close(opened: _OpenFile) -> None:
            is_open.remove(opened)
            os.close(opened.descriptor)

        try:
            await run_in_lanes(next_part, send, lanes=LANES)
        finally:
            for opened in is_open:
                os.close(opened.descriptor)

    async def _announce_all(self) -> list[_Announced]:
        """Every file of which parts are missing. In lanes: one by one the round trips add up."""
        sources = iter(self._sources)
        announced: list[_Announced] = []

        async def next_source() -> Source | None:
            return next(sources, None)

        async def announce(source: Source) -> None:
            file, missing = await self._announce(source)
            if missing:
                announced.append(_Announced(source, file, missing))

        await run_in_lanes(next_source, announce, lanes=ANNOUNCING_LANES)
        return announced

    async def _announce(self, source: Source) -> tuple[FileState, list[int]]:
        """The file as the server knows it, and the numbers of the parts it lacks."""
        file = self._state.file(source)
        cipher_bytes = stream.ciphertext_size(source.size_bytes)
        view = None if file.file_id is None else await self._known(file.file_id)
        if view is None:
            if file.file_id is not None:
                self._state.set_file_id(file, None)
                file = self._state.file(source)
            request = wire.FileRequest(size_bytes=cipher_bytes)
            view = await self._api.post("/files", request, wire.FileView, key=file.request_key)
            self._state.set_file_id(file, view.file_id)
            file = self._state.file(source)
        if view.part_size_bytes != PART_SIZE_BYTES or view.size_bytes != cipher_bytes:
            raise ServerAnswerWrong("The server cuts files in another way than this client. Update both.")
        if view.state == "complete":
            if any(self._state.digests(file, part_no) is None for part_no in range(part_count(cipher_bytes))):
                raise ServerAnswerWrong("The server says it has a file that it was never sent.")
            self._progress.advance(cipher_bytes)
            return file, []
        present = set(view.parts_present)
        # What the server has, but we have no digests of, cannot be vouched for.
        missing = [
            part_no
            for part_no in range(part_count(cipher_bytes))
            if part_no not in present or self._state.digests(file, part_no) is None
        ]
        if not missing:
            await self._complete(source, file)
        self._progress.advance(cipher_bytes - sum(_part_size(cipher_bytes, part_no) for part_no in missing))
        return file, missing

    async def _known(self, file_id: str) -> wire.FileView | None:
        try:
            return await self._api.get(f"/files/{file_id}", wire.FileView)
        except ServerProblem as problem:
            if problem.status in {404, 410}:
                return None
            raise

    async def _send_part(self, opened: _OpenFile, part_no: int) -> None:
        loop = asyncio.get_running_loop()
        sealing = loop.run_in_executor(
            self._threads, seal_part, self._state, opened.source, opened.state, opened.descriptor, part_no
        )
        try:
            part, part_digests = await asyncio.shield(sealing)
        except asyncio.CancelledError:
            # The thread still reads from the file that is about to be closed.
            await asyncio.wait({sealing})
            raise
        except SourceDiffers as exc:
            raise _MustStartAnew(opened.source) from exc
        try:
            await self._api.put_part(
                f"/files/{opened.state.file_id}/parts/{part_no}",
                part,
                chunk_digests=base64url.encode(part_digests),
            )
        except ServerProblem as problem:
            if problem.status == 409:
                raise _MustStartAnew(opened.source) from problem
            raise
        self._progress.advance(len(part))

    async def _complete(self, source: Source, file: FileState) -> None:
        root = digests.root(self._state.all_digests(file))
        request = wire.FileCompletion(root=base64url.encode(root))
        await self._api.post(f"/files/{file.file_id}/complete", request, wire.FileView, repeatable=True)

    # The parcel

    async def _seal_parcel(self) -> str:
        known = self._state.fact(_FACT_PARCEL_ID)
        parcel_id = known.decode() if known is not None else await self._make_parcel()
        parcel = await self._api.get(f"/parcels/{parcel_id}", wire.ParcelView)
        if parcel.state == "sealed":
            return parcel_id
        roots = [digests.root(self._state.all_digests(self._state.file(source))) for source in self._sources]
        request = wire.ParcelSeal(
            metadata=base64url.encode(seal_metadata(self._state.link_secret, self._metadata(roots))),
            release_secret=base64url.encode(self._state.release_secret),
        )
        try:
            await self._api.post(f"/parcels/{parcel_id}/seal", request, wire.ParcelView, repeatable=True)
        except ServerProblem as problem:
            # The answer to an attempt was lost on the way; nobody else seals our parcels.
            if problem.name != "parcel-sealed":
                raise
        return parcel_id

    async def _make_parcel(self) -> str:
        files = [self._state.file(source) for source in self._sources]
        request = wire.ParcelRequest(
            files=[
                wire.ParcelFileRequest(
                    file_id=file.file_id or "", wrapped_key=base64url.encode(file.wrapped_key)
                )
                for file in files
            ],
            meterable=self._meterable,
        )
        key = idempotency_key("/parcels", request)
        parcel = await self._api.post("/parcels", request, wire.ParcelView, key=key)
        self._state.set_fact(_FACT_PARCEL_ID, parcel.parcel_id.encode())
        return parcel.parcel_id

    def _metadata(self, roots: Sequence[bytes]) -> ParcelMetadata:
        release_secret = self._state.release_secret
        return ParcelMetadata(
            title=self._description.title,
            note=self._description.note,
            preview=self._description.preview,
            files=tuple(
                FileEntry(
                    path=source.path,
                    media_type=source.media_type,
                    size_bytes=source.size_bytes,
                    modified_at=source.modified_at,
                    header=self._state.file(source).header,
                    root=root,
                )
                for source, root in zip(self._sources, roots, strict=True)
            ),
            release_commitment=keys.release_commitment(release_secret),
            key_check=keys.key_check(keys.parcel_key(self._state.link_secret, release_secret)),
        )


async def make_offer(api: ServerApi, request: wire.OfferRequest) -> wire.OfferSummary:
    """The offer; asked for twice within a day with the same terms, it is made once."""
    offer = await api.post("/offers", request, wire.OfferSummary, key=idempotency_key("/offers", request))
    if _terms(offer) != _terms(request):
        raise ServerAnswerWrong("The server made another offer than was asked for. Look at: bitcache offers")
    return offer


def _terms(asked: wire.OfferRequest | wire.OfferSummary) -> tuple[object, ...]:
    metered = asked.metered.amount_msat if asked.metered else None
    return asked.parcel_id, asked.price, metered, asked.policy


def idempotency_key(path: str, request: wire.Request) -> str:
    """The same request, the same key: a command run again after a crash changes nothing twice."""
    return hashlib.sha256(path.encode() + b"\0" + msgspec.json.encode(request)).hexdigest()[:40]


def _part_size(cipher_bytes: int, part_no: int) -> int:
    return min(PART_SIZE_BYTES, cipher_bytes - part_no * PART_SIZE_BYTES)
