"""Whether a soak ended as it must. Nothing of ours is asked: only the database's rows, read with the standard
library, against the blocks as the outside node tells them and what sellers and buyers were told.

Every function returns what is wrong, to the satoshi; nothing when all is well.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.payout_soak.evidence import Evidence

MSAT = 1_000
TIP_SAT_MAX = 999
ENDED = ("cancelled", "declined")


def everything(file: Path, evidence: Evidence) -> list[str]:
    """Of the server's database, or a copy of it; nobody writes to it meanwhile."""
    with closing(sqlite3.connect(file)) as rows:
        rows.row_factory = sqlite3.Row
        return [
            *books(rows),
            *coins(rows, evidence),
            *spends(rows, evidence),
            *payouts(rows, evidence),
            *payees(rows, evidence),
            *invoices(rows, evidence),
            *balances(rows, evidence),
        ]


def counted(file: Path) -> Counter[str]:
    """What there was, for people."""
    with closing(sqlite3.connect(file)) as rows:
        states = rows.execute("SELECT kind || ' payouts ' || state, count(*) FROM payouts GROUP BY 1")
        batches = rows.execute("SELECT 'batches ' || state, count(*) FROM payout_batches GROUP BY 1")
        invoices = rows.execute("SELECT 'invoices ' || status, count(*) FROM invoices GROUP BY 1")
        sizes = rows.execute(
            "SELECT 'transfers', count(*) FROM transfers UNION ALL "
            "SELECT 'versions', count(*) FROM payout_versions UNION ALL "
            "SELECT 'reversals', count(*) FROM transfers WHERE code LIKE '%reversed'"
        )
        return Counter(
            {str(name): int(count) for found in (states, batches, invoices, sizes) for name, count in found}
        )


def books(rows: sqlite3.Connection) -> Iterator[str]:
    """Every account kept is its history; nothing is set aside, unassigned or unexplained at the end."""
    history = _history(rows)
    kept = {row["account"]: row["amount_msat"] for row in rows.execute("SELECT * FROM balances")}
    if total := sum(kept.values()):
        yield f"the balances sum to {total} msat"
    for account in sorted(history.keys() | kept.keys()):
        if history.get(account, 0) != kept.get(account, 0):
            yield f"{account} is kept as {kept.get(account, 0)} msat, not {history.get(account, 0)}"
        if account.startswith(("payout:", "unassigned:", "unexplained")) and history.get(account, 0):
            yield f"{account} ends with {history[account] / MSAT:,.3f} sat"


