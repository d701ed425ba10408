"""A seller's statement when the ledger has a million transfers of theirs, over HTTP, from SQLite.

The reference reads the same rows, whole and unsummed, with Python's own `sqlite3` and nothing around it.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from bench.fill import SELLER_TOKEN, Row, made
from bench.report import Line
from bitcache.config import DATABASE_FILE_NAME
from bitcache.db.tables import accounts, grants, tokens
from bitcache.ids import id_text, token_hash
from payments import books, ledger
from payments.ledger import Code
from payments.payout import Kind, State
from payments.ports import Transaction
from payments.tables import balances, invoices, payouts, transfers
from tests.service import RunningServer, running_server

TRANSFERS = 1_000_000
FEW = 1_000
STATEMENT_S_MAX = 2
GROWTH_MAX = 2
"""As for the costs of `bench.growth`."""
REPEATS = 5
PRICE_MSAT, FEE_MSAT = 5_000_000, 500_000
SALES_PER_PAYOUT = 1_000
SALE_EVERY_S = 180
START = 1_600_000_000
EVERYTHING = "since=0&until=4000000000"


async def lines(*, tiny: bool = False) -> list[Line]:
    async with _server(FEW) as (server, _):
        few = await _kept_us(server)
    count = FEW if tiny else TRANSFERS
    async with _server(count) as (server, http):
        bare_s = _bare_s(server.services.config.data_folder / DATABASE_FILE_NAME)
        repeats = 1 if tiny else REPEATS
        whole_s, _ = await _median_s(http, f"{server.api}/statement?{EVERYTHING}", repeats)
        page_s, _ = await _median_s(http, f"{server.api}/statement?{EVERYTHING}&lines=50", repeats)
        csv_s, csv_bytes = await _median_s(http, f"{server.api}/statement.csv?{EVERYTHING}", 1)
        many = await _kept_us(server)
    return [
        Line(
            f"statement of {count:,} transfers, by month",
            f"{whole_s:.2f} s",
            f"{bare_s:.2f} s (SELECT, sqlite3)",
            f"{whole_s / bare_s:.2f}",
            f"<= {STATEMENT_S_MAX} s",
            whole_s <= STATEMENT_S_MAX,
        ),
        Line("the same, with its first 50 lines", f"{page_s:.2f} s"),
        Line(
            f"every line as CSV, {csv_bytes / 1e6:,.0f} MB",
            f"{csv_s:.1f} s",
            f"{bare_s:.2f} s (SELECT, sqlite3)",
            f"{csv_s / bare_s:.1f}",
        ),
        Line(
            f"a balance, of {FEW:,} / {count:,} transfers",
            f"{few:.0f} / {many:.0f} µs",
            "",
            f"{many / few:.1f}",
            f"<= {GROWTH_MAX}x",
            many / few <= GROWTH_MAX,
        ),
    ]


@asynccontextmanager
async def _server(count: int) -> AsyncIterator[tuple[RunningServer, aiohttp.ClientSession]]:
    """Without a node; the seller's token is SELLER_TOKEN."""
    made_once = await asyncio.to_thread(made, f"ledger-{count}", lambda: _rows(count), Path(__file__))
    with TemporaryDirectory(prefix="bitcache-bench-") as folder:
        shutil.copyfile(made_once, Path(folder) / DATABASE_FILE_NAME)
        async with (
            running_server(Path(folder)) as server,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {SELLER_TOKEN}"}) as http,
        ):
            yield server, http


async def _median_s(http: aiohttp.ClientSession, url: str, repeats: int) -> tuple[float, int]:
    """(seconds until the last byte, bytes)."""
    took, size = [], 0
    for _ in range(repeats):
        started_at = time.perf_counter()
        async with http.get(url) as answer:
            assert answer.status == 200, await answer.text()
            size = 0
            async for piece in answer.content.iter_any():
                size += len(piece)
        took.append(time.perf_counter() - started_at)
    return statistics.median(took), size


async def _kept_us(server: RunningServer) -> float:
    """Microseconds of reading the seller's balance, without the transaction around it."""
    account = ledger.seller(_seller())

    async def read(tx: Transaction) -> float:
        took = []
        for _ in range(200):
            started_at = time.perf_counter()
            assert await books.balance(tx, account) > 0
            took.append(time.perf_counter() - started_at)
        return statistics.median(took) * 1e6

    return await server.services.database.read(read)


