"""A seller's balance, plan and payouts as they are shown, in a fixed number of queries."""

from collections.abc import Iterable

from bitcache import accounts, payout_plans, payout_targets
from bitcache.api.wire import PayoutPlanView, PayoutTargetView
from bitcache.api.wire_money import BalanceView, PayoutState, PayoutView
from bitcache.config import Config
from bitcache.errors import BalanceNegative, PayoutTargetMissing
from bitcache.metered_earnings import in_channels_msat
from bitcache.node_state import node_state
from bitcache.payout_targets import Target
from bitcache.seller_payouts import SellerPayouts
from payments import books, ledger, payable
from payments.money import Msat, sat_rounded_down
from payments.outputs import Presence
from payments.payout import Payout, State
from payments.ports import Transaction
from payments.sendings import SEEN, Sending, current, sendings_of


async def balance_view(
    tx: Transaction, config: Config, desk: SellerPayouts, account_id: str, *, now: int
) -> BalanceView:
    """Raises NotFound."""
    hosted, account = config.hosted, ledger.seller(account_id)
    balance_sat = sat_rounded_down(await books.balance(tx, account))
    maturing = await payable.maturing_msat(tx, account, depth=hosted.depth)
    payable_sat = await payable.payable_sat(tx, account, depth=hosted.depth)
    plan = await plan_view(tx, account_id, now=now)
    return BalanceView(
        balance_sat=balance_sat,
        payable_sat=max(0, payable_sat),
        maturing_sat=sat_rounded_down(Msat(max(0, maturing))),
        in_channels_sat=sat_rounded_down(await in_channels_msat(tx, account_id)),
        depth=hosted.depth,
        reserved_sat=await payable.reserved_sat(tx, account),
        payout_min_sat=hosted.payout_min_sat,
        settlement=(await accounts.load(tx, account_id)).settlement,
        fee_percent=hosted.fee_percent,
        fee_sat=hosted.fee_sat,
        plan=plan,
        blocked=await _blocked(tx, desk, balance_sat, plan, now),
    )


async def plan_view(tx: Transaction, account_id: str, *, now: int) -> PayoutPlanView:
    """Raises NotFound."""
    targets = await payout_targets.targets(tx, account_id, now=now)
    plan = await payout_plans.load_plan(tx, account_id)
    return PayoutPlanView(
        target=_target(targets.current),
        pending_target=_target(targets.pending),
        pending_until=targets.pending_until,
        threshold_sat=plan.threshold_sat,
        every=plan.every,
        next_at=plan.next_at,
    )


async def payout_views(tx: Transaction, shown: list[Payout], *, depth: int, now: int) -> list[PayoutView]:
    """In their order."""
    tip_height = (await node_state(tx, now)).tip_height
    sendings = await sendings_of(tx, [payout.id for payout in shown if payout.batch_id is not None])
    return [
        payout_view(payout, sendings.get(payout.id, []), depth=depth, tip_height=tip_height)
        for payout in shown
    ]


def payout_view(payout: Payout, sendings: Iterable[Sending], *, depth: int, tip_height: int) -> PayoutView:
    """`sendings` are all of it, in any order. Pure."""
    sending = current(payout, sendings)
    mined = sending is not None and sending.presence is Presence.BLOCK and sending.height is not None
    return PayoutView(
        payout_id=payout.id,
        state=_state(payout, sending),
        amount_sat=payout.amount_sat,
        network_fee_sat=sending.fee_sat if sending else None,
        arrives_sat=sending.arrives_sat if sending else None,
        address=payout.address,
        requested_at=payout.requested_at,
        txid=sending.txid if sending else None,
        confirmations=tip_height - (sending.height or 0) + 1 if sending and mined else 0,
        depth=depth,
        trouble=payout.trouble,
        reason=payout.reason,
    )


def _state(payout: Payout, sending: Sending | None) -> PayoutState:
    match payout.state:
        case State.REQUESTED:
            return "waiting"
        case State.APPROVED:
            return "waiting" if payout.trouble else "approved"
        case State.BATCHED:
            return "sent" if sending is not None and sending.presence in SEEN else "in_batch"
        case State.DONE:
            return "done"
        case State.CANCELLED:
            return "cancelled"
        case State.DECLINED:
            return "declined"


async def _blocked(
    tx: Transaction, desk: SellerPayouts, balance_sat: int, plan: PayoutPlanView, now: int
) -> str | None:
    if balance_sat < 0:
        return str(BalanceNegative(balance_sat))
    stopped = await desk.why_stopped(tx, now=now)
    if stopped is not None:
        return str(stopped)
    return str(PayoutTargetMissing()) if plan.target is None else None


def _target(target: Target | None) -> PayoutTargetView | None:
    if target is None:
        return None
    return PayoutTargetView(kind="wallet" if target.address is None else "address", address=target.address)
