"""A TCP relay that can be slow, cut what passes through it, or say nothing at all."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

PIECE_BYTES = 1 << 16


@dataclass
class Proxy:
    """From a free loopback port to `target_port`. `await start()` first, `await close()` last."""

    target_port: int
    delay_s: float = 0.0
    """Before each piece passes."""
    bytes_per_s: int | None = None
    """Of each connection and direction."""
    mute: bool = False
    """What comes is swallowed. Such a connection is of no use afterwards: `cut` it."""
    port: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        for writer in self._open:
            writer.transport.abort()
        return len(self._open) // 2

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:  # whom it is for is down
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._open |= both
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._open -= both
            for one in both:
                one.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while piece := await source.read(PIECE_BYTES):
                if self.mute:
                    continue
                pause_s = self.delay_s + (len(piece) / self.bytes_per_s if self.bytes_per_s else 0)
                if pause_s:
                    await asyncio.sleep(pause_s)
                sink.write(piece)
                await sink.drain()
            sink.write_eof()
        except OSError:
            sink.transport.abort()
