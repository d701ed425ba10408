"""Whether our bitcoin node can judge payments now, as the watcher last wrote it down.

Read from the database, so that it is true in every process, inside the transaction that decides by it.
"""

from dataclasses import dataclass

from payments import chain_store
from payments.ports import Transaction

HEARTBEAT_AGE_MAX_S = 30
"""A watcher silent for longer may be dead: nobody would see a payment come."""


@dataclass(frozen=True, slots=True)
class NodeState:
    online: bool
    tip_height: int
    """Height of the best block scanned; 0 before the first."""


async def node_state(tx: Transaction, now: int) -> NodeState:
    """The node's state at `now`; offline while the watcher has never run."""
    beat = await chain_store.watcher_state_of(tx)
    tip = await chain_store.tip(tx)
    online = beat is not None and beat.trouble is None and now - beat.beat_at <= HEARTBEAT_AGE_MAX_S
    return NodeState(online=online, tip_height=tip.height if tip else 0)
