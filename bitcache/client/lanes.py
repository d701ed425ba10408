"""A few lanes that take jobs one after the other, and stop together at the first error."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

J = TypeVar("J")


async def run_in_lanes(
    next_job: Callable[[], Awaitable[J | None]], work: Callable[[J], Awaitable[None]], *, lanes: int
) -> None:
    """`work` on every job, at most `lanes` at a time, until `next_job` gives None.

    `next_job` is never asked twice at once. Raises the first error, when all lanes have stopped.
    """
    asking = asyncio.Lock()

    async def lane() -> None:
        while True:
            async with asking:
                job = await next_job()
            if job is None:
                return
            await work(job)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(lane())
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__
