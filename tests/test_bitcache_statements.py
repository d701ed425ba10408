"""A statement is the ledger, summed: whatever happened, it adds up, line by line and part by part.

The statement adds up by codes, in the database; the tests by the accounts that money came from and went to.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, delete, select, update

from bitcache import statement_csv
from bitcache.db.engine import Database
from bitcache.earnings import Period, time_zone
from bitcache.errors import PeriodInvalid
from bitcache.ids import new_id
from bitcache.statement_lines import Line, page, parse_line_id, portions
from bitcache.statements import By, Statement, Whole, check_lines, statement, whole_sats
from payments import ledger
from payments.books import transfer_of
from payments.errors import LedgerImbalance
from payments.ledger import Transfer
from payments.payout import Kind
from payments.ports import Transaction
from payments.tables import balances, transfers
from tests.statement_histories import START, History, Step, steps
from tests.till import Till, open_nodeless_till

ZONES = ("UTC", "Europe/Paris", "Pacific/Kiritimati", "America/St_Johns")


async def all_transfers(tx: Transaction) -> list[Transfer]:
    rows = await tx.execute(select(transfers).order_by(transfers.c.created_at, transfers.c.id))
    return [transfer_of(row) for row in rows.all()]


class Plain:
    """The same, reckoned from the transfers by who paid whom."""

    def __init__(self, history: History, listed: list[Transfer]) -> None:
        outs = {ledger.payout(out.payout.id): out.payout.kind for out in history.outs}
        self.held = {account for account, kind in outs.items() if kind is Kind.SELLER}
        self.refunds = {account for account, kind in outs.items() if kind is Kind.REFUND}
        self.account, self.direct = ledger.seller(history.seller_id), ledger.direct(history.seller_id)
        self.listed = listed

    def standing(self, accounts: set[str], until: int) -> int:
        known = [one for one in self.listed if one.created_at < until]
        return sum(one.amount_msat for one in known if one.credit in accounts) - sum(
            one.amount_msat for one in known if one.debit in accounts
        )

    def balance(self, until: int) -> int:
        return self.standing({self.account} | self.held, until)

    def flow(self, mine: set[str], other: str, some: list[Transfer]) -> int:
        """From `mine` to accounts that begin with `other`."""
        return sum(
            one.amount_msat for one in some if one.debit in mine and one.credit.startswith(other)
        ) - sum(one.amount_msat for one in some if one.credit in mine and one.debit.startswith(other))

    def sums(self, some: list[Transfer]) -> dict[str, int]:
        return {
            "gross": -self.flow({self.account}, "owed:", some),
            "metered": -self.flow({self.account}, "pending:", some),
            "fee": self.flow({self.account}, "operator", some),
            "corrections": self.flow({self.account}, "unexplained", some),
            "left the balance": self.flow(self.held, "chain", some),
            "refunded": self.flow(self.refunds, "chain", some),
            "direct": -self.flow({self.direct}, "owed:", some),
        }


def sums_of(moved: Any) -> dict[str, int]:
    return {
        "gross": moved.gross_msat,
        "metered": moved.metered_msat,
        "fee": moved.fee_msat,
        "corrections": moved.corrections_msat,
        "left the balance": moved.paid_out_msat + moved.network_fee_msat,
        "refunded": moved.refunded_msat + moved.refund_network_fee_msat,
        "direct": moved.direct_msat,
    }


async def paged(tx: Transaction, stated: Statement, limit: int) -> list[Line]:
    found: list[Line] = []
    after = None
    while True:
        lines, more = await page(tx, stated, after=after, limit=limit)
        assert len(lines) == limit if more else len(lines) <= limit
        found += lines
        if not more:
            return found
        after = parse_line_id(lines[-1].place.line_id)
        assert after == lines[-1].place


moments = st.sampled_from((-1, 0, 1, 2)), st.integers(0, 40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(steps, max_size=25),
    st.lists(st.tuples(*moments), min_size=2, max_size=2),
    st.sampled_from(ZONES),
    st.sampled_from(By),
    st.integers(1, 4),
)
async def test_every_statement_is_what_the_ledger_says(
    database: Database,
    played: list[Step],
    edges: list[tuple[int, int]],
    zone: str,
    by: By,
    limit: int,
) -> None:
    history = History()

    async def write(tx: Transaction) -> list[Transfer]:
        await history.play(tx, played)
        return await all_transfers(tx)

    plain = Plain(history, await database.write(write))
    times = sorted({one.created_at for one in plain.listed} | {START})
    since, until = sorted(times[which % len(times)] + shift for shift, which in edges)
    period = Period(since, max(until, since + 1), time_zone(zone))

    async def read(tx: Transaction) -> tuple[Statement, list[Line]]:
        stated = await statement(tx, history.seller_id, period, by=by)
        return stated, await paged(tx, stated, limit)

    stated, lines = await database.read(read)
    inside = [one for one in plain.listed if period.since <= one.created_at < period.until]
    assert stated.opening.balance_msat == plain.balance(period.since)
    assert stated.closing.balance_msat == plain.balance(period.until)
    assert stated.closing.reserved_msat == plain.standing(plain.held, period.until)
    assert stated.closing.available_msat == plain.standing({plain.account}, period.until)
    assert stated.closing.direct_msat == plain.standing({plain.direct}, period.until)
    assert sums_of(stated.moved) == plain.sums(inside)
    by_part: dict[str, list[Transfer]] = {}
    for one in inside:
        by_part.setdefault(period.day(one.created_at)[: 10 if by is By.DAY else 7], []).append(one)
    nothing = plain.sums([])
    told = {part.name: sums_of(part.moved) for part in stated.parts if sums_of(part.moved) != nothing}
    assert told == {name: sums for name, some in by_part.items() if (sums := plain.sums(some)) != nothing}

    check_lines(stated.opening, [line.moved for line in lines], stated.closing)
    assert [line.place for line in lines] == sorted({line.place for line in lines})
    balance = int(stated.opening.balance_msat)
    after: dict[int, int] = {}
    for line in lines:
        balance += line.moved.balance_msat
        after[line.place.at] = balance
        assert line.balance_msat == balance
        assert line.net_msat == line.gross_msat - line.moved.fee_msat - line.network_fee_msat
    assert after == {at: plain.balance(at + 1) for at in after}
    by_kind = Counter[str]()
    for line in lines:
        by_kind[line.place.kind.removesuffix("_reversal")] += line.gross_msat
    assert by_kind["sale"] == stated.moved.gross_msat
    assert by_kind["metered"] == stated.moved.metered_msat
    assert by_kind["payout"] == stated.moved.paid_out_msat + stated.moved.network_fee_msat
    in_portions = [line async for some in portions(database, stated, rows=limit) for line in some]
    assert in_portions == lines

    head = statement_csv.line_head(stated.opening, period)
    text = (
        head + statement_csv.line_rows(lines, period.zone) + statement_csv.line_foot(stated.closing, period)
    )
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["kind"] for row in rows[1:-2]] == [line.place.kind for line in lines]
    reckoned = int(rows[0]["balance_sat"]) + sum(int(row["change_sat"]) for row in rows[1:-2])
    assert reckoned == int(rows[-2]["balance_sat"])
    # Fractions of a sat are in no row, and none is lost: rows, parts and sums say the same in whole sats.
    sold = [row for row in rows[1:-2] if row["kind"].startswith("metered")]
    for row in sold:
        assert int(row["gross_sat"]) - int(row["operator_fee_sat"]) == int(row["net_sat"])
        assert row["net_sat"] == row["change_sat"]
    whole = whole_sats(stated.opening, stated.moved)
    assert sum(int(row["gross_sat"]) for row in sold) == whole.metered_sat
    assert sum(int(row["operator_fee_sat"]) for row in rows[1:-2]) == whole.fee_sat
    parts = [whole_sats(part.before, part.moved) for part in stated.parts]
    assert sum(part.gross_sat for part in parts) == whole.gross_sat
    assert not any(cell[:1] in "=+@\t\r" for row in rows for cell in row.values() if cell)


# One thing at a time.

DAY_S = 86_400
MONTH = Period(START, START + 30 * DAY_S, time_zone("UTC"))
Play = Callable[..., Awaitable[History]]


def step(what: str, *, gap_s: int = 0, which: int = 0, sat: int = 50_000, fee_percent: int = 10) -> Step:
    return Step(what, gap_s, which, (sat,), fee_percent)


@pytest_asyncio.fixture
async def play(database: Database) -> Play:
    async def played(*steps: Step, seller_id: str | None = None) -> History:
        history = History(seller_id or new_id())
        await database.write(lambda tx: history.play(tx, steps))
        return history

    return played


async def stated(database: Database, history: History, period: Period, **options: Any) -> Statement:
    return await database.read(lambda tx: statement(tx, history.seller_id, period, **options))


def whole_sat(*amounts_msat: int) -> tuple[float, ...]:
    return tuple(amount / 1_000 for amount in amounts_msat)


async def test_a_sale_reversed_in_the_next_period_is_taken_back_there(database: Database, play: Play) -> None:
    history = await play(step("sale"), step("reorg", gap_s=DAY_S))
    first = await stated(database, history, Period(START, START + DAY_S, time_zone("UTC")))
    then = await stated(database, history, Period(START + DAY_S, START + 2 * DAY_S, time_zone("UTC")))
    assert whole_sat(first.moved.gross_msat, first.moved.fee_msat, first.closing.balance_msat) == (
        50_000,
        5_000,
        45_000,
    )
    assert first.closing == then.opening
    assert whole_sat(then.moved.gross_msat, then.moved.reversed_msat, then.moved.fee_msat) == (
        -50_000,
        50_000,
        -5_000,
    )
    assert then.closing.balance_msat == 0


async def test_a_payout_leaves_the_balance_when_it_is_in_a_block(database: Database, play: Play) -> None:
    history = await play(
        step("sale"),
        step("payout", gap_s=DAY_S, sat=40_000),
        step("mine", gap_s=DAY_S, sat=1_500),
        step("unmine", gap_s=DAY_S),
    )
    standing = []
    for day in range(5):
        read = await stated(database, history, Period(0, START + day * DAY_S, time_zone("UTC")))
        standing.append(
            whole_sat(read.closing.balance_msat, read.closing.reserved_msat, read.moved.paid_out_msat)
        )
    assert standing == [
        (0, 0, 0),
        (45_000, 0, 0),
        (45_000, 40_000, 0),
        (5_000, 0, 38_500),
        (45_000, 40_000, 0),
    ]


async def test_a_refund_is_told_and_comes_out_of_what_is_owed(database: Database, play: Play) -> None:
    history = await play(step("sale"), step("refund"), step("mine", sat=700))
    read = await stated(database, history, MONTH)
    assert whole_sat(read.moved.gross_msat, read.moved.reversed_msat, read.closing.balance_msat) == (
        0,
        50_000,
        0,
    )
    assert whole_sat(read.moved.refunded_msat, read.moved.refund_network_fee_msat) == (49_300, 700)
    lines, _ = await database.read(lambda tx: page(tx, read, after=None, limit=9))
    told = {
        line.place.kind: whole_sat(line.gross_msat, line.net_msat, line.moved.balance_msat) for line in lines
    }
    assert told == {
        "sale": (50_000, 45_000, 45_000),
        "sale_reversal": (-50_000, -45_000, -45_000),
        "refund": (50_000, 49_300, 0),
    }


async def test_what_a_channel_bought_is_a_line_once_it_is_closed(database: Database, play: Play) -> None:
    history = await play(
        step("metered", sat=1_001),
        step("close", gap_s=DAY_S),
        step("unclose", gap_s=DAY_S),
        step("close", gap_s=DAY_S),
    )
    (channel,) = history.channels
    first = await stated(database, history, Period(START, START + DAY_S, time_zone("UTC")))
    assert (first.moved.metered_msat, first.closing.balance_msat) == (0, 0)
    read = await stated(database, history, MONTH)
    # 7.008 sat, and a tenth of it rounded down for the operator.
    assert (read.moved.metered_msat, read.moved.fee_msat, read.moved.reversed_msat) == (7_008, 700, 7_008)
    assert whole_sats(read.opening, read.moved) == Whole(6, 6, 0, 6, 6)
    lines, _ = await database.read(lambda tx: page(tx, read, after=None, limit=9))
    assert [line.place.kind for line in lines] == ["metered", "metered_reversal", "metered"]
    for line in lines:
        assert line.facts.transactions == (channel.id,)
        assert (line.facts.offer_id, line.facts.invoice_id) == (channel.sold.subject, None)
        assert parse_line_id(line.place.line_id) == line.place
    assert [(line.gross_sat, line.whole.fee_sat, line.net_sat) for line in lines] == [
        (6, 0, 6),
        (-6, 0, -6),
        (6, 0, 6),
    ]


async def test_sellers_do_not_see_each_others_money(database: Database, play: Play) -> None:
    mine, theirs = await play(step("sale")), await play(step("sale"), step("payout"), step("mine"))
    assert whole_sat((await stated(database, mine, MONTH)).closing.balance_msat) == (45_000,)
    assert whole_sat((await stated(database, theirs, MONTH)).closing.balance_msat) == (-5_000,)


@pytest.mark.parametrize("table", [transfers, balances])
async def test_what_does_not_add_up_is_no_statement(database: Database, play: Play, table: Table) -> None:
    history = await play(step("sale"), step("payout", sat=9_000), step("direct sale", gap_s=9))
    account = ledger.seller(history.seller_id)
    await stated(database, history, MONTH)
    concerned = table.c.credit if table is transfers else table.c.account
    wrong = update(table).where(concerned == account).values(amount_msat=table.c.amount_msat + 1)
    await database.write(lambda tx: tx.execute(wrong))
    for period in (
        MONTH,
        Period(START - 9, START - 8, time_zone("UTC")),
        Period(START + 5, 2**40, MONTH.zone),
    ):
        with pytest.raises(LedgerImbalance, match="add up"):
            await stated(database, history, period)


async def test_lines_that_do_not_end_at_the_closing_balance_are_an_error(
    database: Database, play: Play
) -> None:
    history = await play(*[step("sale", gap_s=1)] * 5)
    read = await stated(database, history, MONTH)
    lost = delete(transfers).where(
        transfers.c.credit == ledger.seller(history.seller_id), transfers.c.created_at == START + 3
    )
    await database.write(lambda tx: tx.execute(lost))
    with pytest.raises(LedgerImbalance):
        await database.read(lambda tx: page(tx, read, after=None, limit=9))
    seen: list[Line] = []
    with pytest.raises(LedgerImbalance):
        async for some in portions(database, read, rows=1):
            seen += some
    assert len(seen) == 5  # the fee of the lost sale is there


async def test_a_transfer_that_no_rule_knows_is_an_error(database: Database, play: Play) -> None:
    history = await play(step("sale"))
    odd = update(transfers).where(transfers.c.code == "fee").values(code="spent")
    await database.write(lambda tx: tx.execute(odd))
    with pytest.raises(LedgerImbalance, match="no place for spent"):
        await stated(database, history, MONTH)


async def test_too_many_days_are_refused_and_months_take_their_place(database: Database, play: Play) -> None:
    history = await play(step("sale"), *[step("sale", gap_s=20 * DAY_S)] * 21)
    everything = Period(0, 2**38, time_zone("Europe/Paris"))
    with pytest.raises(PeriodInvalid, match="by=month"):
        await stated(database, history, everything, by=By.DAY)
    read = await stated(database, history, everything)
    assert (read.parts[0].name, read.parts[-1].name, len(read.parts)) == ("2026-09", "2027-11", 15)


@pytest.mark.parametrize(
    "text", ["", "5", "x.y.sale", "5..sale", "5.y.", "5.y.theft", "-5.y.sale", "٥.y.sale"]
)
def test_what_is_no_place_of_a_line_is_none(text: str) -> None:
    assert parse_line_id(text) is None


# Over HTTP.


@pytest_asyncio.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


async def asked(till: Till, path: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {till.account.token}"}
    async with till.http.get(f"/api/v1{path}", headers=headers) as answer:
        return answer.status, await answer.text()


async def test_the_answers_agree_with_each_other(till: Till) -> None:
    history = History(till.account.account_id)
    played = [
        *[step("sale", gap_s=9)] * 7,
        step("payout", gap_s=9, sat=20_000),
        step("mine", gap_s=9, sat=400),
    ]
    await till.server.services.database.write(
        lambda tx: history.play(tx, [*played, step("payout", sat=7_000)])
    )
    query = f"since={START}&until={START + DAY_S}&tz=Europe/Paris"
    status, text = await asked(till, f"/statement?{query}&by=day&lines=3")
    view = json.loads(text)
    assert (status, view["opening_sat"], view["closing_sat"], view["reserved_sat"]) == (
        200,
        0,
        7 * 45_000 - 20_000,
        7_000,
    )
    assert (view["sums"]["paid_out_sat"], view["sums"]["network_fee_sat"]) == (19_600, 400)
    assert [part["name"] for part in view["parts"]] == ["2026-09-21"]
    lines = view["lines"]
    while view["next"]:
        view = json.loads((await asked(till, f"/statement?{query}&lines=3&after={view['next']}"))[1])
        lines += view["lines"]
    assert [line["kind"] for line in lines] == ["sale"] * 7 + ["payout"]
    assert json.loads((await asked(till, f"/statement?{query}"))[1])["lines"] == []

    status, text = await asked(till, f"/statement.csv?{query}")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["kind"] for row in rows] == [
        "opening_balance",
        *(line["kind"] for line in lines),
        "closing_balance",
        "of_it_reserved",
    ]
    assert [row["balance_sat"] for row in rows[1:-2]] == [str(line["balance_sat"]) for line in lines]
    assert rows[0]["time"] == "2026-09-21T16:13:20+02:00"
    assert (rows[-2]["balance_sat"], rows[-1]["balance_sat"]) == (str(view["closing_sat"]), "7000")

    status, text = await asked(till, f"/ledger.csv?{query}")
    transfers_told = list(csv.DictReader(io.StringIO(text, newline="")))
    account = ledger.seller(till.account.account_id)
    total = sum(int(row["amount_sat"]) for row in transfers_told if row["credit"] == account)
    total -= sum(int(row["amount_sat"]) for row in transfers_told if row["debit"] == account)
    assert total == view["closing_sat"] - view["reserved_sat"]
    # The other side of what was paid out: held, arrived, the network's.
    assert {row["code"] for row in transfers_told} == {"settled", "fee", "held", "paid_out", "network_fee"}


async def test_nonsense_is_refused_with_words(till: Till) -> None:
    for path in ("/statement", "/statement.csv", "/ledger.csv"):
        assert (await till.status_of(f"/api/v1{path}", {}))[0] == 401
        status, text = await asked(till, f"{path}?tz=Nowhere")
        assert (status, json.loads(text)["field"]) == (422, "tz")
    for query, field in (
        ("by=week", "by"),
        ("lines=201", "lines"),
        ("lines=-1", "lines"),
        ("after=x", "after"),
    ):
        status, text = await asked(till, f"/statement?{query}")
        assert (status, json.loads(text)["field"]) == (400, field)
    # The end of all time, in the first zone that gets there.
    assert (await asked(till, "/statement.csv?until=253402300799&tz=Pacific/Kiritimati"))[0] == 200


async def test_books_that_do_not_add_up_answer_nothing(till: Till) -> None:
    history = History(till.account.account_id)
    await till.server.services.database.write(lambda tx: history.play(tx, [step("sale")]))
    wrong = update(balances).values(amount_msat=balances.c.amount_msat + 1)
    await till.server.services.database.write(lambda tx: tx.execute(wrong))
    for path in ("/statement", "/statement.csv"):
        status, text = await asked(till, f"{path}?since=0")
        assert (status, json.loads(text)["type"]) == (500, "/problems/internal-error")
        assert "sat" not in text