def _bare_s(place: Path) -> float:
    account = ledger.seller(_seller())
    connection = sqlite3.connect(f"file:{place}?mode=ro", uri=True)
    started_at = time.perf_counter()
    rows = connection.execute("SELECT * FROM transfers WHERE credit = ? OR debit = ?", (account, account))
    assert rows.fetchall()
    took = time.perf_counter() - started_at
    connection.close()
    return took


def _seller() -> str:
    return id_text(bytes(16))


def _rows(count: int) -> Iterator[Row]:
    """Sales of one seller, with as many transfers of theirs, and payouts of nearly all of it."""
    source, seller = random.Random(count), _seller()
    yield accounts, {"id": seller, "name": "bench", "created_at": 0}
    token = {"id": id_text(source.randbytes(16)), "account_id": seller, "label": "", "created_at": 0}
    yield tokens, token | {"token_hash": token_hash(SELLER_TOKEN)}
    balance = 0
    for number in range(count // 2):
        at = START + number * SALE_EVERY_S
        yield from _sale(source, seller, number, at)
        balance += PRICE_MSAT - FEE_MSAT
        if number % SALES_PER_PAYOUT == SALES_PER_PAYOUT - 1:
            yield from _payout(source, seller, balance - 1_000, at)
            balance = 1_000
    yield balances, {"account": ledger.seller(seller), "amount_msat": balance}


def _sale(source: random.Random, seller: str, number: int, at: int) -> Iterator[Row]:
    invoice_id, subject = id_text(source.randbytes(16)), f"{source.randbytes(32).hex()}:0"
    owed, mine = ledger.owed(invoice_id), ledger.seller(seller)
    yield invoices, _invoice(source, invoice_id, seller, number, at)
    grant = {"id": id_text(source.randbytes(16)), "invoice_id": invoice_id, "offer_id": seller}
    yield (
        grants,
        grant
        | {
            "parcel_id": seller,
            "created_at": at,
            "bytes_allowed": True,
            "key_allowed": True,
            "retained_until": at,
            "bytes_served": 0,
        },
    )
    for leg, debit, credit, amount, code in (
        ("in", ledger.chain(), owed, PRICE_MSAT, Code.RECEIVED),
        ("seller", owed, mine, PRICE_MSAT, Code.SETTLED),
        ("operator", mine, ledger.operator(), FEE_MSAT, Code.FEE),
    ):
        yield transfers, _transfer(f"{subject}/{leg}/0", debit, credit, amount, code, invoice_id, at)


def _payout(source: random.Random, seller: str, amount_msat: int, at: int) -> Iterator[Row]:
    payout_id, mine = id_text(source.randbytes(16)), ledger.seller(seller)
    held = ledger.payout(payout_id)
    yield (
        payouts,
        {
            "id": payout_id,
            "kind": Kind.SELLER,
            "seller_id": seller,
            "account": mine,
            "amount_sat": amount_msat // 1_000,
            "address": "",
            "script_pubkey": b"",
            "state": State.DONE,
            "requested_at": at,
            "ready_at": at,
        },
    )
    for leg, debit, credit, amount, code in (
        ("hold", mine, held, amount_msat, Code.HELD),
        ("paid", held, ledger.chain(), amount_msat - 300_000, Code.PAID_OUT),
        ("fee", held, ledger.chain(), 300_000, Code.NETWORK_FEE),
    ):
        yield transfers, _transfer(f"{payout_id}/{leg}/0", debit, credit, amount, code, payout_id, at)


def _transfer(
    id_: str, debit: str, credit: str, amount_msat: int, code: Code, reference: str, at: int
) -> dict[str, Any]:
    return {
        "id": id_,
        "debit": debit,
        "credit": credit,
        "amount_msat": amount_msat,
        "code": code,
        "reference": reference,
        "created_at": at,
    }


def _invoice(source: random.Random, invoice_id: str, seller: str, number: int, at: int) -> dict[str, Any]:
    return {
        "id": invoice_id,
        "reference": f"BC-{number:08}",
        "subject": seller,
        "seller_id": seller,
        "created_at": at,
        "mode": "hosted",
        "bytes_at": 1,
        "key_at": 1,
        "tolerance_sat": 0,
        "tolerance_ppm": 0,
        "frozen": "{}",
        "claim_hash": source.randbytes(32),
        "cancelled": False,
        "released_at": at,
        "status": "settled",
        "standing": "{}",
    }
