"""What the database knows of the operator's wallet, for a reconciliation. Reads only.

Sums are made by the database: a wallet of a million sales is compared transaction by transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    String,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    union_all,
)

from payments import batch_store, chain_facts, coins, foreign_spends, ledger
from payments.batch_store import Batch
from payments.invoice import Mode
from payments.ledger import Code
from payments.money import Msat, Sat
from payments.outputs import COINBASE_MATURITY, OutPoint, Presence, predates
from payments.payout import BatchState
from payments.portions import portions
from payments.ports import Transaction
from payments.reconcile_facts import ExplainedSpend, Flow, Received, Use
from payments.tables import (
    balances,
    batch_inputs,
    channels,
    descriptors,
    invoices,
    paying_inputs,
    paying_transactions,
    payout_batches,
    payout_versions,
    payouts,
    received_outputs,
    spend_explanations,
    transfers,
    unassigned_addresses,
    unassigned_outputs,
)
from payments.unassigned import DEPOSIT_PREFIX, GIFT_PREFIX

TXID_CHARACTERS = 64
EXPLAINED_SPENDS_LISTED_MAX = 100
WHOLE_ACCOUNTS = (
    "seller:",
    "payout:",
    ledger.channel(""),
    ledger.pending(""),
    ledger.owed_of_channel(""),
    ledger.operator(),
)
"""These are of the operator's wallet, whatever comes after."""

_spenders = paying_transactions.alias("spenders")


@dataclass(frozen=True, slots=True)
class WalletRange:
    """A descriptor that hosted sales are, or were, paid to, and how far it is used or watched."""

    descriptor_id: str
    next_index: int
    watched_end: int


async def wallet_ranges(tx: Transaction) -> list[WalletRange]:
    watched = (
        select(func.max(unassigned_addresses.c.address_index))
        .where(unassigned_addresses.c.descriptor_id == descriptors.c.id)
        .scalar_subquery()
    )
    rows = await tx.execute(
        select(descriptors.c.id, descriptors.c.next_index, watched.label("watched"))
        .where(descriptors.c.hosted)
        .order_by(descriptors.c.id)
    )
    return [
        WalletRange(row.id, row.next_index, 0 if row.watched is None else row.watched + 1)
        for row in rows.all()
    ]


async def liabilities(tx: Transaction) -> dict[str, Msat]:
    """Every account of the wallet that is not at zero, but for `unexplained`."""
    hosted_invoices = select(literal("owed:") + invoices.c.id).where(invoices.c.mode == Mode.HOSTED)
    hosted_wallets = select(literal("unassigned:") + descriptors.c.id).where(descriptors.c.hosted)
    rows = await tx.execute(
        select(balances).where(
            or_(
                *(balances.c.account.startswith(prefix) for prefix in WHOLE_ACCOUNTS),
                balances.c.account.in_(hosted_invoices),
                balances.c.account.in_(hosted_wallets),
            )
        )
    )
    return {row.account: Msat(row.amount_msat) for row in rows.all()}


async def ledger_sum_msat(tx: Transaction) -> Msat:
    """Of all balances: 0, or there is a bug."""
    return Msat(int(await tx.scalar(select(func.sum(balances.c.amount_msat))) or 0))


