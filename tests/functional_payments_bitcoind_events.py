"""The node's events as typed values: in order from a real node, and never a silent gap."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import pytest_asyncio
import zmq
import zmq.asyncio

from payments.bitcoind_events import (
    TOPIC,
    Added,
    BitcoindEvents,
    BlockConnected,
    BlockDisconnected,
    EventsLost,
    NodeEvent,
    Removed,
    parse_message,
)
from regtest.wallet import BitWallet
from regtest.world import RegtestWorld

HASH = bytes(range(32))
DEADLINE_S = 20
UNREAD_MESSAGES = 30_000
"""Far more than the operating system keeps for a connection."""


async def test_payment_replacement_and_block(world: RegtestWorld) -> None:
    payer = await BitWallet.create(world)
    address = await world.new_miner_address()
    async with BitcoindEvents(world.server.zmq_url) as events:
        assert await events.wait_connected(DEADLINE_S)
        first = await payer.pay([(address, 50_000)], fee_sat=1_000)
        added = await until(events, lambda event: isinstance(event, Added))
        second = await payer.pay([(address, 50_000)], fee_sat=5_000, inputs=first.inputs)
        replaced = await until(events, lambda event: isinstance(event, Added))
        (mined,) = await world.mine()
        confirmed = await until(events, lambda event: isinstance(event, BlockConnected))
        snapshot = await world.server.rpc("getrawmempool", False, True)

    assert [type(event) for event in added + replaced] == [Added, Removed, Added]
    assert [event.txid for event in added + replaced if isinstance(event, Added | Removed)] == [
        first.txid,
        first.txid,
        second.txid,
    ]
    sequences = [event.mempool_sequence for event in added + replaced if isinstance(event, Added | Removed)]
    assert sequences == sorted(sequences)
    assert sequences[-1] < snapshot["mempool_sequence"]
    # A transaction that gets into a block is not told of on its own.
    assert confirmed == [BlockConnected(mined)]


async def test_reorg(own_world: RegtestWorld) -> None:
    async with BitcoindEvents(own_world.server.zmq_url) as events:
        assert await events.wait_connected(DEADLINE_S)
        old = await own_world.mine(2)
        new = await own_world.reorg(2)
        seen = await until(events, lambda event: event == BlockConnected(new[-1]))
    blocks = [event for event in seen if isinstance(event, BlockConnected | BlockDisconnected)]
    assert blocks == [
        *(BlockConnected(block) for block in old),
        *(BlockDisconnected(block) for block in reversed(old)),
        *(BlockConnected(block) for block in new),
    ]


async def test_a_restarted_node_means_that_events_were_lost(own_world: RegtestWorld) -> None:
    async with BitcoindEvents(own_world.server.zmq_url) as events:
        assert await events.wait_connected(DEADLINE_S)
        await own_world.server.kill()
        await own_world.server.start()
        assert await until(events, lambda _: True) == [EventsLost()]
        await own_world.reconnect()
        (block,) = await own_world.mine()
        assert BlockConnected(block) in await until(events, lambda event: event == BlockConnected(block))


async def test_no_node_is_no_connection(free_port: int) -> None:
    async with BitcoindEvents(f"tcp://127.0.0.1:{free_port}") as events:
        assert not await events.wait_connected(0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(events.receive(), 0.1)


class Publisher:
    """A node's socket without the node: it publishes what it is told."""

    def __init__(self, socket: zmq.asyncio.Socket, url: str) -> None:
        self._socket = socket
        self.url = url

    async def wait_subscribed(self) -> None:
        await self._socket.recv()

    async def publish(self, label: bytes, counter: int) -> None:
        await self._socket.send_multipart([TOPIC, HASH + label, counter.to_bytes(4, "little")])


@contextmanager
def publishing(*, forgetful: bool = False) -> Iterator[Publisher]:
    """A publisher; a `forgetful` one keeps little for a subscriber who does not read."""
    with zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as socket:
        if forgetful:
            socket.setsockopt(zmq.SNDHWM, 10)
            socket.setsockopt(zmq.SNDBUF, 4_096)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        yield Publisher(socket, f"tcp://127.0.0.1:{port}")
        socket.setsockopt(zmq.LINGER, 0)


