"""What goes wrong in a drill. Each fault ends what it began, under the lock of what it touches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tests.drill.buyers import Buyer
from tests.drill.payer import Payment
from tests.drill.schedule import Fault, FaultAt, Paying
from tests.drill.world import Drill

SLOW_DELAY_S = 0.2
SLOW_BYTES_PER_S = 300_000
CUT_EVERY_S = 0.4


async def bring(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> None:
    """One fault at its time, and its end."""
    await drill.at(one.at_s)
    drill.say(f"FAULT {one.fault} ...")
    said = await _FAULTS[one.fault](drill, buyers, one)
    drill.say(f"      {one.fault}: {said}")


async def _server_killed(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    async with drill.server.lock:
        await drill.server.kill()
        await asyncio.sleep(one.lasts_s)
        await drill.server.start()
    return f"back after {one.lasts_s:.1f} s"


async def _node_killed(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    async with drill.node_lock:
        await drill.world.server.kill()
        await asyncio.sleep(one.lasts_s)
        await drill.node_in()
    return f"back after {one.lasts_s:.1f} s, its mempool as it was at its last stop"


async def _node_restarted(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    async with drill.node_lock:
        await drill.world.server.restart()
        await drill.node_in()
    return "back"


async def _client_killed(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    """Whoever runs a command now, or the next who does."""
    deadline = asyncio.get_running_loop().time() + one.lasts_s
    while not drill.clients and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    if not drill.clients:
        return "nobody ran one"
    who = sorted(drill.clients)[0]
    drill.clients[who].kill()
    return f"{who} is dead, and comes again"


async def _reorg(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    async with drill.chain.lock:
        robbed: list[tuple[Buyer, Payment]] = []
        for buyer in buyers:
            if buyer.plan.paying is not Paying.REORG_ROBBERY or not buyer.paid or not buyer.payments:
                continue
            payment = buyer.payments[-1]
            depth = await drill.payer.depth(payment)
            if 1 <= depth <= one.depth:
                buyer.robbed_depth = depth
                robbed.append((buyer, payment))
        rivals = [await drill.payer.robbery(payment) for _, payment in robbed]
        said = await drill.chain.reorg(
            one.depth,
            keeps=one.keeps,
            drop=[payment.txid for _, payment in robbed],
            rivals=[rival.raw for rival in rivals],
        )
    names = "".join(f"; {buyer.name} took back what was {buyer.robbed_depth} deep" for buyer, _ in robbed)
    return f"{one.depth} deep, {said}{names}"


async def _clock(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    drill.server.set_clock(one.ahead_s)
    return f"{one.ahead_s:+d} s from the time"


async def _disk_full(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    # The lock of the server is held only while the size changes: with a full disk it must go on by itself.
    async with drill.server.lock:
        said = await drill.server.fill_disk()
    await asyncio.sleep(one.lasts_s)
    async with drill.server.lock:
        await drill.server.make_room()
    return said


async def _slow(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    drill.front.delay_s, drill.front.bytes_per_s = SLOW_DELAY_S, SLOW_BYTES_PER_S
    await asyncio.sleep(one.lasts_s)
    drill.front.delay_s, drill.front.bytes_per_s = 0.0, None
    return f"{SLOW_DELAY_S} s and {SLOW_BYTES_PER_S:,} B/s for {one.lasts_s:.1f} s"


async def _cut(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    cut = drill.front.cut()
    for _ in range(int(one.lasts_s / CUT_EVERY_S)):
        await asyncio.sleep(CUT_EVERY_S)
        cut += drill.front.cut()
    return f"{cut} cut within {one.lasts_s:.1f} s"


async def _zmq_silent(drill: Drill, buyers: Sequence[Buyer], one: FaultAt) -> str:
    drill.zmq.mute = True
    await asyncio.sleep(one.lasts_s)
    drill.zmq.mute = False
    drill.zmq.cut()
    return f"for {one.lasts_s:.1f} s"


_FAULTS: dict[Fault, Callable[[Drill, Sequence[Buyer], FaultAt], Awaitable[str]]] = {
    Fault.SERVER_KILLED: _server_killed,
    Fault.NODE_KILLED: _node_killed,
    Fault.NODE_RESTARTED: _node_restarted,
    Fault.CLIENT_KILLED: _client_killed,
    Fault.REORG: _reorg,
    Fault.CLOCK: _clock,
    Fault.DISK_FULL: _disk_full,
    Fault.SLOW: _slow,
    Fault.CUT: _cut,
    Fault.ZMQ_SILENT: _zmq_silent,
}
