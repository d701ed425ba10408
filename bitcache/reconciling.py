"""Once a day, and whenever the operator asks: do ledger, coins and node agree to the satoshi?

The table `reconciliations` remembers when, so that a restart neither skips a day nor has the node scan for
minutes again: a look is written down before it begins, and one that was cut off is repeated an hour later.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
from sqlalchemy import delete, func, insert, or_, select, update

from payments import payable
from payments.errors import NodeMisconfigured, NodeRefused, NodeUnavailable, ReconciliationFailed
from payments.ports import Clock, Store, Transaction
from payments.reconcile_report import Line, Report
from payments.reconciler import Reconciler
from payments.tables import reconciliations, restores

log = logging.getLogger(__name__)

INTERVAL_S = 60
EVERY_S = 86_400
RETRY_S = 3_600
KEPT_MAX = 30
LINES_KEPT_MAX = 1_000
"""Of one report; its sums are of all."""
UNFINISHED = ""
"""In place of a report."""
TROUBLE = (NodeUnavailable, NodeMisconfigured, NodeRefused, ReconciliationFailed)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What a look has found."""

    at: int
    height: int
    difference_sat: int
    explained: bool


class LineView(msgspec.Struct, frozen=True):
    group: str
    kind: str
    subject: str
    amount_sat: int
    explained: bool
    words: str


class ReportView(msgspec.Struct, frozen=True):
    """A report as it is printed and kept."""

    at: int
    height: int
    block_hash: str
    node_sat: int
    coins_sat: int
    liabilities_sat: dict[str, int]
    difference_sat: int
    explained: bool
    lines: list[LineView]
    lines_count: int


class Reconciling:
    """Part of the watcher's role: run one of these for each database."""

    def __init__(self, *, reconciler: Reconciler, store: Store, clock: Clock) -> None:
        self._reconciler = reconciler
        self._store = store
        self._clock = clock

    async def run(self) -> None:
        """Look once a day, for ever. What cannot be done now is told and tried again."""
        while True:
            # First of all, so that the watcher has caught up with the node.
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.poll_once()
            except TROUBLE as trouble:
                log.warning("ledger and node could not be compared, again in an hour: %s", trouble)
            except Exception:
                log.exception("comparing ledger and node failed; it is tried again in an hour")

    async def poll_once(self) -> ReportView | None:
        """Look, if it is time; None: it is not. Raises those of TROUBLE."""
        if not await self._store.read(partial(_is_due, now=self._clock())):
            return None
        return await self.look()

    async def look(self, *, tell: Callable[[str], None] = lambda words: None) -> ReportView | None:
        """Look now, and keep what was found; None where there are and were no hosted sales.

        Raises those of TROUBLE.
        """
        if not await self._store.read(payable.hosted_descriptors):
            return None
        at = await self._store.write(partial(_begin, now=self._clock()))
        report = await self._reconciler.look(tell=tell)
        if report is None:
            return None
        shown = _view(report, at)
        await self._store.write(partial(_keep, at=at, shown=shown))
        if not shown.explained:
            log.error(
                "ledger and wallet differ by %d sat that nobody has explained: `bitcache reconcile` says why",
                shown.difference_sat,
            )
        return shown


async def latest(tx: Transaction) -> Reconciliation | None:
    """What the last look that came to its end has found."""
    finished = select(reconciliations).where(reconciliations.c.report != UNFINISHED)
    row = (await tx.execute(finished.order_by(reconciliations.c.at.desc()).limit(1))).one_or_none()
    if row is None:
        return None
    return Reconciliation(row.at, row.height, row.difference_sat, row.explained)


async def doubt_since_restore(tx: Transaction) -> str | None:
    """Why payouts should not go on after a restore, in words; None: ledger and wallet agreed since."""
    restored_at = await tx.scalar(select(restores.c.restored_at))
    found = await latest(tx)
    if restored_at is None:
        return None
    if found is None or found.at < restored_at:
        return "`bitcache reconcile` was not run since the restore: run it first."
    if not found.explained:
        return (
            f"`bitcache reconcile` has found {found.difference_sat:,} sat that nobody has explained, and "
            "payouts may be made twice: do first what it says."
        )
    return None


async def _is_due(tx: Transaction, *, now: int) -> bool:
    if not await payable.hosted_descriptors(tx):
        return False
    newest = select(reconciliations).order_by(reconciliations.c.at.desc()).limit(1)
    row = (await tx.execute(newest)).one_or_none()
    if row is None:
        return True
    waited_s: int = now - row.at
    # Below zero where our clock was set back: a look of the future must not put off all others.
    return waited_s < 0 or waited_s >= (RETRY_S if row.report == UNFINISHED else EVERY_S)


async def _begin(tx: Transaction, *, now: int) -> int:
    """Write down that a look begins; its time, which is its name."""
    # Those of the future would stay the newest.
    await tx.execute(
        delete(reconciliations).where(or_(reconciliations.c.at > now, reconciliations.c.report == UNFINISHED))
    )
    newest = await tx.scalar(select(func.max(reconciliations.c.at)))
    at = now if newest is None else max(now, int(newest) + 1)
    await tx.execute(
        insert(reconciliations).values(at=at, height=0, difference_sat=0, explained=False, report=UNFINISHED)
    )
    return at


async def _keep(tx: Transaction, *, at: int, shown: ReportView) -> None:
    values = {
        "height": shown.height,
        "difference_sat": shown.difference_sat,
        "explained": shown.explained,
        "report": msgspec.json.encode(shown).decode(),
    }
    done = await tx.execute(update(reconciliations).where(reconciliations.c.at == at).values(**values))
    if not done.rowcount:
        # Another look, by hand, began meanwhile and took this one for cut off.
        await tx.execute(insert(reconciliations).values(at=at, **values))
    kept = select(reconciliations.c.at).order_by(reconciliations.c.at.desc()).limit(KEPT_MAX)
    oldest = (await tx.scalars(kept)).all()[-1]
    await tx.execute(delete(reconciliations).where(reconciliations.c.at < oldest))


def _view(report: Report, at: int) -> ReportView:
    return ReportView(
        at=at,
        height=report.height,
        block_hash=report.block_hash,
        node_sat=report.node_sat,
        coins_sat=report.coins_sat,
        liabilities_sat=report.liabilities_sat,
        difference_sat=report.difference_sat,
        explained=report.explained,
        lines=[_line(line) for line in report.lines[:LINES_KEPT_MAX]],
        lines_count=len(report.lines),
    )


def _line(line: Line) -> LineView:
    return LineView(
        group=line.group.value,
        kind=line.kind.value,
        subject=line.subject,
        amount_sat=line.amount_sat,
        explained=line.explained,
        words=line.words,
    )
