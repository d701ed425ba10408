"""Whether our bitcoin node can judge payments now, as the watcher last wrote it down.

Read from the database, so that it is true in every process, inside the transaction that decides by it.
"""

from dataclasses import dataclass

from payments import chain_facts
from payments.ports import Transaction

HEARTBEAT_AGE_MAX_S = 30
"""A watcher silent for longer may be dead: nobody would see a payment come."""


@dataclass(frozen=True, slots=True)
class NodeState:
    tip_height: int
    """Height of the best block scanned; 0 before the first."""
    trouble: str | None
    """Why payments cannot be judged, for the operator; None when they can."""

    @property
    def online(self) -> bool:
        return self.trouble is None


async def node_state(tx: Transaction, now: int) -> NodeState:
    """The node's state at `now`; offline while the watcher has never run."""
    tip_height, beat = await chain_facts.tip_and_watcher(tx)
    trouble = (
        "the watcher does not run"
        # One from the future is of a clock that has been set right since: it proves no life.
        if beat is None or abs(now - beat.beat_at) > HEARTBEAT_AGE_MAX_S
        else beat.trouble
    )
    return NodeState(tip_height=tip_height, trouble=trouble)
