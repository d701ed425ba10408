"""Ledger, coins and node compared: every satoshi that differs has a line that says why. Pure.

Three sums should be one: what the ledger says the operator's wallet owes (`liabilities`), the coins that our
records say it has, and the unspent outputs that the node finds for it. Between the first two each transaction
is looked at by itself, so that no error hides behind an opposite one; between the last two each output.

    coins = liabilities + sum of the lines of Group.BOOKS         exactly, or there is a line `rest`
    node  = coins at its block + sum of the lines of Group.NODE   alike
"""

from collections.abc import Iterable, Iterator, Mapping

from payments import ledger
from payments.money import Msat
from payments.reconcile_facts import Facts, Flow, NodeOnly, OursOnly, Owner, Use
from payments.reconcile_report import Group, Line, LineKind, Report


def compare(facts: Facts) -> Report:
    """The report; the identities in this module's docstring hold for it."""
    owed_msat = sum(facts.balances.values())
    books = [line for flow in facts.flows for line in _of_flow(flow)]
    books += _rest(Group.BOOKS, int(facts.coins_sat) * 1_000 - owed_msat, books)
    node = [_of_node(one) for one in facts.node_only] + [_of_ours(one) for one in facts.ours_only]
    node += _rest(Group.NODE, (facts.node_sat - facts.coins_then_sat) * 1_000, node)
    lines = [*books, *node, *_notes(facts)]
    by_kind: dict[str, int] = {}
    for account, balance in facts.balances.items():
        kind = account.partition(":")[0]
        by_kind[kind] = by_kind.get(kind, 0) + balance
    return Report(
        height=facts.height,
        block_hash=facts.block_hash,
        node_sat=facts.node_sat,
        coins_then_sat=facts.coins_then_sat,
        coins_sat=facts.coins_sat,
        liabilities_sat=_in_sats(by_kind),
        lines=tuple(sorted(lines, key=lambda line: (line.explained, -abs(line.amount_sat), line.subject))),
    )


