"""A client that costs little: blocking sockets in threads, bodies received into one buffer, sent from memory.

It checks statuses and lengths and nothing else, so that what is measured is the server.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

BUFFER_BYTES = 1 << 20
SILENCE_S = 60


class RawConnection:
    """One keep-alive connection over loopback."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._host = f"Host: 127.0.0.1:{port}\r\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def get(self, path: str, headers: Mapping[str, str], *, until: Callable[[], bool] = lambda: False) -> int:
        """Bytes of the body, received and thrown away; stops early once `until` holds."""
        self._socket.sendall(self._head("GET", path, headers))
        return self._receive(until)

    def put(self, path: str, headers: Mapping[str, str], body: memoryview) -> None:
        self._socket.sendall(self._head("PUT", path, {**headers, "Content-Length": str(len(body))}))
        self._socket.sendall(body)
        self._receive(lambda: False)

    def _head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
        return f"{method} {path} HTTP/1.1\r\n{self._host}{lines}\r\n".encode()

    def _receive(self, until: Callable[[], bool]) -> int:
        head, filled = self._head_of_answer()
        status, length_bytes = int(head[9:12]), 0
        for line in head.split(b"\r\n")[1:]:
            name, _, text = line.partition(b":")
            if name.lower() == b"content-length":
                length_bytes = int(text)
        if not 200 <= status < 300:
            raise ConnectionError(head.decode(errors="replace"))
        while filled < length_bytes and not until():
            received = self._socket.recv_into(self._buffer, min(BUFFER_BYTES, length_bytes - filled))
            if not received:
                raise ConnectionError(f"{filled} of {length_bytes} bytes came")
            filled += received
        return filled

    def _head_of_answer(self) -> tuple[bytes, int]:
        """(head, bytes of the body that came along)."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self._socket.recv(4096)
            if not piece:
                raise ConnectionError(f"the server closed after {head!r}")
            head += piece
        head, _, rest = head.partition(b"\r\n\r\n")
        return head, len(rest)


def in_lanes(port: int, lanes: int, jobs: Sequence[Callable[[RawConnection], None]]) -> None:
    """Every job, `lanes` at a time, each lane with a connection of its own. Raises the first error."""
    errors: list[BaseException] = []

    def lane(number: int) -> None:
        try:
            with RawConnection(port) as connection:
                for job in jobs[number::lanes]:
                    job(connection)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