@pytest_asyncio.fixture
async def publisher() -> AsyncIterator[Publisher]:
    with publishing() as publisher:
        yield publisher


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ([7, 8, 9], [BlockConnected, BlockConnected, BlockConnected]),
        ([7, 9, 10], [BlockConnected, EventsLost, BlockConnected, BlockConnected]),
        ([7, 0, 1], [BlockConnected, EventsLost, BlockConnected, BlockConnected]),
        ([7, 7], [BlockConnected, EventsLost, BlockConnected]),
        ([2**32 - 1, 0, 1], [BlockConnected, BlockConnected, BlockConnected]),
    ],
    ids=["no gap", "one missing", "counts anew", "repeated", "counter wraps"],
)
async def test_a_gap_in_the_counter_is_a_loss(
    publisher: Publisher, counters: Sequence[int], expected: Sequence[type[NodeEvent]]
) -> None:
    async with BitcoindEvents(publisher.url) as events:
        await publisher.wait_subscribed()
        for counter in counters:
            await publisher.publish(b"C", counter)
        seen = [await asyncio.wait_for(events.receive(), DEADLINE_S) for _ in expected]
    assert [type(event) for event in seen] == list(expected)


async def test_more_messages_than_are_kept_is_a_loss() -> None:
    with publishing(forgetful=True) as publisher:
        async with BitcoindEvents(publisher.url, queue_messages_max=10) as events:
            await publisher.wait_subscribed()
            for counter in range(UNREAD_MESSAGES):
                await publisher.publish(b"C", counter)
            seen: list[NodeEvent] = []
            while EventsLost() not in seen:
                seen.append(await asyncio.wait_for(events.receive(), DEADLINE_S))
                # The gap shows with the next message that comes through.
                await publisher.publish(b"C", UNREAD_MESSAGES + len(seen))
    assert len(seen) < UNREAD_MESSAGES


async def test_cancelled_waiting_loses_nothing(publisher: Publisher) -> None:
    async with BitcoindEvents(publisher.url) as events:
        await publisher.wait_subscribed()
        seen: list[NodeEvent] = []
        for counter in range(200):
            await publisher.publish(b"C", counter)
            waiting = asyncio.create_task(events.receive())
            await asyncio.sleep(0)
            if counter % 2:
                waiting.cancel()
            seen += [
                event
                for event in await asyncio.gather(waiting, return_exceptions=True)
                if isinstance(event, BlockConnected | EventsLost)
            ]
        while len(seen) < 200:
            seen.append(await asyncio.wait_for(events.receive(), DEADLINE_S))
    assert seen == [BlockConnected(HASH.hex())] * 200


@pytest.mark.parametrize(
    ("body", "event"),
    [
        (HASH + b"C", BlockConnected(HASH.hex())),
        (HASH + b"D", BlockDisconnected(HASH.hex())),
        (HASH + b"A" + (258).to_bytes(8, "little"), Added(HASH.hex(), 258)),
        (HASH + b"R" + (2**63).to_bytes(8, "little"), Removed(HASH.hex(), 2**63)),
        (HASH + b"X", EventsLost()),
        (HASH + b"A", EventsLost()),
        (HASH + b"C" + bytes(8), EventsLost()),
        (HASH, EventsLost()),
        (b"", EventsLost()),
    ],
)
def test_message_bodies(body: bytes, event: NodeEvent) -> None:
    assert parse_message([TOPIC, body, (5).to_bytes(4, "little")]) == (event, 5)


@pytest.mark.parametrize(
    "frames",
    [[], [TOPIC], [TOPIC, HASH + b"C"], [b"rawtx", HASH + b"C", bytes(4)], [TOPIC, HASH + b"C", b""]],
)
def test_messages_of_another_shape_are_losses(frames: list[bytes]) -> None:
    assert parse_message(frames) == (EventsLost(), None)


async def until(events: BitcoindEvents, wanted: Callable[[NodeEvent], bool]) -> list[NodeEvent]:
    """The events up to the first that is `wanted`, with it."""
    seen: list[NodeEvent] = []
    async with asyncio.timeout(DEADLINE_S):
        async for event in events:
            seen.append(event)
            if wanted(event):
                break
    return seen
