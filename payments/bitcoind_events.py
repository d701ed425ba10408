"""Our node's event stream: ZMQ topic `sequence`, as typed events.

It hastens what polling guarantees. Each message is (topic, body, counter): the body is a hash in the RPC's
byte order, a letter and, for the mempool, its sequence number; the counter is the topic's own, and only a
gap in it means loss (the mempool's number skips at every block). Source: Bitcoin Core's doc/zmq.md.

Nothing is queued but in ZMQ itself, which drops messages beyond its bound: that shows as a gap too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import zmq
import zmq.asyncio

TOPIC = b"sequence"
QUEUE_MESSAGES_MAX = 100_000
"""Some 20 MB; three hours of the busiest mempools."""
RECONNECT_MS = 100
RECONNECT_MS_MAX = 5_000
HEARTBEAT_MS = 10_000
"""A connection that does not answer within three heartbeats is given up and made anew."""

HASH_BYTES = 32
COUNTER_BYTES = 4
COUNTER_MODULUS = 1 << 32


@dataclass(frozen=True, slots=True)
class BlockConnected:
    hash: str


@dataclass(frozen=True, slots=True)
class BlockDisconnected:
    hash: str


@dataclass(frozen=True, slots=True)
class Added:
    """A transaction entered the mempool."""

    txid: str
    mempool_sequence: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A transaction left the mempool other than into a block. On its own this proves nothing."""

    txid: str
    mempool_sequence: int


@dataclass(frozen=True, slots=True)
class EventsLost:
    """Events may have been missed: look at the chain and the mempool again."""


NodeEvent = BlockConnected | BlockDisconnected | Added | Removed | EventsLost


class BitcoindEvents:
    """A subscription to one node, renewed by itself when the connection breaks. Use with `async with`."""

    def __init__(self, endpoint: str, *, queue_messages_max: int = QUEUE_MESSAGES_MAX) -> None:
        """`endpoint` is the node's `zmqpubsequence`, such as tcp://127.0.0.1:28332."""
        self._endpoint = endpoint
        self._queue_messages_max = queue_messages_max
        self._connections = 0
        self._counter: int | None = None
        self._pending: NodeEvent | None = None

    async def __aenter__(self) -> Self:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, self._queue_messages_max)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        self._socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._poller = zmq.asyncio.Poller()
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(self._socket, zmq.POLLIN)
        self._socket.connect(self._endpoint)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self._context.destroy(linger=0)

    async def wait_connected(self, timeout_s: float) -> bool:
        """Whether we are connected within `timeout_s`: from then on nothing is missed unnoticed."""
        if self._connections == 0 and await self._monitor.poll(round(timeout_s * 1000)):
            await self._note_connection()
        return self._connections > 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> NodeEvent:
        return await self.receive()

    async def receive(self) -> NodeEvent:
        """The next event, waited for as long as it takes. May be cancelled without losing one."""
        while self._pending is None:
            ready = dict(await self._poller.poll())
            if self._monitor in ready:
                await self._note_connection()
                if self._connections > 1:
                    return EventsLost()
            elif self._socket in ready:
                event, counter = parse_message(await self._socket.recv_multipart(zmq.NOBLOCK))
                lost = self._counter is not None and counter != (self._counter + 1) % COUNTER_MODULUS
                self._counter = counter
                self._pending = event
                if lost:
                    return EventsLost()
        event, self._pending = self._pending, None
        return event

    async def _note_connection(self) -> None:
        await self._monitor.recv_multipart(zmq.NOBLOCK)
        self._connections += 1


def parse_message(frames: Sequence[bytes]) -> tuple[NodeEvent, int | None]:
    """The event and the topic's counter in one message; EventsLost and None if it is none that we know."""
    if len(frames) != 3 or frames[0] != TOPIC or len(frames[2]) != COUNTER_BYTES:
        return EventsLost(), None
    return _event(frames[1]), int.from_bytes(frames[2], "little")


def _event(body: bytes) -> NodeEvent:
    hash_hex = body[:HASH_BYTES].hex()
    match len(body), body[HASH_BYTES : HASH_BYTES + 1]:
        case 33, b"C":
            return BlockConnected(hash_hex)
        case 33, b"D":
            return BlockDisconnected(hash_hex)
        case 41, b"A":
            return Added(hash_hex, _mempool_sequence(body))
        case 41, b"R":
            return Removed(hash_hex, _mempool_sequence(body))
        case _:
            return EventsLost()


def _mempool_sequence(body: bytes) -> int:
    return int.from_bytes(body[HASH_BYTES + 1 :], "little")
