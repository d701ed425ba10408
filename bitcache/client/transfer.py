"""Ciphertext from the server into chunk files: ranges of whole chunks, several at a time.

The server is believed in nothing: ranges and lengths must be as asked, every chunk is verified before it is
kept, and no answer may be longer than what was asked for.
"""

import asyncio
import functools
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import aiohttp

from bitcache.client.api import ServerApi
from bitcache.client.chunk_files import ChunkSink, ChunkVerifier
from bitcache.client.errors import PaymentWithdrawn, ServerAnswerWrong, ServerProblem
from bitcache.client.grant import Grant
from bitcache.client.parcel import ParcelFile
from bitcache.client.retry import CONNECTION_TROUBLE, Pauses, may_pass, unreachable
from storage import stream
from storage.digests import DIGEST_SIZE_BYTES

RANGE_CHUNKS = 8
"""8 MiB per request: fewer cost round trips, more would be sent again after a cut."""
LANES = 4
THREADS = 3

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class ChunkRange:
    """Chunks [first, end) of one file."""

    first: int
    end: int


def plan_ranges(missing: Sequence[int], *, range_chunks: int = RANGE_CHUNKS) -> Iterator[ChunkRange]:
    """The ascending `missing` chunks as runs of at most `range_chunks`."""
    at = 0
    while at < len(missing):
        first, length = missing[at], 1
        while length < range_chunks and at + length < len(missing) and missing[at + length] == first + length:
            length += 1
        yield ChunkRange(first, first + length)
        at += length


class ChunkTransfer(ABC):
    """Brings ranges of the files of one offer. Owns its threads: `close()` when done."""

    def __init__(self, api: ServerApi, offer_id: str, *, on_bytes: Callable[[int], None]) -> None:
        self._api = api
        self._offer_id = offer_id
        self._on_bytes = on_bytes
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="chunks")

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run blocking work where it does not hold up the network; once begun, wait for its end."""
        work = functools.partial(function, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread still uses files that the caller is about to close.
            await asyncio.wait({future})
            raise

    async def verifier(self, file: ParcelFile) -> ChunkVerifier:
        """What proves the chunks of `file`: its digests, which have the seller's root. Raises FileAltered."""
        if file.chunk_count == 1:
            return ChunkVerifier(file, None)
        path = f"/offers/{self._offer_id}/files/{file.file_id}/digests"
        length_bytes = DIGEST_SIZE_BYTES * file.chunk_count
        return ChunkVerifier(file, await self._api.get_bytes(path, length_bytes=length_bytes))

    @abstractmethod
    async def fetch(self, file: ParcelFile, chunks: ChunkRange, sink: ChunkSink) -> bool:
        """Bring `chunks` into `sink`. False: some were left out, as whoever pays for them decided."""

    async def _chunks(
        self,
        file: ParcelFile,
        first: int,
        end: int,
        authorization: str,
        *,
        on_answer: Callable[[Mapping[str, str]], None] = lambda headers: None,
    ) -> AsyncIterator[tuple[int, memoryview]]:
        """Each chunk in turn, in one buffer that the next overwrites. `on_answer` sees the headers first."""
        start = first * stream.CHUNK_SIZE_BYTES
        stop = min(end * stream.CHUNK_SIZE_BYTES, file.cipher_bytes)
        path = f"/offers/{self._offer_id}/files/{file.file_id}/content"
        async with self._api.stream(
            path,
            headers={"Range": f"bytes={start}-{stop - 1}"},
            authorization=authorization,
        ) as response:
            _check_range(response, start=start, stop=stop, size_bytes=file.cipher_bytes)
            on_answer(response.headers)
            buffer = memoryview(bytearray(stream.CHUNK_SIZE_BYTES))
            index, filled = first, 0
            _, length = stream.chunk_span(index, file.cipher_bytes)
            async for piece in _pieces(response, self._api.chunk_s_max):
                while piece:
                    if index == end:
                        response.close()
                        raise ServerAnswerWrong("The server sent more bytes than were asked for.")
                    taken = min(len(piece), length - filled)
                    buffer[filled : filled + taken] = piece[:taken]
                    piece, filled = piece[taken:], filled + taken
                    if filled == length:
                        yield index, buffer[:length]
                        index, filled = index + 1, 0
                        if index < end:
                            _, length = stream.chunk_span(index, file.cipher_bytes)
            if index != end:
                raise ServerAnswerWrong("The server sent fewer bytes than it announced.")


class Transfer(ChunkTransfer):
    """For whoever holds a grant."""

    def __init__(
        self, api: ServerApi, offer_id: str, grant: Grant, *, on_bytes: Callable[[int], None]
    ) -> None:
        super().__init__(api, offer_id, on_bytes=on_bytes)
        self._grant = grant

    async def fetch(self, file: ParcelFile, chunks: ChunkRange, sink: ChunkSink) -> bool:
        """Bring `chunks` into `sink`, going on after cuts from the last chunk that arrived.

        Raises FileAltered, ServerAnswerWrong, ServerProblem, ServerUnreachable, PaymentWithdrawn, OSError.
        """
        pauses = Pauses(self._api.retry_for_s)
        first = chunks.first
        token_renewed = False
        while first < chunks.end:
            try:
                authorization = f"Bearer {await self._grant.token()}"
                async for index, chunk in self._chunks(file, first, chunks.end, authorization):
                    await self.in_thread(sink.put, index, chunk)
                    self._on_bytes(len(chunk))
                    first = index + 1
                    token_renewed = False
                    pauses.reset()
            except ServerProblem as problem:
                if problem.status == 401 and not token_renewed:
                    token_renewed = True
                    await self._grant.renew()
                elif problem.status in {402, 403}:
                    raise PaymentWithdrawn(
                        f"The server stopped: {problem.detail} What was downloaded is kept. Run the command "
                        "with the receipt again once the payment is confirmed."
                    ) from problem
                elif not may_pass(problem) or not await pauses.wait(problem.retry_after_s):
                    raise
            except CONNECTION_TROUBLE as exc:
                if not await pauses.wait():
                    raise unreachable(self._api.base_url, exc) from exc
        return True


async def _pieces(response: aiohttp.ClientResponse, chunk_s_max: float) -> AsyncIterator[memoryview]:
    """The body in the pieces in which it came: joining them first would cost a copy of everything.

    Raises TimeoutError as soon as a chunk takes longer than `chunk_s_max`.
    """
    started_at, received_bytes = asyncio.get_running_loop().time(), 0
    while True:
        chunks_due = 1 + received_bytes // stream.CHUNK_SIZE_BYTES
        async with asyncio.timeout_at(started_at + chunks_due * chunk_s_max):
            piece, end_of_http_chunk = await response.content.readchunk()
        received_bytes += len(piece)
        if piece:
            yield memoryview(piece)
        elif not end_of_http_chunk:
            return


def _check_range(response: aiohttp.ClientResponse, *, start: int, stop: int, size_bytes: int) -> None:
    """Raises ServerAnswerWrong unless the answer holds bytes [start, stop) of `size_bytes`."""
    if response.content_length not in {None, stop - start}:
        raise ServerAnswerWrong("The server answers with another number of bytes than were asked for.")
    if response.status == 200 and (start, stop) == (0, size_bytes):
        return
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    told = None if match is None else tuple(map(int, match.groups()))
    if response.status != 206 or told != (start, stop - 1, size_bytes):
        raise ServerAnswerWrong("The server answers with another range than was asked for.")
