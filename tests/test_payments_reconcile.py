"""Comparing ledger, coins and node, without any of them: every difference has a line, to the satoshi."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments.money import Msat, Sat
from payments.outputs import OutPoint
from payments.reconcile import compare
from payments.reconcile_facts import (
    ExplainedSpend,
    Facts,
    Flow,
    NodeOnly,
    OursOnly,
    Owner,
    Received,
    Use,
    WaitingBatch,
    WaitingSpend,
)
from payments.reconcile_report import EXPLAINED, Group, LineKind, Report

TXID = "ab" * 32
HEALTHY = Facts(
    height=200,
    block_hash="cd" * 32,
    node_sat=Sat(100_000),
    coins_then_sat=Sat(100_000),
    coins_sat=Sat(100_000),
    balances={"seller:a": Msat(90_000_000), "operator": Msat(10_000_000)},
    ledger_sum_msat=Msat(0),
    wrong_balances={},
    flows=(),
    node_only=(),
    ours_only=(),
)

sats = st.integers(1, 1_000_000).map(Sat)
maybe_sats = st.just(Sat(0)) | sats
received = st.lists(
    st.builds(
        Received, vout=st.integers(0, 3), amount_sat=sats, use=st.sampled_from(Use), older=st.booleans()
    ),
    max_size=3,
    unique_by=lambda one: one.vout,
)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    taken = draw(maybe_sats)
    return Flow(
        txid=draw(st.integers(0, 2**256 - 1)).to_bytes(32, "big").hex(),
        received=tuple(draw(received)),
        spent_sat=draw(maybe_sats),
        booked_in_sat=draw(maybe_sats),
        paid_sat=draw(maybe_sats),
        taken_sat=taken,
        explained_sat=Sat(draw(st.integers(0, taken))),
        batch_id=draw(st.none() | st.just("batch")),
    )


outpoints = st.builds(OutPoint, txid=st.sampled_from([TXID, "ef" * 32]), vout=st.integers(0, 9))
node_only = st.builds(
    NodeOnly, outpoint=outpoints, amount_sat=sats, height=st.just(1), owner=st.sampled_from(Owner)
)
ours_only = st.builds(OursOnly, outpoint=outpoints, amount_sat=sats)


def sum_sat(report: Report, group: Group) -> int:
    return sum(line.amount_sat for line in report.lines if line.group is group)


def moved_sat(flow: Flow) -> int:
    return sum(one.amount_sat for one in flow.received) - flow.spent_sat


def said_sat(flow: Flow) -> int:
    return flow.booked_in_sat - flow.paid_sat - flow.explained_sat


@given(
    st.lists(flows(), max_size=4),
    st.lists(node_only, max_size=3),
    st.lists(ours_only, max_size=3),
    st.integers(0, 10**9),
)
def test_lines_make_up_for_every_difference(
    moved: list[Flow], strange: list[NodeOnly], gone: list[OursOnly], owed_sat: int
) -> None:
    coins_sat = owed_sat + sum(moved_sat(flow) - said_sat(flow) for flow in moved)
    node_sat = 5_000 + sum(one.amount_sat for one in strange) - sum(one.amount_sat for one in gone)
    facts = replace(
        HEALTHY,
        coins_sat=Sat(coins_sat),
        balances={"seller:a": Msat(owed_sat * 1_000)},
        coins_then_sat=Sat(5_000),
        node_sat=Sat(node_sat),
        flows=tuple(moved),
        node_only=tuple(strange),
        ours_only=tuple(gone),
    )
    report = compare(facts)
    assert report.coins_sat == owed_sat + sum_sat(report, Group.BOOKS)
    assert report.node_sat == report.coins_then_sat + sum_sat(report, Group.NODE)
    assert not [line for line in report.lines if line.kind is LineKind.REST], (
        "each transaction accounts for all"
    )
    assert report.explained == (report.difference_sat == 0)
    assert all(line.words and line.amount_sat for line in report.lines)


@given(st.integers(-(10**9), 10**9).filter(bool))
def test_a_fraction_of_a_satoshi_that_nothing_accounts_for_is_told(lost_msat: int) -> None:
    wrong = replace(
        HEALTHY, balances={**HEALTHY.balances, "owed:i": Msat(10**9), "seller:b": Msat(lost_msat - 10**9)}
    )
    report = compare(wrong)
    (rest,) = [line for line in report.lines if line.kind is LineKind.REST]
    assert abs(rest.amount_sat) == -(-abs(lost_msat) // 1_000)
    assert (rest.amount_sat < 0) == (lost_msat > 0), "owed more than is there: coins are missing"
    assert not report.explained


def test_a_healthy_system_has_no_line() -> None:
    report = compare(HEALTHY)
    assert report.lines == ()
    assert report.explained
    assert report.difference_sat == 0
    assert report.liabilities_sat == {"operator": 10_000, "seller": 90_000}


def spend(**fields: Any) -> Flow:
    values: dict[str, Any] = {name: Sat(n) if isinstance(n, int) else n for name, n in fields.items()}
    return Flow(txid=TXID, **values)


def out(amount_sat: int, use: Use, *, older: bool = False) -> Received:
    return Received(0, Sat(amount_sat), use, older)


@pytest.mark.parametrize(
    ("flow", "kind", "amount_sat"),
    [
        (Flow(txid=TXID, received=(out(7, Use.INVOICE, older=True),)), LineKind.OLDER_THAN_INVOICE, 7),
        (Flow(txid=TXID, received=(out(7, Use.INVOICE),)), LineKind.RECEIPT_NOT_BOOKED, 7),
        (Flow(txid=TXID, received=(out(7, Use.CHANGE),)), LineKind.RECEIPT_NOT_BOOKED, 7),
        (spend(booked_in_sat=7), LineKind.RECEIPT_NOT_BOOKED, -7),
        (spend(spent_sat=9, taken_sat=9), LineKind.SPEND_UNEXPLAINED, -9),
        (spend(spent_sat=9, taken_sat=9, explained_sat=5), LineKind.SPEND_UNEXPLAINED, -4),
        (spend(spent_sat=9, received=(out(2, Use.CHANGE),), taken_sat=7), LineKind.SPEND_UNEXPLAINED, -7),
        (spend(spent_sat=9, received=(out(12, Use.CHANGE),)), LineKind.CHANGE_OVER_SPENT, 3),
        (spend(spent_sat=9), LineKind.SPEND_NOT_BOOKED, -9),
        (spend(taken_sat=9, explained_sat=9), LineKind.SPEND_NOT_BOOKED, 9),
        (spend(spent_sat=9, batch_id="b"), LineKind.BATCH_NOT_BOOKED, -9),
        (spend(paid_sat=9, batch_id="b"), LineKind.BATCH_NOT_BOOKED, 9),
    ],
)
def test_what_a_transaction_did_beside_the_ledger(flow: Flow, kind: LineKind, amount_sat: int) -> None:
    coins_sat = Sat(HEALTHY.coins_sat + moved_sat(flow) - said_sat(flow))
    report = compare(replace(HEALTHY, coins_sat=coins_sat, flows=(flow,)))
    assert [(line.kind, line.amount_sat) for line in report.lines] == [(kind, amount_sat)]
    assert report.lines[0].subject.startswith(TXID)
    assert report.difference_sat == (0 if kind in EXPLAINED else abs(amount_sat))


def test_opposite_errors_do_not_cancel() -> None:
    first = spend(booked_in_sat=500)
    second = Flow(txid="ef" * 32, received=(out(500, Use.INVOICE),))
    report = compare(replace(HEALTHY, flows=(first, second)))
    assert report.difference_sat == 1_000


@pytest.mark.parametrize(
    ("account", "kind"),
    [
        ("seller:b", LineKind.SELLER_OWES),
        ("operator", LineKind.OPERATOR_OWES),
        ("owed:i", LineKind.BALANCE_NEGATIVE),
        ("payout:p", LineKind.BALANCE_NEGATIVE),
        ("unassigned:d", LineKind.BALANCE_NEGATIVE),
    ],
)
def test_balances_below_zero(account: str, kind: LineKind) -> None:
    report = compare(replace(HEALTHY, balances={"seller:a": Msat(100_001_500), account: Msat(-1_500)}))
    (line,) = report.lines
    assert (line.kind, line.subject, line.amount_sat, line.group) == (kind, account, -2, Group.NOTE)


def test_notes_change_no_sum_and_those_that_are_wrong_count() -> None:
    report = compare(
        replace(
            HEALTHY,
            wrong_balances={"seller:a": (Msat(90_000_000), Msat(89_999_999))},
            ledger_sum_msat=Msat(1),
            waiting_spends=(WaitingSpend(TXID, Sat(40)),),
            waiting_batches=(WaitingBatch("batch", Sat(300), 2, in_mempool=False, signed=True),),
            explained_spends=(ExplainedSpend(TXID, Sat(2_000), {"operator": Sat(2_000)}),),
        )
    )
    assert {line.kind: line.amount_sat for line in report.lines} == {
        LineKind.BALANCE_WRONG: 1,
        LineKind.LEDGER_UNEVEN: 1,
        LineKind.SPEND_WAITING: -40,
        LineKind.BATCH_WAITING: 300,
        LineKind.SPEND_EXPLAINED: -2_000,
    }
    assert report.difference_sat == 42
    assert [line.explained for line in report.lines] == [False, False, False, True, True], (
        "those to see to first"
    )


def test_a_coin_that_nobody_handed_out_is_named_with_its_address() -> None:
    strange = NodeOnly(OutPoint(TXID, 1), Sat(9), 150, Owner.UNKNOWN, address_index=57, next_index=40)
    report = compare(replace(HEALTHY, node_sat=Sat(100_009), node_only=(strange,)))
    (line,) = report.lines
    assert line.subject == f"{TXID}:1"
    assert "at address 57" in line.words
    assert "hands out address 40 next" in line.words
    assert not line.explained
