"""Closes channels: makes the transactions, keeps them before it sends them, and sees that a block takes one.

Each turn looks at the database and the node alone, so a crash between two steps loses nothing: what was kept
and not sent is sent by the next turn, or by the watcher. Only the process that has the channels closes them.
Which are closed together and what they pay is in `channel_close_plan`; what became of a close, the watcher's
`ChannelFollower` books. Why a channel is not closed yet is kept with it, in words.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from sqlalchemy import select

from payments import channel_close_store
from payments.addresses import AddressBook, PayoutDescriptor
from payments.bitcoind import Bitcoind
from payments.bitcoind_wallet import PayoutWallet
from payments.channel import CloseReason
from payments.channel_bump import floor_sat_kvb
from payments.channel_close_plan import ClosePolicy, Planned, claim_of, groups, plan_close, wanted_feerate
from payments.channel_close_store import unused_address
from payments.channel_errors import ChannelError
from payments.channel_record import Agreed, ChannelRecord
from payments.channel_tending import CloseTender, Payee, Troubles, pace_of
from payments.descriptors import DescriptorStore
from payments.errors import (
    AddressesInDoubt,
    DescriptorInvalid,
    NodeMisconfigured,
    NodeRefused,
    NodeUnavailable,
)
from payments.ids import new_id
from payments.outputs import Presence
from payments.own_addresses import fresh_address
from payments.ports import Clock, Store, Transaction
from payments.tables import channels
from payments.unassigned import Purpose

log = logging.getLogger(__name__)

INTERVAL_S = 3
NODE_TROUBLE = (NodeMisconfigured, NodeUnavailable)
"""They pass by themselves, or when the operator has done what they say."""
OF_ONE = (AddressesInDoubt, DescriptorInvalid, NodeRefused)
"""Kept with the channels: no other close has to wait for these."""


class Registry(Protocol):
    """What `ChannelRegistry` is asked: whether this process has the channels, and to charge no more."""

    @property
    def available(self) -> bool: ...

    async def ask_close(self, channel_id: str, reason: CloseReason, agreed: Agreed | None) -> None: ...


class ChannelCloser:
    """`wallet`: the operator's, which closes pay; `signer` signs for it, where the node has it."""

    def __init__(
        self,
        *,
        node: Bitcoind,
        store: Store,
        registry: Registry,
        payee: Payee,
        wallet: Callable[[], Awaitable[PayoutDescriptor]],
        descriptors: DescriptorStore,
        addresses: AddressBook,
        signer: PayoutWallet | None,
        policy: ClosePolicy,
        clock: Clock,
    ) -> None:
        self._node = node
        self._store = store
        self._registry = registry
        self._payee = payee
        self._wallet = wallet
        self._descriptors = descriptors
        self._addresses = addresses
        self._policy = policy
        self._clock = clock
        self._tender = CloseTender(
            node=node,
            store=store,
            payee=payee,
            wallet=wallet,
            descriptors=descriptors,
            addresses=addresses,
            signer=signer,
            policy=policy,
            clock=clock,
        )
        self._told: str | None = None
        self._one_at_a_time = asyncio.Lock()

    async def run(self, *, interval_s: float = INTERVAL_S) -> None:
        """Take turns for ever. Raises the database's trouble, after which it may be called again."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.poll_once()
                self._told = None
            except NODE_TROUBLE as trouble:
                if str(trouble) != self._told:
                    log.warning("no channel is closed now: %s", trouble)
                self._told = str(trouble)

    async def poll_once(self) -> None:
        """One turn: send what is not sent, replace what waits for too long, close what is to be closed."""
        if not self._registry.available:
            return
        async with self._one_at_a_time:
            for channel_id in await self._store.read(channel_close_store.asked_by_operator):
                with suppress(ChannelError):  # decided otherwise meanwhile, or in another process
                    await self._registry.ask_close(channel_id, CloseReason.OPERATOR, None)
            look = await self._store.read(channel_close_store.look)
            troubles: Troubles = {
                record.id: f"its deposit is in no block now ({record.funding}): it waits for one"
                for record in look.records.values()
                if record.funding is not Presence.BLOCK
            }
            for close in look.closes:
                try:
                    troubles |= await self._tender.tend(close, look)
                except OF_ONE as exc:
                    troubles |= dict.fromkeys(close.channel_ids, str(exc))
            for group in groups(look.ready, tip_height=look.tip_height):
                try:
                    troubles |= await self._close(group, look.tip_height)
                except OF_ONE as exc:
                    troubles |= {record.id: str(exc) for record in group}
            known = {record.id: record.trouble for record in look.records.values()}
            news = {
                channel_id: words for channel_id, words in troubles.items() if known.get(channel_id) != words
            }
            if news:
                await self._store.write(partial(channel_close_store.set_troubles, troubles=news))

    async def bump(self, close_id: str, *, feerate_sat_kvb: int) -> str:
        """Replace an unmined close by a version with this feerate, or more if our node asks for more.

        Its txid. The operator's maximum holds. Any process may: versions exclude each other in the database
        and in the chain. Raises CloseNotFound, BumpRefused, NodeUnavailable.
        """
        async with self._one_at_a_time:
            look = await self._store.read(channel_close_store.look)
            return await self._tender.bump(close_id, look, feerate_sat_kvb=feerate_sat_kvb)

    async def _close(self, group: Sequence[ChannelRecord], tip_height: int) -> Troubles:
        pace_now = pace_of(self._policy, group, tip_height)
        claims, troubles = [], Troubles()
        for record in group:
            claim = claim_of(record, self._payee(record.nonce), last=pace_now.last)
            try:
                if claim is None:
                    troubles[record.id] = (
                        "nothing was signed: after its expiry the payer takes the deposit back"
                    )
                    continue
                claim.channel.verify(claim.paid_sat, claim.signature, claim.fee_sat)
                claims.append(claim)
            except ChannelError as exc:
                troubles[record.id] = str(exc)
        if not claims:
            return troubles
        estimate = await self._node.estimate_feerate(pace_now.target_blocks)
        floor = await floor_sat_kvb(self._node)
        feerate = wanted_feerate(self._policy, pace_now, estimate, claims, floor_sat_kvb=floor)
        address = await fresh_address(
            self._store,
            self._descriptors,
            self._addresses,
            await self._wallet(),
            Purpose.CHANNEL,
            unused=unused_address,
        )
        planned, left_out = await asyncio.to_thread(
            partial(
                plan_close,
                claims,
                address.script_pubkey,
                feerate_sat_kvb=feerate,
                feerate_max_sat_kvb=self._policy.feerate_max_sat_kvb,
            )
        )
        troubles |= {channel_id: str(exc) for channel_id, exc in left_out.items()}
        if planned is None or not await self._store.write(
            partial(self._keep, planned=planned, script=address.script_pubkey, tip_height=tip_height)
        ):
            return troubles
        answer = await self._node.send_raw_transaction(planned.close.raw)
        # Refused, it is tended by the next turn.
        trouble = None if answer.is_there else f"our node does not take it: {answer.message}"
        return troubles | {claim.channel.id: trouble for claim in planned.claims}

    async def _keep(self, tx: Transaction, *, planned: Planned, script: bytes, tip_height: int) -> bool:
        """Whether it was made: its channels are still to be closed and in no close, its address is free."""
        of_these = channels.c.id.in_([claim.channel.id for claim in planned.claims])
        await tx.execute(select(channels.c.id).where(of_these).with_for_update())
        look = await channel_close_store.look(tx)
        ready = {record.id for record in look.ready}
        if not ready.issuperset(claim.channel.id for claim in planned.claims):
            return False
        if await channel_close_store.has_address(tx, script):
            return False
        await channel_close_store.add_version(
            tx,
            close_id=new_id(),
            n=1,
            planned=planned,
            payee_script_pubkey=script,
            tip_height=tip_height,
            now=self._clock(),
        )
        return True
