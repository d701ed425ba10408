"""The next version of a close that no block takes: the same deposits, more for the network (BIP125).

What the network takes more comes out of the payee's output; the payers' change is what they signed. A close
of version 3 has one small child at most, so the fees that a replacement must beat are bounded (BIP431).
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from payments import channel_close_store
from payments.bitcoind import Bitcoind
from payments.bitcoind_coins import mempool_spenders
from payments.channel_close import Claim, close_transaction
from payments.channel_close_plan import FEERATE_SAT_KVB_MIN, ClosePolicy, Pace, Planned, Toll, bumped_feerate
from payments.channel_close_store import Close
from payments.channel_errors import BumpRefused, CloseUneconomic
from payments.money import Sat
from payments.outputs import OutPoint
from payments.ports import Clock, Store, Transaction

VERSIONS_PER_BLOCK_MAX = 5
"""Against a payer whose refund bids as often as we do."""


class CloseBumper:
    """Holds no state."""

    def __init__(self, *, node: Bitcoind, store: Store, policy: ClosePolicy, clock: Clock) -> None:
        self._node = node
        self._store = store
        self._policy = policy
        self._clock = clock

    async def bump(
        self, close: Close, claims: Sequence[Claim], pace: Pace, *, tip_height: int, least_sat_kvb: int = 0
    ) -> Planned:
        """One more version, kept and not sent yet. `claims` are those of all its channels.

        `least_sat_kvb`: what the operator asked for. Raises BumpRefused, NodeUnavailable.
        """
        if sum(one.sent_height == tip_height for one in close.versions) >= VERSIONS_PER_BLOCK_MAX:
            raise BumpRefused("it was sent again often enough for one block: it waits for the next one")
        estimate = await self._node.estimate_feerate(pace.target_blocks)
        wanted = max(estimate or 0, least_sat_kvb, await floor_sat_kvb(self._node))
        toll = await toll_of(self._node, [claim.channel.outpoint for claim in claims])
        script, before = close.payee_script_pubkey, close.newest.feerate_sat_kvb
        brings_sat = sum(claim.brings_sat for claim in claims)
        # The size does not depend on the feerate, but that an output too small is left out.
        sized = await _planned(claims, script, before)
        most = brings_sat * 1_000 // sized.close.vbytes
        if not pace.last:
            most = min(most, self._policy.feerate_max_sat_kvb)
        feerate = bumped_feerate(before, wanted, toll, vbytes=sized.close.vbytes, most_sat_kvb=most)
        if feerate is None or feerate < least_sat_kvb:
            raise BumpRefused(
                f"no block takes it at {before / 1_000:.1f} sat/vB, and it may pay at most "
                f"{most / 1_000:.1f} sat/vB: raise [channels] `close_feerate_max_sat_vb`, or wait"
            )
        planned = await _planned(claims, script, feerate)
        await self._store.write(
            partial(self._keep, close=close, planned=planned, tip_height=tip_height, now=self._clock())
        )
        return planned

    async def _keep(
        self, tx: Transaction, *, close: Close, planned: Planned, tip_height: int, now: int
    ) -> None:
        there = await channel_close_store.load(tx, close.id)
        if there is None or there.newest.n != close.newest.n or there.mined is not None:
            raise BumpRefused("it was bumped or mined just now: look again")
        await channel_close_store.add_version(
            tx,
            close_id=close.id,
            n=close.newest.n + 1,
            planned=planned,
            payee_script_pubkey=close.payee_script_pubkey,
            tip_height=tip_height,
            now=now,
        )


async def _planned(claims: Sequence[Claim], script: bytes, feerate_sat_kvb: int) -> Planned:
    """All of them, and nothing left out. Raises BumpRefused if they bring less than it costs."""
    close = partial(close_transaction, claims, script, feerate_sat_kvb=feerate_sat_kvb)
    try:
        return Planned(await asyncio.to_thread(close), tuple(claims), feerate_sat_kvb)
    except CloseUneconomic as exc:
        raise BumpRefused(str(exc)) from exc


async def floor_sat_kvb(node: Bitcoind) -> int:
    """The least feerate that our node's mempool takes now."""
    return max(FEERATE_SAT_KVB_MIN, await node.mempool_feerate_min())


async def toll_of(node: Bitcoind, outpoints: Sequence[OutPoint]) -> Toll:
    """What in the mempool a transaction that spends these has to throw out."""
    spenders = set((await mempool_spenders(node.rpc, outpoints)).values())
    fees_sat, feerate_sat_kvb = 0, 0
    for txid in sorted(spenders):
        entry = await node.mempool_entry(txid)
        if entry is None:
            continue  # it has left
        # Children of two spenders may be the same: better a sat too many than a refusal.
        fees_sat += entry.descendant_fees_sat
        feerate_sat_kvb = max(feerate_sat_kvb, -(-entry.fee_sat * 1_000 // entry.vsize_vbytes))
    return Toll(Sat(fees_sat), feerate_sat_kvb)
