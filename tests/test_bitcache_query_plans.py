"""What a payment, a buyer or a seller waits for costs the same on an old server: every query has its index.

SQLite says how it would run each statement. Without statistics, which this server never makes, that depends
on the tables alone, so an empty database tells of one with a million invoices.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from bitcache import access, earnings, events, metered_earnings, shelf
from bitcache.earnings import parse_period
from bitcache.seller_payments import needing_attention, payments_page
from bitcache.statement_facts import facts_of
from bitcache.statement_lines import LineKind, Place, page
from bitcache.statements import statement as seller_statement
from bitcache.web import dashboard
from bitcache.web.span import chosen_span
from payments import (
    chain_facts,
    chain_store,
    channel_endings,
    channel_follow,
    channel_places,
    channel_store,
    unassigned,
)
from payments.chain_facts import BlockRef, PaidOutput, PayingTransaction
from payments.channel_follow import ChannelFollower
from payments.ledger import Code, Transfer
from payments.money import Msat, Sat
from payments.outputs import OutPoint, Presence
from payments.ports import Transaction
from regtest.node import wait_until
from tests.till import Till, open_nodeless_till

NOW = 1_800_000_000
GROWING = {
    "channel_close_members",
    "channel_closes",
    "channel_sales",
    "channels",
    "events",
    "grants",
    "invoice_terms",
    "invoices",
    "paying_inputs",
    "paying_transactions",
    "received_outputs",
    "transfers",
}
"""Tables that grow with every sale. A scan of an index of theirs grows with them just as much."""
PAYMENT = PayingTransaction(
    txid="aa" * 32,
    raw=b"",
    inputs=(OutPoint("bb" * 32, 0),),
    outputs=(PaidOutput(0, Sat(5_000), b"\x51", "i"),),
    coinbase=False,
)
Query = Callable[[Till, Transaction], Awaitable[Any]]


async def _statement(tx: Transaction, seller_id: str) -> None:
    period = parse_period(None, None, None, now=NOW)
    after = Place(NOW - 9, "r", True, LineKind.SALE)
    await page(tx, await seller_statement(tx, seller_id, period), after=after, limit=50)
    # What a line is about is looked up only where there is one.
    await facts_of(tx, {0: [Transfer("p/paid/0", "payout:p", "chain", Msat(1), Code.PAID_OUT, "p", NOW)]})


async def _channels(tx: Transaction) -> None:
    follower = ChannelFollower(depth=6)
    await follower.mark_addresses(tx)
    await follower.follow(tx, now=NOW, found=["aa" * 32])
    # What it asks once there is one.
    ids = [f"{'aa' * 32}:0"]
    await channel_store.spends_of(tx, ids)
    await channel_store.load_all(tx, ids)
    await channel_endings._of_spend(tx, "aa" * 32, 200)
    await channel_follow.book_spending(tx, ids, now=NOW)
    await channel_follow._sold(tx, ids)
    await channel_follow._standing(tx, ids)


async def _deposits(tx: Transaction) -> None:
    await channel_store.scripts_after(tx, 5)
    await channel_store.scripts_among(tx, [b"\x51"])
    await channel_store.outpoints_among(tx, PAYMENT.inputs)
    await channel_store.deposits_to(tx, [b"\x51"])
    await channel_store.newest_seq(tx)


QUERIES: dict[str, Query] = {
    "chain view": lambda _, tx: chain_facts.view(tx, NOW),
    "unconfirmed payments": lambda _, tx: chain_facts.unconfirmed(tx),
    "open scripts": lambda _, tx: chain_facts.open_scripts(tx),
    "scripts of a transaction": lambda _, tx: chain_facts.invoices_paid_by(tx, [b"\x51", b"\x52"]),
    "inputs to watch": lambda _, tx: chain_facts.watched_inputs(tx, from_height=100),
    "a new block": lambda _, tx: chain_store.connect(tx, BlockRef(200, "cc" * 32), now=NOW),
    "invoices a block moves": lambda _, tx: chain_facts.moving(tx, from_height=100, told_from_height=195),
    "a reorg": lambda _, tx: chain_store.disconnect_above(tx, 195),
    "a new presence": lambda _, tx: chain_store.set_presence(tx, PAYMENT.txid, Presence.MISSING),
    "a double spend": lambda _, tx: chain_store.lose_inputs(tx, PAYMENT.txid, height=200),
    "unassigned money": lambda _, tx: unassigned.book(tx, now=NOW),
    "channels that blocks ended": lambda _, tx: _channels(tx),
    "deposits to watch": lambda _, tx: _deposits(tx),
    "live channels": lambda _, tx: channel_store.live(tx),
    "channels that were double-spent": lambda _, tx: channel_places.all_places(tx, lost_since=NOW),
    "channels of a payer": lambda _, tx: channel_store.of_payer(tx, b"\x02"),
    "what channels were charged": lambda _, tx: channel_follow.book_spending(tx, None, now=NOW),
    "due for review": lambda till, tx: till.server.services.registry.due_for_review(tx, now=NOW),
    "unpaid invoices of a seller": lambda till, tx: till.server.services.registry.open_unpaid(tx, "s"),
    "sales of an offer": lambda till, tx: till.server.services.registry.sold(tx, "o"),
    "an invoice by its claim": lambda till, tx: till.server.services.registry.find(
        tx, subject="o", claim_hash=b"", now=NOW
    ),
    "a page of invoices": lambda till, tx: till.server.services.registry.page(
        tx, seller_id="s", after=None, limit=50, now=NOW
    ),
    "unconfirmed exposure": lambda _, tx: access._unconfirmed_exposure_sat(tx, "i", NOW),
    "the wallet's gap": lambda till, tx: till.server.services.descriptors.usage(tx, "d"),
    "chunks sold of offers": lambda _, tx: metered_earnings.sold_of(tx, ["o"]),
    "chunks of a channel": lambda _, tx: metered_earnings._units(tx, ["c"]),
    "earnings of a month": lambda till, tx: earnings.earnings(
        tx, till.account.account_id, parse_period(None, None, None, now=NOW)
    ),
    "the dashboard": lambda till, tx: dashboard._overview(
        tx, till.server.services, till.account.account_id, chosen_span({}, now=NOW)[0], None, NOW
    ),
    "a statement": lambda till, tx: _statement(tx, till.account.account_id),
    "what needs attention": lambda _, tx: needing_attention(tx, "s", limit=50),
    "payments of a seller": lambda _, tx: payments_page(tx, "s", after=None, limit=20),
    "what is on sale": lambda till, tx: shelf.shelf_page(
        tx, till.account.account_id, after=None, limit=20, now=NOW
    ),
    "events": lambda _, tx: events.after(tx, 100, limit=500),
    "the newest event": lambda _, tx: events.last_seq(tx),
}


@pytest.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:

        async def started() -> bool:
            return till.server.services.watcher.condition.checked_at > 0

        # By then everything that a start reads whole, and may, was read.
        await wait_until(started, "the watcher to have started")
        yield till


@contextmanager
def noted(till: Till) -> Iterator[list[tuple[str, Any]]]:
    """Every statement of this process meanwhile, with its parameters."""
    statements: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    database = till.server.services.database
    engines = [database._writer.sync_engine, database._reader.sync_engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    yield statements
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)


async def scans(till: Till, statements: list[tuple[str, Any]]) -> list[str]:
    """What SQLite would read from end to end, with the statement."""
    found = []

    async def explain(tx: Transaction) -> None:
        for statement, parameters in statements:
            if not statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
                continue
            plan = await tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            for *_, line in plan.all():
                words = str(line).split()
                if words[0] == "SCAN" and words[1] in GROWING:
                    found.append(f"{line}\n{statement}")

    await till.server.services.database.read(explain)
    return found


@pytest.mark.parametrize("what", QUERIES)
async def test_no_hot_query_reads_a_whole_table(till: Till, what: str) -> None:
    async def run(tx: Transaction) -> None:
        await QUERIES[what](till, tx)

    with noted(till) as statements:
        await till.server.services.database.write(run)
    assert [statement for statement, _ in statements if "FROM" in statement or "UPDATE" in statement]
    assert await scans(till, statements) == []


async def test_neither_does_a_sale(till: Till) -> None:
    with noted(till) as statements:
        offer = await till.offer(price_sat=0)
        bought = await till.buy(offer)
        await till.token(bought)
        await till.server.services.database.write(
            lambda tx: till.server.services.registry.refresh(tx, [bought.id], now=NOW)
        )
    assert len(statements) > 20
    assert await scans(till, statements) == []


async def test_neither_does_the_sweep(till: Till) -> None:
    with noted(till) as statements:
        await till.server.services.sweep.poll_once()
    assert len(statements) > 5
    assert await scans(till, statements) == []


async def test_a_scan_would_be_seen(till: Till) -> None:
    with noted(till) as statements:
        await till.server.services.database.read(
            lambda tx: tx.execute(text("SELECT id FROM invoices WHERE address = 'a'"))
        )
    assert len(await scans(till, statements)) == 1
