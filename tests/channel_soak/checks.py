"""Whether channels are as they must be. Nothing of ours is asked: only the database's rows, read with the
standard library, against what payers have on paper and what the outside node says.

Every function returns what is wrong; nothing when all is well. `paying` holds at any moment, such as when the
server was just killed; `ended` when every channel is closed and deep.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.channel_soak.evidence import Evidence, Told, Unit

MSAT = 1_000
UNITS_PER_PAGE = 4_096
PPM = 1_000_000
REASONS = {
    "cooperative": "payer",
    "operator": "operator",
    "margin": "margin",
    "refunded": "refunded",
    "lost": "lost",
}


def paying(file: Path, evidence: Evidence) -> list[str]:
    with closing(_opened(file)) as rows:
        return [line for told in evidence.told for line in _paid(rows, evidence, told)]


def ended(file: Path, evidence: Evidence) -> list[str]:
    with closing(_opened(file)) as rows:
        return [
            *(line for told in evidence.told for line in _paid(rows, evidence, told)),
            *(line for told in evidence.told for line in _ended(rows, told)),
            *_balances(rows, evidence),
        ]


def _opened(file: Path) -> sqlite3.Connection:
    rows = sqlite3.connect(file, timeout=30)
    rows.row_factory = sqlite3.Row
    return rows


def _paid(rows: sqlite3.Connection, evidence: Evidence, told: Told) -> Iterator[str]:
    """Nothing served that was not charged, nothing charged twice, nothing acknowledged that was forgotten,
    nothing taken that was not signed.
    """
    row = rows.execute("SELECT * FROM channels WHERE id = ?", (told.channel_id,)).fetchone()
    if row is None:
        yield f"{told.name}: {told.channel_id} is not in the database"
        return
    paid = _units(rows, told.channel_id)
    if unpaid := told.got - paid:
        yield f"{told.name}: {len(unpaid)} chunks were served and not charged: {sorted(unpaid)[:3]}"
    if unasked := paid - told.asked:
        yield f"{told.name}: {len(unasked)} chunks were charged that nobody asked for: {sorted(unasked)[:3]}"
    by_offer: dict[str, list[int]] = defaultdict(list)
    for file_id, _ in paid & told.asked:
        sale = evidence.sales[file_id]
        by_offer[sale.offer_id].append(sale.price_msat)
    true_msat = sum(map(sum, by_offer.values()))
    if row["spent_msat"] != true_msat:
        yield f"{told.name}: {row['spent_msat']:,} msat are spent, {len(paid)} chunks cost {true_msat:,}"
    sales = {
        sale["subject"]: (sale["units"], sale["spent_msat"])
        for sale in rows.execute("SELECT * FROM channel_sales WHERE channel_id = ?", (told.channel_id,))
    }
    true = {offer_id: (len(prices), sum(prices)) for offer_id, prices in by_offer.items()}
    if sales != true:
        yield f"{told.name}: its sales are {sales}, must be {true}"
    if row["accepted_sat"] < told.accepted_sat:
        yield f"{told.name}: {row['accepted_sat']:,} sat accepted, {told.accepted_sat:,} were acknowledged"
    if row["spent_msat"] < told.spent_msat:
        yield f"{told.name}: {row['spent_msat']:,} msat spent, {told.spent_msat:,} were acknowledged"
    if row["accepted_sat"] > told.signed_sat:
        yield f"{told.name}: {row['accepted_sat']:,} sat accepted, {told.signed_sat:,} were signed"
    if row["spent_msat"] > row["accepted_sat"] * MSAT:
        yield f"{told.name}: {row['spent_msat']:,} msat spent of {row['accepted_sat']:,} sat accepted"


def _ended(rows: sqlite3.Connection, told: Told) -> Iterator[str]:
    """Closed as it was to be; all that was asked for was bought; what was left came back to the payer."""
    row = rows.execute("SELECT * FROM channels WHERE id = ?", (told.channel_id,)).fetchone()
    if row is None:
        return
    if (row["state"], row["close_reason"]) != ("closed", REASONS[told.ending]):
        yield f"{told.name} ends as {row['state']}, {row['close_reason']}: {row['trouble']}"
    if missing := told.asked - _units(rows, told.channel_id):
        yield f"{told.name}: {len(missing)} chunks were never bought: {sorted(missing)[:3]}"
    change_sat = _change_sat(told, row["accepted_sat"])
    if told.change_sat != change_sat:
        yield f"{told.name}: {told.change_sat} sat came back, must be {change_sat}"


def _change_sat(told: Told, accepted_sat: int) -> int:
    match told.ending:
        case "cooperative":
            assert told.agreed_paid_sat is not None
            assert told.agreed_fee_sat is not None
            return told.capacity_sat - told.agreed_paid_sat - told.agreed_fee_sat
        case "refunded":
            assert told.refunded_sat is not None
            return told.refunded_sat
        case "lost":
            return 0
    return told.capacity_sat - told.close_fee_sat - accepted_sat


def _balances(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """What is kept is the history; nothing is left in channels or pending; the wallet has what is owed; each
    seller has what was charged for their chunks less the fee, whether the deposit ever came or not.
    """
    history: dict[str, int] = defaultdict(int)
    for row in rows.execute("SELECT debit, credit, amount_msat FROM transfers"):
        history[row["debit"]] -= row["amount_msat"]
        history[row["credit"]] += row["amount_msat"]
    kept = {row["account"]: row["amount_msat"] for row in rows.execute("SELECT * FROM balances")}
    for account in sorted(history.keys() | kept.keys()):
        if history.get(account, 0) != kept.get(account, 0):
            yield f"{account} is kept as {kept.get(account, 0)} msat, not {history.get(account, 0)}"
    true = dict.fromkeys(history, 0) | _true_balances(rows, evidence)
    for account, amount_msat in sorted(true.items()):
        if history.get(account, 0) != amount_msat:
            yield f"{account} has {history.get(account, 0):,} msat, must be {amount_msat:,}"


def _true_balances(rows: sqlite3.Connection, evidence: Evidence) -> dict[str, int]:
    """Every account that is not at nothing, by what payers and the outside node say."""
    assert evidence.wallet_sat is not None
    true: dict[str, int] = defaultdict(int)
    for told in evidence.told:
        spent_msat = 0
        by_offer: dict[tuple[str, str], int] = defaultdict(int)
        for file_id, _ in told.asked:
            sale = evidence.sales[file_id]
            by_offer[sale.offer_id, sale.seller_id] += sale.price_msat
            spent_msat += sale.price_msat
        for (_, seller_id), amount_msat in by_offer.items():
            true[f"seller:{seller_id}"] += amount_msat - amount_msat * evidence.fee_ppm // PPM
        if told.ending in ("operator", "margin"):
            row = rows.execute(
                "SELECT accepted_sat FROM channels WHERE id = ?", (told.channel_id,)
            ).fetchone()
            rest_msat = (row["accepted_sat"] if row else 0) * MSAT - spent_msat
            # Less is the fraction of a sat that no voucher can be without.
            if rest_msat >= MSAT:
                true[f"owed:channel:{told.channel_id}"] = rest_msat
    wallet_msat = evidence.wallet_sat * MSAT
    true["operator"] = wallet_msat - sum(true.values())
    true["chain"] = -wallet_msat
    return true


def _units(rows: sqlite3.Connection, channel_id: str) -> set[Unit]:
    pages = rows.execute("SELECT item, page, paid FROM channel_pages WHERE channel_id = ?", (channel_id,))
    return {
        (item, page * UNITS_PER_PAGE + 8 * place + bit)
        for item, page, paid in pages
        for place, octet in enumerate(paid)
        for bit in range(8)
        if octet >> bit & 1
    }