def coins(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """What the ledger has from the chain lies in the wallet: by its addresses, and by its descriptor."""
    ours = _our_addresses(rows)
    there: dict[tuple[str, int], int] = {}
    for one in evidence.transactions:
        for spent in one.inputs:
            there.pop(spent, None)
        for vout, output in enumerate(one.outputs):
            if output.address in ours:
                there[one.txid, vout] = output.amount_sat
    booked_msat = -_history(rows).get("chain", 0)
    if booked_msat != sum(there.values()) * MSAT:
        yield f"the ledger has {booked_msat / MSAT:,.3f} sat, its addresses have {sum(there.values()):,} sat"
    if booked_msat != evidence.wallet_sat * MSAT:
        yield f"the ledger has {booked_msat / MSAT:,.3f} sat, the wallet has {evidence.wallet_sat:,} sat"


def spends(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """Whatever spends the wallet's coins is one version of one batch, paid as it says, or was explained."""
    ours = _our_addresses(rows)
    values = {
        (one.txid, vout): output.amount_sat
        for one in evidence.transactions
        for vout, output in enumerate(one.outputs)
    }
    of_wallet = {
        (one.txid, vout)
        for one in evidence.transactions
        for vout, output in enumerate(one.outputs)
        if output.address in ours
    }
    versions = {row["txid"]: row for row in rows.execute("SELECT * FROM payout_versions WHERE txid NOT NULL")}
    explained = _sum_of(rows, "explained")
    mined: Counter[str] = Counter()
    for one in evidence.transactions:
        if not of_wallet.intersection(one.inputs):
            continue
        version = versions.get(one.txid)
        if version is None:
            if one.txid not in evidence.foreign:
                yield f"{one.txid} spends coins of the wallet, and is nobody's"
            out_sat = sum(values[spent] for spent in one.inputs if spent in of_wallet)
            if explained.get(one.txid, 0) != out_sat * MSAT:
                yield f"{one.txid} took {out_sat:,} sat, explained are {explained.get(one.txid, 0)} msat"
            continue
        mined[version["batch_id"]] += 1
        fee_sat = sum(values[spent] for spent in one.inputs) - sum(o.amount_sat for o in one.outputs)
        if fee_sat != version["fee_sat"]:
            yield f"{one.txid} pays {fee_sat:,} sat to the network, its version says {version['fee_sat']:,}"
    for batch in rows.execute("SELECT * FROM payout_batches"):
        if mined[batch["id"]] != (batch["state"] == "done"):
            yield f"batch {batch['id']} is {batch['state']}, {mined[batch['id']]} of its versions are mined"


def payouts(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """None is lost; each is paid once by its place in one transaction, or ended and is not paid at all."""
    by_txid = {one.txid: one for one in evidence.transactions}
    kept = {row["id"]: row for row in rows.execute("SELECT * FROM payouts")}
    for asked in evidence.asked:
        row = kept.get(asked.payout_id)
        if row is None:
            yield f"{asked} was taken, and is not in the database"
        elif (row["kind"], row["account"], row["amount_sat"], row["address"]) != asked[1:]:
            yield f"{asked} is another one in the database: {dict(row)}"
    shares = rows.execute(
        "SELECT s.*, v.txid FROM version_shares s JOIN payout_versions v USING (batch_id, n)"
    ).fetchall()
    paid: dict[str, list[sqlite3.Row]] = defaultdict(list)
    for share in shares:
        if share["txid"] in by_txid:
            paid[share["payout_id"]].append(share)
    for payout_id, row in kept.items():
        who = f"{row['kind']} {payout_id} of {row['amount_sat']:,} sat"
        if row["state"] not in ("done", *ENDED):
            yield f"{who} ends as {row['state']}: {row['trouble']}"
        if len(paid[payout_id]) != (row["state"] == "done"):
            yield f"{who} is {row['state']}, and paid {len(paid[payout_id])} times"
        for share in paid[payout_id]:
            if share["arrives_sat"] + share["fee_sat"] != row["amount_sat"]:
                yield f"{who}: {share['arrives_sat']:,} arrive, {share['fee_sat']:,} are the fee"
            outputs = by_txid[share["txid"]].outputs
            output = outputs[share["vout"]] if share["vout"] < len(outputs) else None
            if output != (row["address"], share["arrives_sat"]):
                yield f"{who} should have brought {share['arrives_sat']:,} sat, the block says {output}"


def payees(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """What reached each address that was named for payouts, from anybody, is what they say that arrives."""
    arrived: dict[str, int] = defaultdict(int)
    for one in evidence.transactions:
        for output in one.outputs:
            arrived[output.address] += output.amount_sat
    paid = dict(
        rows.execute(
            "SELECT p.address, sum(s.arrives_sat) FROM payouts p "
            "JOIN version_shares s ON s.payout_id = p.id AND s.batch_id = p.batch_id "
            "JOIN payout_versions v ON v.batch_id = s.batch_id AND v.n = s.n "
            "JOIN paying_transactions t ON t.txid = v.txid "
            "WHERE p.state = 'done' AND t.presence = 'block' GROUP BY p.address"
        )
    )
    named = {address for (address,) in rows.execute("SELECT address FROM payouts")}
    for address in named | {asked.address for asked in evidence.asked}:
        if arrived[address] != paid.get(address, 0):
            yield f"{address} got {arrived[address]:,} sat, its payouts say {paid.get(address, 0):,} sat"


def invoices(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """What each buyer paid is the price, or owed, or was refunded."""
    received = _received(evidence)
    refunds = _payouts_of(rows, "invoice_id")
    history, explained = _history(rows), _explained_by(rows)
    kept = {row["id"]: row for row in rows.execute("SELECT * FROM invoices")}
    for one in evidence.bought:
        row = kept.get(one.invoice_id)
        if row is None or row["address"] != one.address:
            yield f"{one} is not in the database so: {row and dict(row)}"
            continue
        gross_sat = _gross_sat(received[one.address], one.price_sat, refunded=bool(row["refunded"]))
        who = f"{one.name}, price {one.price_sat:,} sat, paid {received[one.address]:,} sat"
        if (row["status"] == "settled") != (gross_sat > 0):
            yield f"{who}: invoice {row['id']} is {row['status']}"
        account = f"owed:{one.invoice_id}"
        left_sat = received[one.address] - gross_sat - refunds[one.invoice_id] - explained[account] // MSAT
        if history.get(account, 0) != left_sat * MSAT:
            yield (
                f"{who}, {refunds[one.invoice_id]:,} sat refunded: {history.get(account, 0) / MSAT:,.3f} sat "
                f"owed, must be {left_sat:,}"
            )
    for invoice_id in kept.keys() - {one.invoice_id for one in evidence.bought}:
        if received[kept[invoice_id]["address"]]:
            yield f"invoice {invoice_id} was paid, and no buyer knows it"


def balances(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """Gross - fees - payouts is each seller's balance; fees, deposits and losses are the operator's."""
    received, history, explained = _received(evidence), _history(rows), _explained_by(rows)
    taken = _payouts_of(rows, "account")
    refunded = dict(rows.execute("SELECT id, refunded FROM invoices"))
    gross: dict[str, int] = defaultdict(int)
    fees: dict[str, int] = defaultdict(int)
    for one in evidence.bought:
        earned = _gross_sat(received[one.address], one.price_sat, refunded=bool(refunded.get(one.invoice_id)))
        if earned:
            gross[one.seller_id] += earned
            fees[one.seller_id] += min(
                one.price_sat, one.price_sat * evidence.fee_ppm // 1_000_000 + evidence.fee_sat
            )
    for seller_id in evidence.sellers:
        account = f"seller:{seller_id}"
        true_sat = gross[seller_id] - fees[seller_id] - taken[account] - explained[account] // MSAT
        if history.get(account, 0) != true_sat * MSAT:
            yield (
                f"{account}: {gross[seller_id]:,} gross, {fees[seller_id]:,} fees, {taken[account]:,} out: "
                f"{history.get(account, 0) / MSAT:,.3f} sat, must be {true_sat:,}"
            )
    deposits = {
        address
        for (address,) in rows.execute("SELECT address FROM unassigned_addresses WHERE purpose = 'deposit'")
    }
    left_msat = sum(
        (1 if code == "network_fee" else -1) * amount_msat
        for code, amount_msat in rows.execute(
            "SELECT code, amount_msat FROM transfers WHERE 'operator' IN (debit, credit) "
            "AND code LIKE 'network_fee%'"
        )
    )
    true_msat = sum(fees.values()) * MSAT + sum(received[address] for address in deposits) * MSAT
    true_msat -= taken["operator"] * MSAT + explained["operator"] + left_msat
    if history.get("operator", 0) != true_msat:
        yield f"operator: {history.get('operator', 0) / MSAT:,.3f} sat, must be {true_msat / MSAT:,.3f}"


def _gross_sat(received_sat: int, price_sat: int, *, refunded: bool) -> int:
    """Price and tip, by what the chain says."""
    if refunded or received_sat < price_sat:
        return 0
    return received_sat if received_sat - price_sat <= TIP_SAT_MAX else price_sat


def _received(evidence: Evidence) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for one in evidence.transactions:
        for output in one.outputs:
            sums[output.address] += output.amount_sat
    return sums


def _history(rows: sqlite3.Connection) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for debit, credit, amount_msat in rows.execute("SELECT debit, credit, amount_msat FROM transfers"):
        sums[debit] -= amount_msat
        sums[credit] += amount_msat
    return dict(sums)


def _our_addresses(rows: sqlite3.Connection) -> set[str]:
    invoiced = rows.execute("SELECT address FROM invoices WHERE address NOT NULL AND mode = 'hosted'")
    own = rows.execute("SELECT address FROM unassigned_addresses WHERE purpose NOT NULL")
    return {address for found in (invoiced, own) for (address,) in found}


def _payouts_of(rows: sqlite3.Connection, column: str) -> dict[str, int]:
    """Sats of the payouts that did not end otherwise."""
    chosen = f"SELECT {column}, amount_sat, state FROM payouts"
    sums: dict[str, int] = defaultdict(int)
    for whose, amount_sat, state in rows.execute(chosen):
        if state not in ENDED:
            sums[whose] += amount_sat
    return sums


def _sum_of(rows: sqlite3.Connection, code: str) -> dict[str, int]:
    """Msat by reference that stands under this code."""
    sums: dict[str, int] = defaultdict(int)
    for reference, found, amount_msat in rows.execute(
        "SELECT reference, code, amount_msat FROM transfers WHERE code IN (?, ?)", (code, f"{code}_reversed")
    ):
        sums[reference] += amount_msat if found == code else -amount_msat
    return sums


def _explained_by(rows: sqlite3.Connection) -> dict[str, int]:
    """Msat by the account that bears them."""
    sums: dict[str, int] = defaultdict(int)
    for debit, credit, code, amount_msat in rows.execute(
        "SELECT debit, credit, code, amount_msat FROM transfers WHERE code LIKE 'explained%'"
    ):
        if code == "explained":
            sums[debit] += amount_msat
        else:
            sums[credit] -= amount_msat
    return sums
