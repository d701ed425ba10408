"""Many files filled chunk by chunk in a few lanes, each opened in its turn and closed when it is full."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from bitcache.client.chunk_files import ChunkSink
from bitcache.client.lanes import run_in_lanes
from bitcache.client.parcel import ParcelFile
from bitcache.client.progress import Progress
from bitcache.client.transfer import LANES, ChunkRange, ChunkTransfer, plan_ranges
from storage import stream

S = TypeVar("S", bound=ChunkSink)


@dataclass
class _OpenFile(Generic[S]):
    file: ParcelFile
    sink: S
    ranges_left: int


async def fill(
    files: Iterable[ParcelFile],
    transfer: ChunkTransfer,
    *,
    open_sink: Callable[[ParcelFile], Awaitable[S]],
    on_full: Callable[[ParcelFile, S], Awaitable[None]],
    progress: Progress,
    plan: Callable[[ParcelFile, Sequence[int]], Iterable[ChunkRange]] = lambda file, missing: plan_ranges(
        missing
    ),
    lanes: int = LANES,
) -> bool:
    """Fetch every missing chunk of `files`. `on_full` is called once for each file; its sink is closed after.

    `plan` says in which ranges the missing chunks of a file are fetched. False: the transfer left some out.
    Raises the first error; by then all lanes have stopped and all sinks are closed.
    """
    to_open = iter(files)
    is_open: list[_OpenFile[S]] = []
    queue: deque[tuple[_OpenFile[S], ChunkRange]] = deque()
    all_came = True

    async def next_range() -> tuple[_OpenFile[S], ChunkRange] | None:
        while not queue:
            file = next(to_open, None)
            if file is None:
                return None
            opened = _OpenFile(file, await open_sink(file), 0)
            is_open.append(opened)
            missing = opened.sink.missing()
            progress.advance(file.cipher_bytes - _size(file, missing))
            queue.extend((opened, chunks) for chunks in plan(file, missing))
            opened.ranges_left = len(queue)
            if not queue:
                await full(opened)
        return queue.popleft()

    async def fetch(job: tuple[_OpenFile[S], ChunkRange]) -> None:
        nonlocal all_came
        opened, chunks = job
        if not await transfer.fetch(opened.file, chunks, opened.sink):
            all_came = False
            return
        opened.ranges_left -= 1
        if not opened.ranges_left:
            await full(opened)

    async def full(opened: _OpenFile[S]) -> None:
        await on_full(opened.file, opened.sink)
        is_open.remove(opened)
        opened.sink.close()

    try:
        await run_in_lanes(next_range, fetch, lanes=lanes)
    finally:
        for opened in is_open:
            opened.sink.close()
    return all_came


def _size(file: ParcelFile, chunks: list[int]) -> int:
    return sum(stream.chunk_span(index, file.cipher_bytes)[1] for index in chunks)
