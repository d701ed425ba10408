"""Databases of servers that have sold for years: made once, kept in build/, copied for each use.

The invoices are a thousand a day for as long as it takes, of twenty sellers, the newest a day old: so a
larger database is of an older server, not of a busier one. Six in ten were paid, the others expired. What
texts of ours the rows hold is written by the code that writes it on a sale.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, create_engine, insert

from bench.report import PROJECT
from bitcache.db.engine import Database
from bitcache.db.migrate import MIGRATIONS_FOLDER, upgrade
from bitcache.db.tables import accounts, grants, offers, parcels, tokens
from bitcache.ids import id_text, token_hash
from bitcache.invoice_view import FrozenOffer
from payments import ledger
from payments.invoice import ChainView, Invoice, Mode, Policy, Standing, Term, standing
from payments.money import Sat
from payments.outputs import OutPoint, Presence, ReceivedOutput
from payments.tables import (
    balances,
    blocks,
    channel_contracts,
    channels,
    descriptors,
    invoice_terms,
    invoices,
    paying_inputs,
    paying_transactions,
    payouts,
    received_outputs,
    transfers,
)

CACHE = PROJECT / "build" / "bench"
SELLERS = 20
SELLER_TOKEN = "bcs_" + "a" * 52
"""Of the first seller, in a database that nobody can reach."""
INVOICES_PER_DAY = 1_000
DAY_S = 86_400
PRICE_SAT = Sat(5_000)
HOLD_S = 900
PAID_IN_TEN = 6
RAW_BYTES = 222
"""Of a transaction with one input and two outputs."""
HEIGHT = -100_000
"""Of the newest payment. The chain of regtest is too short for years of sales: their blocks lie before it."""
ROWS_PER_INSERT = 5_000
ORDER = (
    accounts,
    tokens,
    descriptors,
    parcels,
    offers,
    invoices,
    invoice_terms,
    grants,
    paying_transactions,
    paying_inputs,
    received_outputs,
    transfers,
    balances,
    payouts,
    blocks,
    channel_contracts,
    channels,
)
Row = tuple[Table, dict[str, Any]]


def filled(count: int) -> Path:
    """A SQLite file with `count` invoices. Copy it before use."""
    return made(f"filled-{count}", lambda: _rows(count))


def made(name: str, rows: Callable[[], Iterable[Row]], *sources: Path) -> Path:
    """A SQLite file with these rows, made again only when `sources`, this file or the tables change."""
    CACHE.mkdir(parents=True, exist_ok=True)
    place = CACHE / f"{name}-{_version(sources)}.db"
    if not place.exists():
        for old in CACHE.glob(f"{name}-*"):
            old.unlink()
        growing = place.with_suffix(".growing")
        asyncio.run(_migrated(growing))
        _fill(growing, rows())
        growing.rename(place)
    return place


def put_copy(count: int, place: Path) -> None:
    """A copy of `filled(count)` as the database at `place`."""
    shutil.copyfile(filled(count), place)


def _version(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for source in (*sources, *sorted(MIGRATIONS_FOLDER.glob("versions/*.py"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


async def _migrated(place: Path) -> None:
    place.unlink(missing_ok=True)
    database = Database(f"sqlite+aiosqlite:///{place}")
    await upgrade(database)
    await database.close()


def _fill(place: Path, rows: Iterable[Row]) -> None:
    engine = create_engine(f"sqlite:///{place}")
    with engine.connect() as connection:
        # A crash costs the making of it, nothing else.
        for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000"):
            connection.exec_driver_sql(f"PRAGMA {setting}")
        indexes = _without_indexes(connection)
        waiting: dict[Table, list[dict[str, Any]]] = {table: [] for table in ORDER}
        for table, row in rows:
            waiting[table].append(row)
            if len(waiting[table]) >= ROWS_PER_INSERT:
                _insert(connection, waiting)
        _insert(connection, waiting)
        for statement in indexes:
            connection.exec_driver_sql(statement)
        connection.commit()
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    engine.dispose()


def _without_indexes(connection: Connection) -> list[str]:
    """Drop them, since making them at the end is faster; the statements that make them."""
    found = connection.exec_driver_sql(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql > ''"
    )
    rows = found.all()
    for name, _ in rows:
        connection.exec_driver_sql(f"DROP INDEX {name}")
    return [str(statement) for _, statement in rows]


def _insert(connection: Connection, waiting: dict[Table, list[dict[str, Any]]]) -> None:
    for table, rows in waiting.items():
        if rows:
            connection.execute(insert(table), rows)
            rows.clear()


def _rows(count: int) -> Iterator[Row]:
    source = random.Random(count)
    newest_at = int(time.time()) - DAY_S
    sellers = [_id(source) for _ in range(SELLERS)]
    yield from _shop(source, sellers, newest_at)
    offer_of = {seller: (_id(source), _id(source)) for seller in sellers}
    for seller, (offer_id, parcel_id) in offer_of.items():
        yield from _goods(seller, offer_id, parcel_id, newest_at)
    for number in range(count):
        seller = sellers[number % SELLERS]
        age = count - number
        created_at = newest_at - age * DAY_S // INVOICES_PER_DAY
        paid = number // SELLERS % 10 < PAID_IN_TEN
        yield from _sale(source, number, seller, offer_of[seller], created_at, HEIGHT - age // 7, paid=paid)


def _shop(source: random.Random, sellers: list[str], now: int) -> Iterator[Row]:
    for number, seller in enumerate(sellers):
        yield accounts, {"id": seller, "name": f"bench {number}", "created_at": 0}
        yield descriptors, {"id": seller, "sealed_text": b"", "next_index": 0, "created_at": 0}
    hashed = token_hash(SELLER_TOKEN)
    first = {
        "id": _id(source),
        "account_id": sellers[0],
        "token_hash": hashed,
        "label": "",
        "created_at": now,
    }
    yield tokens, first


def _goods(seller: str, offer_id: str, parcel_id: str, now: int) -> Iterator[Row]:
    yield (
        parcels,
        {
            "id": parcel_id,
            "account_id": seller,
            "created_at": 0,
            "meterable": False,
            "size_bytes": 1 << 30,
            "files_count": 1,
            "sealed_at": 0,
            "metadata": bytes(500),
        },
    )
    yield (
        offers,
        {
            "id": offer_id,
            "account_id": seller,
            "parcel_id": parcel_id,
            "created_at": 0,
            "price_msat": PRICE_SAT * 1000,
            "bytes_at": 1,
            "key_at": 1,
        },
    )


def _sale(
    source: random.Random,
    number: int,
    seller: str,
    goods: tuple[str, str],
    created_at: int,
    height: int,
    *,
    paid: bool,
) -> Iterator[Row]:
    offer_id, parcel_id = goods
    invoice = Invoice(
        id=_id(source),
        reference=f"BC-{number:08}",
        created_at=created_at,
        seller_id=seller,
        mode=Mode.DIRECT,
        policy=Policy(bytes_at=1, key_at=1),
        terms=(Term(PRICE_SAT, valid_until=created_at + HOLD_S),),
    )
    outpoint = OutPoint(source.randbytes(32).hex(), 0)
    output = ReceivedOutput(
        outpoint=outpoint,
        amount_sat=PRICE_SAT,
        first_seen_at=created_at + 60,
        presence=Presence.BLOCK,
        height=height,
        coinbase=False,
        reorged=False,
    )
    outputs = (output,) if paid else ()
    chain = ChainView(tip_height=height + 6, outages=())
    now = created_at + DAY_S
    stands = standing(invoice, outputs, chain, now)
    yield invoices, _invoice_row(source, invoice, stands, number, offer_id, parcel_id)
    term = {"invoice_id": invoice.id, "position": 0, "amount_sat": PRICE_SAT, "offered_at": 0}
    yield invoice_terms, term | {"valid_until": created_at + HOLD_S}
    yield (
        grants,
        {
            "id": _id(source),
            "invoice_id": invoice.id,
            "offer_id": offer_id,
            "parcel_id": parcel_id,
            "created_at": created_at,
            "bytes_allowed": paid,
            "key_allowed": paid,
            "retained_until": created_at + 90 * DAY_S,
            "bytes_served": 1 << 30 if paid else 0,
        },
    )
    if not paid:
        return
    yield (
        paying_transactions,
        {
            "txid": outpoint.txid,
            "raw": source.randbytes(RAW_BYTES),
            "coinbase": False,
            "presence": Presence.BLOCK,
            "height": height,
            "reorged": False,
            "prefetch_fit": True,
        },
    )
    previous = {"previous_txid": source.randbytes(32).hex(), "previous_vout": 0}
    yield paying_inputs, {"txid": outpoint.txid} | previous
    received = {"txid": outpoint.txid, "vout": 0, "invoice_id": invoice.id, "amount_sat": PRICE_SAT}
    yield received_outputs, received | {"first_seen_at": output.first_seen_at}
    desired = ledger.desired_bookings(invoice, outputs, stands, chain)
    for transfer in ledger.reconcile(desired, (), reference=invoice.id, now=created_at + 600):
        yield transfers, asdict(transfer)


def _invoice_row(
    source: random.Random, invoice: Invoice, stands: Standing, number: int, offer_id: str, parcel_id: str
) -> dict[str, Any]:
    frozen = FrozenOffer(offer_id, parcel_id, PRICE_SAT * 1000, 1, 1, Mode.DIRECT.value, 90, meterable=False)
    return {
        "id": invoice.id,
        "reference": invoice.reference,
        "subject": offer_id,
        "seller_id": invoice.seller_id,
        "created_at": invoice.created_at,
        "mode": invoice.mode,
        "bytes_at": 1,
        "key_at": 1,
        "tolerance_sat": 0,
        "tolerance_ppm": 0,
        "frozen": msgspec.json.encode(frozen).decode(),
        "claim_hash": source.randbytes(32),
        "cancelled": False,
        "descriptor_id": invoice.seller_id,
        "address_index": number,
        "address": f"bcrt1q{source.randbytes(19).hex()}",
        "script_pubkey": b"\x00\x14" + source.randbytes(20),
        "released_at": invoice.created_at + 600 if stands.covered else None,
        "status": stands.status,
        "standing": msgspec.json.encode(stands, order="deterministic").decode(),
    }


def _id(source: random.Random) -> str:
    return id_text(source.randbytes(16))