async def uneven_flows(tx: Transaction, *, tip_height: int) -> list[Flow]:
    """Every transaction of which the ledger does not say exactly what it moved, or that nobody explained."""
    sides = union_all(
        _received(tip_height), _spent(), _booked_in(), _taken(), _explained(), _paid()
    ).subquery()
    sums = {
        name: cast(func.sum(case((sides.c.side == name, sides.c.msat), else_=0)), BigInteger).label(name)
        for name in ("received", "spent", "booked_in", "taken", "explained", "paid")
    }
    moved = sums["received"] - sums["spent"]
    said = sums["booked_in"] - sums["explained"] - sums["paid"]
    grouped = select(sides.c.subject, *sums.values()).group_by(sides.c.subject)
    rows = (await tx.execute(grouped.having(moved != said))).all()
    subjects = [str(row.subject) for row in rows]
    received = await _outputs_of(tx, subjects, tip_height)
    batches = await _batches_of(tx, subjects)
    return [
        Flow(
            txid=row.subject,
            received=tuple(received.get(row.subject, ())),
            spent_sat=Sat(row.spent // 1_000),
            booked_in_sat=Sat(row.booked_in // 1_000),
            paid_sat=Sat(row.paid // 1_000),
            taken_sat=Sat(row.taken // 1_000),
            explained_sat=Sat(row.explained // 1_000),
            batch_id=batches.get(row.subject) or (row.subject if row.paid else None),
        )
        for row in rows
    ]


async def explained_spends(tx: Transaction) -> list[ExplainedSpend]:
    """The newest of those that the operator has explained."""
    newest = (
        select(spend_explanations.c.txid)
        .join(paying_transactions, paying_transactions.c.txid == spend_explanations.c.txid)
        .group_by(spend_explanations.c.txid)
        .order_by(func.max(paying_transactions.c.height).desc(), spend_explanations.c.txid)
        .limit(EXPLAINED_SPENDS_LISTED_MAX)
    )
    found = []
    for txid in (await tx.scalars(newest)).all():
        one = await foreign_spends.explained(tx, txid)
        if one is not None and one.shares:
            found.append(ExplainedSpend(txid, one.net_out_sat, one.shares))
    return found


async def waiting_batches(tx: Transaction) -> list[Batch]:
    """Those that no block has."""
    built = await batch_store.batches(tx, payout_batches.c.state == BatchState.BUILT)
    return [batch for batch in built if batch.mined is None]


async def batches_with(tx: Transaction, outpoints: Sequence[OutPoint]) -> list[Batch]:
    """Batches of whatever state that spend any of these coins."""
    wanted, ids = set(outpoints), set[str]()
    for some in portions(outpoint.txid for outpoint in wanted):
        rows = await tx.execute(select(batch_inputs).where(batch_inputs.c.txid.in_(some)))
        ids |= {row.batch_id for row in rows.all() if OutPoint(row.txid, row.vout) in wanted}
    return await batch_store.batches(tx, payout_batches.c.id.in_(ids)) if ids else []


async def amounts_of(tx: Transaction, batches: Iterable[Batch]) -> dict[str, list[int]]:
    """Batch id -> the amount of each of its payouts, in sats."""
    ids = [batch.id for batch in batches]
    rows = await tx.execute(
        select(payouts.c.batch_id, payouts.c.amount_sat).where(payouts.c.batch_id.in_(ids))
    )
    found: dict[str, list[int]] = {batch_id: [] for batch_id in ids}
    for row in rows.all():
        found[row.batch_id].append(int(row.amount_sat))
    return found


def _received(tip_height: int) -> Select[Any]:
    ever = coins.ever().subquery()
    mature = or_(
        ~paying_transactions.c.coinbase, paying_transactions.c.height <= tip_height - COINBASE_MATURITY + 1
    )
    return (
        _side("received", ever.c.txid, ever.c.amount_sat * 1_000)
        .join(paying_transactions, paying_transactions.c.txid == ever.c.txid)
        .where(paying_transactions.c.presence == Presence.BLOCK, mature)
    )


def _spent() -> Select[Any]:
    ever = coins.ever().subquery()
    return (
        _side("spent", paying_inputs.c.txid, ever.c.amount_sat * 1_000)
        .join(
            ever,
            and_(paying_inputs.c.previous_txid == ever.c.txid, paying_inputs.c.previous_vout == ever.c.vout),
        )
        .join(_spenders, _spenders.c.txid == paying_inputs.c.txid)
        .where(_spenders.c.presence == Presence.BLOCK)
    )


def _booked_in() -> Select[Any]:
    hosted_invoices = select(invoices.c.id).where(invoices.c.mode == Mode.HOSTED)
    hosted = descriptors.c.hosted
    wallets = union_all(
        select(literal("unassigned:") + descriptors.c.id).where(hosted),
        select(literal(DEPOSIT_PREFIX) + descriptors.c.id).where(hosted),
        select(literal(GIFT_PREFIX) + descriptors.c.id).where(hosted),
    )
    of_wallet = or_(
        transfers.c.reference.in_(hosted_invoices),
        transfers.c.reference.in_(wallets),
        transfers.c.reference.in_(select(channels.c.id)),
    )
    return _booked("booked_in", Code.RECEIVED, Code.RECEIVED_REVERSED).where(of_wallet)


def _taken() -> Select[Any]:
    return _booked("taken", Code.SPENT, Code.SPENT_REVERSED)


def _explained() -> Select[Any]:
    return _booked("explained", Code.EXPLAINED, Code.EXPLAINED_REVERSED)


def _paid() -> Select[Any]:
    """By the version of the batch that is mined, or else by the batch."""
    mined = (
        select(payout_versions.c.batch_id, payout_versions.c.txid)
        .join(paying_transactions, paying_transactions.c.txid == payout_versions.c.txid)
        .where(paying_transactions.c.presence == Presence.BLOCK)
        .subquery()
    )
    batch_id = func.coalesce(payouts.c.batch_id, transfers.c.reference)
    codes = (Code.PAID_OUT, Code.NETWORK_FEE)
    signed = case((transfers.c.code.in_(codes), transfers.c.amount_msat), else_=-transfers.c.amount_msat)
    reversed_codes = (Code.PAID_OUT_REVERSED, Code.NETWORK_FEE_REVERSED)
    return (
        _side("paid", func.coalesce(mined.c.txid, batch_id), signed)
        .select_from(transfers)
        .outerjoin(payouts, payouts.c.id == transfers.c.reference)
        .outerjoin(mined, mined.c.batch_id == batch_id)
        .where(transfers.c.code.in_((*codes, *reversed_codes)))
    )


def _booked(side: str, code: Code, reversal: Code) -> Select[Any]:
    """By the transaction that is named first in the transfer's id."""
    signed = case((transfers.c.code == code, transfers.c.amount_msat), else_=-transfers.c.amount_msat)
    txid = func.substr(transfers.c.id, 1, TXID_CHARACTERS)
    return _side(side, txid, signed).where(transfers.c.code.in_((code, reversal)))


def _side(side: str, subject: ColumnElement[Any], msat: ColumnElement[Any]) -> Select[Any]:
    """Rows of (side, subject, msat)."""
    return select(cast(literal(side), String).label("side"), subject.label("subject"), msat.label("msat"))


async def _outputs_of(tx: Transaction, txids: Sequence[str], tip_height: int) -> dict[str, list[Received]]:
    """What each of these pays the wallet; nothing, unless it is in a block and can be spent."""
    found: dict[str, list[Received]] = {}
    counted = and_(
        paying_transactions.c.presence == Presence.BLOCK,
        or_(
            ~paying_transactions.c.coinbase,
            paying_transactions.c.height <= tip_height - COINBASE_MATURITY + 1,
        ),
    )
    sold = (
        select(received_outputs, paying_transactions, invoices.c.created_at)
        .join(paying_transactions, paying_transactions.c.txid == received_outputs.c.txid)
        .join(invoices, invoices.c.id == received_outputs.c.invoice_id)
        .where(invoices.c.mode == Mode.HOSTED, counted)
    )
    own = (
        select(unassigned_outputs, unassigned_addresses.c.purpose)
        .join(paying_transactions, paying_transactions.c.txid == unassigned_outputs.c.txid)
        .join(
            unassigned_addresses, unassigned_addresses.c.script_pubkey == unassigned_outputs.c.script_pubkey
        )
        .join(descriptors, descriptors.c.id == unassigned_addresses.c.descriptor_id)
        .where(descriptors.c.hosted, counted)
    )
    for some in portions(txids):
        for row in (await tx.execute(sold.where(received_outputs.c.txid.in_(some)))).all():
            older = predates(chain_facts.received_output(row), row.created_at)
            one = Received(row.vout, Sat(row.amount_sat), Use.INVOICE, older)
            found.setdefault(row.txid, []).append(one)
        spending = select(paying_transactions.c.txid).where(paying_transactions.c.txid.in_(some))
        closes = set((await tx.scalars(coins.deposits_among_inputs(spending))).all())
        for row in (await tx.execute(own.where(unassigned_outputs.c.txid.in_(some)))).all():
            use = Use.UNASSIGNED if row.purpose is None else Use(row.purpose)
            if use is Use.CHANNEL and row.txid not in closes:
                use = Use.CHANGE
            found.setdefault(row.txid, []).append(Received(row.vout, Sat(row.amount_sat), use))
    return found


async def _batches_of(tx: Transaction, txids: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for some in portions(txids):
        rows = await tx.execute(select(payout_versions).where(payout_versions.c.txid.in_(some)))
        found |= {row.txid: row.batch_id for row in rows.all()}
    return found
