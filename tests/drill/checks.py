"""Whether a drill ended as it must. Nothing of ours is asked: only the database's rows and the blobs' bytes,
read with the standard library, against what the outside node, the sellers and the buyers know.

Every function returns what is wrong, to the satoshi and to the file; nothing when all is well.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MSAT = 1_000
CHUNK_BYTES = 1 << 20
PART_BYTES = 8 << 20
DIGEST_BYTES = 32
TIP_SAT_MAX = 999
"""A surplus up to this is the seller's."""


@dataclass(frozen=True)
class ChainOutput:
    """An output of the active chain to one of our addresses, as the outside node tells it."""

    txid: str
    vout: int
    address: str
    amount_sat: int
    height: int

    @property
    def outpoint(self) -> str:
        return f"{self.txid}:{self.vout}"


@dataclass(frozen=True)
class Bought:
    """What one buyer was told, did, and has."""

    name: str
    invoice_id: str
    address: str
    price_sat: int
    has_files: bool
    key_given: bool
    """Claiming now, after all."""
    robbed_depth: int | None


@dataclass(frozen=True)
class Evidence:
    """What all others than the server know."""

    tip_height: int
    outputs: tuple[ChainOutput, ...]
    bought: tuple[Bought, ...]
    roots: dict[str, str]
    """Of each file of each parcel whose upload was acknowledged: its root as its seller sealed it."""


class Stored(NamedTuple):
    invoice_id: str
    status: str
    review_at: int | None
    """When time alone changes the standing."""


def addresses(folder: Path) -> set[str]:
    """Every address that was ever handed out."""
    with closing(sqlite3.connect(folder / "bitcache.db")) as rows:
        return {address for (address,) in rows.execute("SELECT address FROM invoices WHERE address NOT NULL")}


def standings(folder: Path) -> list[Stored]:
    """What is kept of each invoice's standing, of a server that may run."""
    with closing(sqlite3.connect(folder / "bitcache.db")) as rows:
        return [Stored(*row) for row in rows.execute("SELECT id, status, review_at FROM invoices")]


def everything(folder: Path, evidence: Evidence) -> list[str]:
    """All but `orphans`, of the server's data folder or a copy of it; nobody writes to it meanwhile."""
    with closing(sqlite3.connect(folder / "bitcache.db")) as rows:
        rows.row_factory = sqlite3.Row
        return [
            *ledger(rows, evidence),
            *invoices(rows, evidence),
            *grants(rows, evidence),
            *bought(rows, evidence),
            *files(rows, folder, evidence),
            *parts(rows, folder),
        ]


