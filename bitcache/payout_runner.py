"""What happens to payouts by itself: batches are built, signed, sent, and sent again at a higher feerate.

Each turn looks at the database alone and takes the next step of whatever it finds, so a crash between two
steps loses nothing and repeats nothing. A node, a wallet or a database that is away is a state: its words are
kept where the operator looks (`bitcache payouts list`), and it is tried again after a pause.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy import func, select

from bitcache.config import Config
from bitcache.db.engine import DATABASE_TROUBLE
from bitcache.errors import FeerateUnknown, NodeOffline, SealBroken
from bitcache.hosted_wallet import HostedWallet
from bitcache.payout_feerate import bumped, feerate_now
from bitcache.payout_overview import stopped
from bitcache.rate_limits import Monotonic
from payments import batch_store, payable, payout_store
from payments.addresses import PayoutDescriptor
from payments.batch_store import Batch
from payments.bitcoind import Bitcoind
from payments.bitcoind_wallet import PayoutWallet
from payments.errors import (
    SIGNING_TROUBLE,
    AddressesInDoubt,
    DescriptorInvalid,
    NodeMisconfigured,
    NodeRefused,
    NodeUnavailable,
    PayoutConflict,
    PayoutRefused,
    PayoutsStopped,
)
from payments.outputs import Presence
from payments.payout import BatchState, State
from payments.payout_batches import PayoutBatches
from payments.payout_follow import obstacle
from payments.ports import Clock, Store, Transaction
from payments.tables import blocks, payout_batches

log = logging.getLogger(__name__)

INTERVAL_S = 3
RETRY_S = 60
"""After a step that could not be taken."""
HOUR_S = 3_600
STATES = (
    AddressesInDoubt,
    DescriptorInvalid,
    FeerateUnknown,
    NodeMisconfigured,
    NodeOffline,
    NodeRefused,
    NodeUnavailable,
    PayoutConflict,
    PayoutRefused,
    PayoutsStopped,
    SealBroken,
    *SIGNING_TROUBLE,
)
"""They pass by themselves, or when the operator has done what they say. Anything else is a bug."""
BUILDING = "building"


class PayoutRunner:
    """One of these runs beside the watcher. `signer` None: batches are signed elsewhere.

    `pay_due` makes the payouts that sellers' plans ask for by now.
    """

    def __init__(
        self,
        *,
        config: Config,
        node: Bitcoind,
        store: Store,
        hosted: HostedWallet,
        batches: PayoutBatches,
        signer: PayoutWallet | None,
        pay_due: Callable[[], Awaitable[object]] | None = None,
        clock: Clock,
        monotonic: Monotonic,
    ) -> None:
        self._config = config
        self._node = node
        self._store = store
        self._hosted = hosted
        self._batches = batches
        self._signer = signer
        self._pay_due = pay_due
        self._clock = clock
        self._monotonic = monotonic
        self._wallet_closed = signer is None
        self._pauses: dict[str, float] = {}
        """Batch id or BUILDING -> until when it is left alone."""
        self._told: str | None = None
        self._one_at_a_time = asyncio.Lock()

    async def run(self, *, interval_s: float = INTERVAL_S) -> None:
        """Take turns for ever; ends where there are and were no hosted sales."""
        while True:
            # First of all, so that the watcher has looked at the node.
            await asyncio.sleep(interval_s)
            try:
                if not self._hosted.enabled and not await self._store.read(payable.hosted_descriptors):
                    return
                await self.poll_once()
            except (*STATES, *DATABASE_TROUBLE) as trouble:
                self._tell(str(trouble))

    async def poll_once(self) -> None:
        """One turn. Raises those of STATES that concern all payouts, and the database's trouble."""
        async with self._one_at_a_time:
            await self._poll()

    async def _poll(self) -> None:
        if self._signer is not None and not self._wallet_closed:
            if await self._signer.unload_if_left():
                log.warning("the payout wallet was left open in the node: closed it")
            self._wallet_closed = True
        wallet = await self._hosted.open() if self._hosted.enabled else None
        if (reason := await self._store.read(partial(stopped, now=self._clock()))) is not None:
            self._tell(reason)
            return
        if self._pay_due is not None:
            await self._pay_due()
        for batch in await self._store.read(_built):
            await self._tend(batch)
        if wallet is not None:
            await self._build_if_due(wallet)
        self._told = None

    async def _tend(self, batch: Batch) -> None:
        """Bring a batch as far as it goes now; why it does not go on is kept with it."""
        if batch.mined is not None or self._is_paused(batch.id):
            return
        try:
            trouble = await self._send_on(batch)
        except STATES as state:
            trouble = str(state)
        if trouble is not None:
            self._pause(batch.id)
        await self._store.write(partial(_keep_trouble, batch_id=batch.id, trouble=trouble))

    async def _send_on(self, batch: Batch) -> str | None:
        """Have the newest version signed, or replaced where it waits for long; send it. Why not, or None."""
        if (why := await self._store.read(partial(obstacle, batch=batch))) is not None:
            return why
        if self._signer is not None and batch.newest.raw is None:
            await self._batches.sign(batch.id, self._signer)
        elif self._signer is not None and await self._store.read(partial(self._is_late, batch=batch)):
            feerate = await self._next_feerate(batch)
            if feerate is None:
                return (
                    f"it was not mined in {self._config.hosted.bump_after_blocks} blocks, and may pay no "
                    "more: raise [hosted] `feerate_max_sat_vb`, or wait"
                )
            await self._batches.bump(batch.id, feerate_sat_kvb=feerate)
            await self._batches.sign(batch.id, self._signer)
        elif not _is_to_be_offered(batch):
            return None
        refusal = await self._batches.offer(batch.id)
        return None if refusal is None else f"our node does not take its transaction: {refusal}"

    async def _next_feerate(self, batch: Batch) -> int | None:
        """None: it would be above the highest."""
        hosted = self._config.hosted
        try:
            now_sat_kvb = await feerate_now(hosted, self._node)
        except FeerateUnknown:
            now_sat_kvb = None
        most = hosted.feerate_max_sat_vb * 1_000
        return bumped(batch.newest.feerate_sat_kvb, now_sat_kvb, most_sat_kvb=most)

    async def _is_late(self, tx: Transaction, *, batch: Batch) -> bool:
        """Whether so many blocks came without it that it should pay more."""
        after, signed_at = self._config.hosted.bump_after_blocks, batch.newest.signed_at
        if not after or signed_at is None:
            return False
        since = select(func.count()).where(blocks.c.active, blocks.c.connected_at > signed_at)
        return int(await tx.scalar(since) or 0) >= after

    async def _build_if_due(self, wallet: PayoutDescriptor) -> None:
        every_s = self._config.hosted.batch_every_h * HOUR_S
        if not every_s or self._is_paused(BUILDING):
            return
        if not await self._store.read(partial(self._is_due, every_s=every_s)):
            return
        try:
            feerate = await feerate_now(self._config.hosted, self._node)
            batch_id = await self._batches.build(feerate_sat_kvb=feerate, wallet=wallet)
        except STATES as state:
            self._pause(BUILDING)
            await self._store.write(partial(self._keep_waiting, trouble=str(state)))
            return
        if batch_id is None:
            self._pause(BUILDING)
        else:
            await self._tend(await self._store.read(partial(batch_store.load_batch, batch_id=batch_id)))

    async def _is_due(self, tx: Transaction, *, every_s: int) -> bool:
        """Whether a payout is ready, and the last batch long enough ago, whoever built it."""
        now = self._clock()
        if not await _ready(tx, now):
            return False
        last_at = await tx.scalar(select(func.max(payout_batches.c.created_at)))
        return last_at is None or last_at + every_s <= now

    async def _keep_waiting(self, tx: Transaction, *, trouble: str) -> None:
        await payout_store.change_payouts(tx, await _ready(tx, self._clock()), trouble=trouble)

    def _is_paused(self, what: str) -> bool:
        return self._pauses.get(what, 0.0) > self._monotonic()

    def _pause(self, what: str) -> None:
        now = self._monotonic()
        self._pauses = {key: until for key, until in self._pauses.items() if until > now}
        self._pauses[what] = now + RETRY_S

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            log.warning("no payouts now: %s", reason)
        self._told = reason


def _is_to_be_offered(batch: Batch) -> bool:
    """Whether the newest transaction that is signed is nowhere yet. Its predecessor may be in its way."""
    signed = [version for version in batch.versions if version.raw is not None]
    return bool(signed) and signed[-1].presence is not Presence.MEMPOOL


async def _built(tx: Transaction) -> list[Batch]:
    """Those that are neither deep nor dead."""
    return await batch_store.batches(tx, payout_batches.c.state == BatchState.BUILT)


async def _ready(tx: Transaction, now: int) -> list[str]:
    """Ids of the payouts that wait for a batch and for nothing else."""
    return [one.id for one in await payout_store.payouts_in(tx, State.APPROVED) if one.ready_at <= now]


async def _keep_trouble(tx: Transaction, *, batch_id: str, trouble: str | None) -> None:
    batch = await batch_store.load_batch(tx, batch_id)
    if batch.trouble != trouble and batch.state is BatchState.BUILT:
        await batch_store.change_batch(tx, batch_id, trouble=trouble)