def _in_sats(by_kind: Mapping[str, int]) -> dict[str, int]:
    """Rounded so that they add up to their sum, rounded down: those with the largest fractions go up."""
    rounded = {kind: msat // 1_000 for kind, msat in sorted(by_kind.items())}
    up = sum(by_kind.values()) // 1_000 - sum(rounded.values())
    for kind in sorted(rounded, key=lambda kind: -(by_kind[kind] % 1_000))[:up]:
        rounded[kind] += 1
    return rounded


def _rest(group: Group, difference_msat: int, lines: Iterable[Line]) -> list[Line]:
    """What the lines do not make up for. A fraction of a satoshi counts as one."""
    rest_msat = difference_msat - sum(line.amount_sat for line in lines) * 1_000
    if not rest_msat:
        return []
    rest_sat = -(-abs(rest_msat) // 1_000)
    words = (
        f"{abs(rest_msat):,} msat that no transaction accounts for: this is a bug. Pay nothing out, keep a "
        "backup, and report it with this report"
    )
    return [Line(group, LineKind.REST, group, rest_sat if rest_msat > 0 else -rest_sat, words)]


def _of_flow(flow: Flow) -> Iterator[Line]:
    older = [one for one in flow.received if one.older and one.use is Use.INVOICE]
    for one in older:
        yield _book(
            LineKind.OLDER_THAN_INVOICE,
            f"{flow.txid}:{one.vout}",
            one.amount_sat,
            "paid to this address before its invoice was made: it is no buyer's money. Leave it, or ask who "
            "sent it",
        )
    # Who spends nothing of the wallet's gives: that is no change, wherever it goes.
    change_sat = sum(one.amount_sat for one in flow.received if one.use is Use.CHANGE and flow.spent_sat)
    received_sat = sum(one.amount_sat for one in flow.received if one not in older)
    if missing_sat := received_sat - change_sat - flow.booked_in_sat:
        yield _book(
            LineKind.RECEIPT_NOT_BOOKED,
            flow.txid,
            missing_sat,
            "received and not in the ledger, or in it and not received: run `bitcache doctor --recompute`",
        )
    if left_sat := flow.taken_sat - flow.explained_sat:
        yield _book(
            LineKind.SPEND_UNEXPLAINED,
            flow.txid,
            -left_sat,
            f"left the wallet by a transaction that is no payout of ours{flow.pays}. If you sent it: "
            f"`bitcache reconcile --explain {flow.txid} operator`; what came back to a wallet of yours, send "
            "to the address of `bitcache payouts deposit-address`. If a restored server has forgotten this "
            "payout, name who got it in place of `operator`: seller:NAME, or owed:INVOICE for a refund. If "
            "you know nothing of it, somebody else has the wallet's keys: move what is left at once",
        )
    yield from _of_spend(flow, change_sat - flow.spent_sat + flow.paid_sat + flow.taken_sat)


def _of_spend(flow: Flow, gap_sat: int) -> Iterator[Line]:
    """Where the ledger does not say what a transaction took, or brought as change."""
    if not gap_sat:
        return
    if flow.batch_id is not None:
        yield _book(
            LineKind.BATCH_NOT_BOOKED,
            flow.txid,
            gap_sat,
            f"batch {flow.batch_id} is in a block and not in the ledger as such, or the other way round: "
            "restart the server. If that does not help, pay nothing out and report it",
        )
    elif gap_sat > 0 and not flow.taken_sat:
        yield _book(
            LineKind.CHANGE_OVER_SPENT,
            flow.txid,
            gap_sat,
            "paid more to addresses of the wallet's change than it took from the wallet: nobody's. For money "
            "of your own use `bitcache payouts deposit-address`",
        )
    else:
        yield _book(
            LineKind.SPEND_NOT_BOOKED,
            flow.txid,
            gap_sat,
            "spends coins of the wallet, and the ledger says something else of it: restart the server. If "
            "that does not help, pay nothing out and report it",
        )


def _of_node(one: NodeOnly) -> Line:
    at = "" if one.address_index is None else f" at address {one.address_index}"
    match one.owner:
        case Owner.DIRECT:
            kind = LineKind.DIRECT_SALE
            words = f"a direct sale, invoice {one.invoice_id}: its seller is paid into this very wallet"
        case Owner.YOUNG:
            kind = LineKind.COINBASE_YOUNG
            words = "newly mined coins: they count when they are 100 blocks deep"
        case Owner.OLDER:
            kind = LineKind.OLDER_THAN_ADDRESS
            words = f"paid{at} before the server handed that address out: no buyer's money"
        case Owner.MISSED:
            kind = LineKind.COIN_MISSED
            words = (
                f"paid{at}, which the server watches, and not in its records as unspent: this is a bug. Keep "
                "a backup, and report it with this report"
            )
        case Owner.UNKNOWN:
            kind = LineKind.COIN_UNKNOWN
            words = (
                f"in the wallet{at}, and in no record of the server"
                + (f", which hands out address {one.next_index} next" if one.next_index else "")
                + ". If you put it there, send it to the address of `bitcache payouts deposit-address`; "
                "if not, look whether an older copy of this server still runs, and turn it off"
            )
    return Line(Group.NODE, kind, str(one.outpoint), one.amount_sat, words)


def _of_ours(one: OursOnly) -> Line:
    spender = (
        "in a block that the server read without seeing it"
        if one.spent_by is None
        else f"by {one.spent_by} in block {one.height}"
    )
    words = (
        f"a coin of our records that the node has spent, {spender}. Restart the server and look again; if it "
        "stays, pay nothing out, keep a backup, and report it"
    )
    return Line(Group.NODE, LineKind.COIN_GONE, str(one.outpoint), -one.amount_sat, words)


def _notes(facts: Facts) -> Iterator[Line]:
    charged = [b for a, b in facts.balances.items() if b < 0 and a.startswith(ledger.channel(""))]
    if charged:
        yield _note(
            LineKind.CHANNELS_WAITING,
            "channels",
            _outwards_sat(-sum(charged)),
            f"charged in {len(charged):,} channels, which their closes are to bring: until one is deep, no "
            "seller is paid of it",
        )
    for account, balance in sorted(facts.balances.items()):
        if balance < 0 and not account.startswith(ledger.channel("")):
            yield _negative(account, balance)
    for account, (kept, by_history) in sorted(facts.wrong_balances.items()):
        yield _note(
            LineKind.BALANCE_WRONG,
            account,
            _outwards_sat(kept - by_history),
            f"its balance says {kept:,} msat, its history {by_history:,}: this is a bug. Pay nothing out, "
            "keep a backup, and report it",
        )
    if facts.ledger_sum_msat:
        yield _note(
            LineKind.LEDGER_UNEVEN,
            "ledger",
            _outwards_sat(facts.ledger_sum_msat),
            "all balances together are not zero: a bug. Pay nothing out, keep a backup, and report it",
        )
    for spend in facts.waiting_spends:
        yield _note(
            LineKind.SPEND_WAITING,
            spend.txid,
            -spend.amount_sat,
            "unconfirmed, and takes coins out of the wallet without being a payout of ours: wait until it is "
            "in a block before anything is paid out or resumed. A restored server may have forgotten it",
        )
    for batch in facts.waiting_batches:
        state = "in the mempool" if batch.in_mempool else "signed" if batch.signed else "not signed"
        yield _note(
            LineKind.BATCH_WAITING,
            batch.batch_id,
            batch.amount_sat,
            f"a batch of {batch.payouts_count:,} payouts, {state}: in the ledger held, in the wallet still",
        )
    for one in facts.explained_spends:
        borne = ", ".join(f"{account} {sat:,} sat" for account, sat in sorted(one.borne_by.items()))
        yield _note(LineKind.SPEND_EXPLAINED, one.txid, -one.net_out_sat, f"borne by {borne}")


def _negative(account: str, balance: Msat) -> Line:
    sat = _outwards_sat(balance)
    match account.partition(":")[0]:
        case "seller":
            kind = LineKind.SELLER_OWES
            words = "the seller owes the wallet that: it was paid out, and the chain took it back"
        case "operator":
            kind = LineKind.OPERATOR_OWES
            words = "you owe the wallet that: send it to the address of `bitcache payouts deposit-address`"
        case _:
            kind = LineKind.BALANCE_NEGATIVE
            words = "no such account can be below zero: pay nothing out, and report it with this report"
    return _note(kind, account, sat, words)


def _outwards_sat(msat: int) -> int:
    return -(-abs(msat) // 1_000) * (1 if msat > 0 else -1)


def _book(kind: LineKind, subject: str, amount_sat: int, words: str) -> Line:
    return Line(Group.BOOKS, kind, subject, amount_sat, words)


def _note(kind: LineKind, subject: str, amount_sat: int, words: str) -> Line:
    return Line(Group.NOTE, kind, subject, amount_sat, words)