def ledger(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """Sums to zero, equals what the chain says, and credits each outpoint once while it counts."""
    balances: dict[str, int] = defaultdict(int)
    credited: dict[str, int] = defaultdict(int)
    for row in rows.execute("SELECT * FROM transfers"):
        balances[row["debit"]] -= row["amount_msat"]
        balances[row["credit"]] += row["amount_msat"]
        outpoint = row["id"].partition("/")[0]
        if row["debit"] == "chain":
            credited[outpoint] += row["amount_msat"]
        if row["credit"] == "chain":
            credited[outpoint] -= row["amount_msat"]
    if (total_msat := sum(balances.values())) != 0:
        yield f"the ledger sums to {total_msat} msat"
    on_chain = {output.outpoint: output.amount_sat * MSAT for output in evidence.outputs}
    if balances["chain"] != -sum(on_chain.values()):
        yield (
            f"the ledger has {-balances['chain'] / MSAT:,.3f} sat from the chain, the chain says "
            f"{sum(on_chain.values()) // MSAT:,} sat"
        )
    for outpoint in sorted(on_chain.keys() | credited.keys()):
        booked, true = credited.get(outpoint, 0), on_chain.get(outpoint, 0)
        if booked != true:
            yield f"{outpoint} is credited with {booked / MSAT:,.3f} sat, the chain says {true // MSAT:,} sat"


def invoices(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """What is owed and what is earned on each invoice follows from what the chain paid to its address."""
    on_chain = _sat_by_address(evidence.outputs)
    earned: dict[str, int] = defaultdict(int)
    owed: dict[str, int] = defaultdict(int)
    for row in rows.execute("SELECT * FROM transfers"):
        for account, sign in ((row["debit"], -1), (row["credit"], 1)):
            if account.startswith("owed:"):
                owed[row["reference"]] += sign * row["amount_msat"]
            elif account.startswith(("direct:", "seller:", "operator")):
                earned[row["reference"]] += sign * row["amount_msat"]
    for row in rows.execute("SELECT * FROM invoices WHERE address NOT NULL"):
        received_sat, price_sat = on_chain.get(row["address"], 0), _price_sat(rows, row["id"])
        surplus_sat = received_sat - price_sat
        may_be: tuple[str, ...] = ("settled",)
        if surplus_sat < 0:
            true_earned_sat, true_owed_sat = 0, received_sat
            may_be = ("open", "seen", "expired", "cancelled")
        elif surplus_sat <= TIP_SAT_MAX:
            true_earned_sat, true_owed_sat = received_sat, 0
        else:
            true_earned_sat, true_owed_sat = price_sat, surplus_sat
        who = f"invoice {row['id']} over {price_sat:,} sat, paid {received_sat:,} sat"
        if row["status"] not in may_be:
            yield f"{who}, is {row['status']}"
        if earned[row["id"]] != true_earned_sat * MSAT:
            yield f"{who}: {earned[row['id']] / MSAT:,.3f} sat earned, must be {true_earned_sat:,}"
        if owed[row["id"]] != true_owed_sat * MSAT:
            yield f"{who}: {owed[row['id']] / MSAT:,.3f} sat owed, must be {true_owed_sat:,}"


def grants(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """No right without money as deep as the policy asks, but for what a reorg or a double spend took back."""
    buyer_of = {one.invoice_id: one for one in evidence.bought}
    asked = rows.execute(
        "SELECT i.*, g.bytes_allowed, g.key_allowed FROM invoices i JOIN grants g ON g.invoice_id = i.id "
        "WHERE i.address NOT NULL"
    )
    for row in asked:
        price_sat = _price_sat(rows, row["id"])
        deep_sat = _sat_by_address(
            output
            for output in evidence.outputs
            if evidence.tip_height - output.height + 1 >= max(row["key_at"], 1)
        ).get(row["address"], 0)
        if deep_sat >= price_sat:
            if not row["key_allowed"] or not row["bytes_allowed"]:
                yield f"invoice {row['id']} has {deep_sat:,} of {price_sat:,} sat and no right to the files"
            continue
        who = f"invoice {row['id']} has {deep_sat:,} of {price_sat:,} sat"
        if row["key_allowed"] or row["bytes_allowed"]:
            yield f"{who}, and a right to the files"
        buyer = buyer_of.get(row["id"])
        if buyer is not None and buyer.key_given:
            yield f"{who}, and {buyer.name} was given the key after all"
        risked = row["key_at"] == 0 or (
            buyer is not None and buyer.robbed_depth is not None and buyer.robbed_depth >= row["key_at"]
        )
        if row["released_at"] is not None and not risked:
            yield f"{who}, and its key was given, which its policy ({row['key_at']} confirmations) forbade"


def bought(rows: sqlite3.Connection, evidence: Evidence) -> Iterator[str]:
    """Who paid enough has the files; no invoice that a buyer was given is lost."""
    on_chain = _sat_by_address(evidence.outputs)
    kept = dict(rows.execute("SELECT id, address FROM invoices"))
    for one in evidence.bought:
        if kept.get(one.invoice_id) != one.address:
            yield f"{one.name} was told to pay {one.address}, the database says {kept.get(one.invoice_id)}"
        paid_sat = on_chain.get(one.address, 0)
        if paid_sat >= one.price_sat and not one.has_files:
            yield f"{one.name} paid {paid_sat:,} of {one.price_sat:,} sat, and has not the files as sold"


def files(rows: sqlite3.Connection, folder: Path, evidence: Evidence) -> Iterator[str]:
    """Every file of every acknowledged parcel is there, byte for byte as its seller sealed it."""
    complete = {
        row["id"]: row for row in rows.execute("SELECT * FROM files WHERE completed_at NOT NULL").fetchall()
    }
    for file_id in sorted(evidence.roots):
        if file_id not in complete:
            yield f"file {file_id} was acknowledged, and is not in the database"
    for file_id, row in sorted(complete.items()):
        blob = _blob(folder, file_id)
        if not blob.is_file():
            yield f"the blob of file {file_id} is missing"
        elif (found := _root(blob)) != evidence.roots.get(file_id, row["root"].hex()):
            yield f"the blob of file {file_id} has the root {found[:16]}..., not its seller's"


def parts(rows: sqlite3.Connection, folder: Path) -> Iterator[str]:
    """Every part of an unfinished file that was acknowledged is there."""
    for row in rows.execute("SELECT * FROM file_parts"):
        blob = _blob(folder, row["file_id"])
        uploading = blob.with_name(blob.name + ".uploading")
        found = uploading if uploading.is_file() else blob
        if not found.is_file():
            yield f"part {row['part_no']} of file {row['file_id']} was acknowledged, and its blob is missing"
            continue
        with found.open("rb") as file:
            file.seek(row["part_no"] * PART_BYTES)
            chunks = [
                hashlib.sha256(file.read(CHUNK_BYTES)).digest()
                for _ in range(len(row["digests"]) // DIGEST_BYTES)
            ]
        if b"".join(chunks) != row["digests"]:
            yield f"part {row['part_no']} of file {row['file_id']} is not what was acknowledged"


def orphans(folder: Path) -> Iterator[str]:
    """After the sweep: blobs that no row names."""
    with closing(sqlite3.connect(folder / "bitcache.db")) as rows:
        named = {file_id for (file_id,) in rows.execute("SELECT id FROM files")}
    for blob in sorted((folder / "blobs").rglob("*")):
        if blob.is_file() and blob.name.removesuffix(".uploading") not in named:
            yield f"blob {blob.name} is of no file"


def _price_sat(rows: sqlite3.Connection, invoice_id: str) -> int:
    """The offer's price: no drill changes one, so every term asks the same."""
    (price_sat,) = rows.execute(
        "SELECT min(amount_sat) FROM invoice_terms WHERE invoice_id = ?", (invoice_id,)
    ).fetchone()
    return int(price_sat)


def _sat_by_address(outputs: Iterable[ChainOutput]) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for output in outputs:
        sums[output.address] += output.amount_sat
    return dict(sums)


def _blob(folder: Path, file_id: str) -> Path:
    return folder / "blobs" / file_id[:2] / file_id


def _root(blob: Path) -> str:
    digests = bytearray()
    with blob.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digests += hashlib.sha256(chunk).digest()
    return hashlib.sha256(digests).hexdigest()
