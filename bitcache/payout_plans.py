"""Payouts that sellers get without asking: at a threshold, or on a day. Made by the payout runner.

Days, weeks (from Monday) and months end at 00:00 UTC. All that is payable is paid out; what cannot be paid
out then waits for the next time. A payout's id follows from account and due time, and it is written together
with the next due time: whatever crashes, one due time makes one payout.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from msgspec import UNSET, UnsetType
from sqlalchemy import literal, select, update

from bitcache.config import Config
from bitcache.db.tables import payout_plans
from bitcache.errors import NodeOffline, NotPayable, ValueRefused
from bitcache.ids import id_text
from bitcache.node_state import node_state
from bitcache.payout_targets import keep_plan
from bitcache.seller_payouts import SellerPayouts
from payments import ledger, payable
from payments.errors import AddressesInDoubt, PayoutRefused, PayoutsStopped
from payments.money import MSAT_PER_SAT
from payments.payout import Payout
from payments.ports import Clock, Store, Transaction
from payments.tables import balances

log = logging.getLogger(__name__)

Every = Literal["never", "day", "week", "month"]


@dataclass(frozen=True, slots=True)
class Plan:
    threshold_sat: int | None = None
    """Pay out everything as soon as so much is payable."""
    every: Every = "never"
    next_at: int | None = None


@dataclass(frozen=True, slots=True)
class Due:
    account_id: str
    threshold_sat: int | None
    """None: the day has come."""
    due_at: int
    """Of a threshold: when it was found."""
    balance_msat: int

    @property
    def payout_id(self) -> str:
        what = "day" if self.threshold_sat is None else "threshold"
        text = f"payout plan\0{self.account_id}\0{what}\0{self.due_at}"
        return id_text(hashlib.sha256(text.encode()).digest()[:16])


def next_due(every: Every, now: int) -> int | None:
    """The next due time after `now`, Unix seconds; None for never. Pure."""
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match every:
        case "never":
            return None
        case "day":
            due = today + timedelta(days=1)
        case "week":
            due = today + timedelta(days=7 - today.weekday())
        case "month":
            due = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    return int(due.timestamp())


async def set_plan(
    tx: Transaction,
    config: Config,
    account_id: str,
    *,
    threshold_sat: int | UnsetType | None = UNSET,
    every: Every | UnsetType = UNSET,
    now: int,
) -> None:
    """Change what is not UNSET. Raises ValueRefused for a threshold below the least payout."""
    values: dict[str, object] = {}
    if threshold_sat is not UNSET:
        least_sat = config.hosted.payout_min_sat
        if threshold_sat is not None and threshold_sat < least_sat:
            raise ValueRefused(
                f"The least payout here is {least_sat:,} sat: give a threshold of at least that, or none.",
                field="payout_threshold_sat",
            )
        values["threshold_sat"] = threshold_sat
    if every is not UNSET and every != (await load_plan(tx, account_id)).every:
        values |= {"every": None if every == "never" else every, "next_at": next_due(every, now)}
    if values:
        await keep_plan(tx, account_id, values)


async def load_plan(tx: Transaction, account_id: str) -> Plan:
    row = (await tx.execute(select(payout_plans).where(payout_plans.c.account_id == account_id))).first()
    return Plan() if row is None else Plan(row.threshold_sat, row.every or "never", row.next_at)


class PayoutPlans:
    """Makes the payouts that are due. Of thresholds it remembers which balances it has looked at."""

    def __init__(self, *, config: Config, store: Store, desk: SellerPayouts, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._desk = desk
        self._clock = clock
        self._looked: dict[str, tuple[int, int]] = {}
        """Account -> (height, balance) at which its threshold was not reached by what is payable."""

    async def pay_due(self) -> list[Payout]:
        """Make every payout that is due now, each in a transaction of its own; those that were made.

        One query while nothing is due. Raises DatabaseUnavailable, NodeUnavailable.
        """
        made = []
        for due in await self._store.read(self._found):
            try:
                payout = await self._desk.with_addresses(partial(self._pay_at, due))
            except (AddressesInDoubt, PayoutsStopped, NodeOffline):
                continue  # it stays due
            if payout is not None:
                made.append(payout)
        return made

    async def _found(self, tx: Transaction) -> list[Due]:
        now = self._clock()
        found = await due(tx, now)
        if not found or await self._desk.why_stopped(tx, now=now) is not None:
            return []
        height = (await node_state(tx, now)).tip_height
        ready, looked = [], {}
        for one in found:
            if one.threshold_sat is not None:
                # What is payable follows from balance and chain: most polls nothing has moved.
                mark = (height, one.balance_msat)
                if self._looked.get(one.account_id) == mark or not await self._reached(tx, one):
                    looked[one.account_id] = mark
                    continue
            ready.append(one)
        self._looked = looked
        return ready

    async def _reached(self, tx: Transaction, due: Due) -> bool:
        least_sat = max(due.threshold_sat or 0, self._config.hosted.payout_min_sat)
        account, depth = ledger.seller(due.account_id), self._config.hosted.depth
        return await payable.payable_sat(tx, account, depth=depth) >= least_sat

    async def _pay_at(self, due: Due, tx: Transaction) -> Payout | None:
        return await plan_due(tx, self._desk, due, now=self._clock())


async def due(tx: Transaction, now: int) -> list[Due]:
    """Plans whose day has come, and those whose balance is at least the threshold, payable or not."""
    account = literal(ledger.seller("")) + payout_plans.c.account_id
    joined = (
        select(payout_plans, balances.c.amount_msat)
        .outerjoin(balances, balances.c.account == account)
        .order_by(payout_plans.c.account_id)
    )
    by_day = joined.where(payout_plans.c.next_at <= now)
    by_threshold = joined.where(
        payout_plans.c.threshold_sat.is_not(None),
        balances.c.amount_msat >= payout_plans.c.threshold_sat * MSAT_PER_SAT,
    )
    days = [
        Due(row.account_id, None, row.next_at, row.amount_msat or 0)
        for row in (await tx.execute(by_day)).all()
    ]
    thresholds = [
        Due(row.account_id, row.threshold_sat, now, row.amount_msat)
        for row in (await tx.execute(by_threshold)).all()
    ]
    return days + thresholds


async def plan_due(tx: Transaction, desk: SellerPayouts, due: Due, *, now: int) -> Payout | None:
    """Make the payout for `due`, and set the next due time; None when there is nothing to pay out then.

    Raises AddressesNotDerived: `SellerPayouts.with_addresses` derives them and runs this again.
    """
    plan = await load_plan(tx, due.account_id)
    if due.threshold_sat is None:
        if plan.next_at != due.due_at:
            return None  # made meanwhile, or the plan was changed
        # After an outage one payout makes up for all that were missed.
        values = {"next_at": next_due(plan.every, now)}
        await tx.execute(
            update(payout_plans).where(payout_plans.c.account_id == due.account_id).values(**values)
        )
    elif plan.threshold_sat is None:
        return None
    try:
        return await desk.request(
            tx,
            due.account_id,
            payout_id=due.payout_id,
            amount_sat=None,
            least_sat=plan.threshold_sat if due.threshold_sat is not None else None,
            now=now,
        )
    except (NotPayable, PayoutRefused) as refusal:
        log.info("no payout for seller %s by their plan: %s", due.account_id, refusal)
        return None
