"""Statements, earnings and the ledger's export of one shop on a real node: a payout and a refund."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bitcache.earnings import Period, time_zone
from bitcache.ids import new_id
from bitcache.ledger_export import CHAIN, Format, account_name, export
from bitcache.operator_books import OperatorBooks, operator_books
from payments import ledger, payout_requests
from payments.ledger import Code
from payments.money import Sat
from payments.payout import Kind, Payout, State
from payments.ports import Transaction
from regtest.world import RegtestWorld
from tests.hosted_shop import HostedShop, open_hosted_till

EVERYTHING = Period(0, 2**38, time_zone("UTC"))


async def refund(shop: HostedShop, invoice_id: str, amount_sat: int, address: str) -> Payout:
    """The buyer asked for all of it, and nobody needs to be asked."""
    now = shop.till.server.clock()
    script = await shop.services.node.validate_address(address)
    payout = Payout(
        id=new_id(),
        kind=Kind.REFUND,
        seller_id=shop.seller_id,
        invoice_id=invoice_id,
        account=ledger.owed(invoice_id),
        amount_sat=Sat(amount_sat),
        address=address,
        script_pubkey=script,
        state=State.APPROVED,
        requested_at=now,
        ready_at=now,
    )

    async def write(tx: Transaction) -> Payout:
        await shop.services.registry.refund(tx, invoice_id, now=now)
        return await payout_requests.request(tx, payout, depth=1, now=now)

    made: Payout = await shop.services.database.write(write)
    return made


async def asked(shop: HostedShop, path: str) -> Any:
    headers = {"Authorization": f"Bearer {shop.till.account.token}"}
    async with shop.till.http.get(f"/api/v1{path}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await (answer.json() if answer.content_type == "application/json" else answer.text())


async def books_of(shop: HostedShop) -> OperatorBooks:
    found: OperatorBooks = await shop.services.database.read(lambda tx: operator_books(tx, EVERYTHING))
    return found


async def exported(shop: HostedShop, form: Format) -> str:
    async def read(tx: Transaction) -> str:
        return "".join([text async for text in export(tx, form, since=0, until=2**62)])

    text: str = await shop.services.database.read(read)
    return text


def journal_totals(text: str) -> Counter[str]:
    """Account -> its sum, in msat. Fails unless each transaction is two postings that add up to zero."""
    totals = Counter[str]()
    _, *entries = re.split(r"(?m)^(?=\d{4}-\d{2}-\d{2} )", text)
    for entry in entries:
        postings = re.findall(r"(?m)^    (\S.*?)  (-?\d+(?:\.\d{1,3})?) sat$", entry)
        assert len(postings) == 2, entry
        assert sum(Decimal(amount) for _, amount in postings) == 0, entry
        for account, amount in postings:
            totals[account] += int(Decimal(amount) * 1_000)
    assert entries
    return totals


@pytest.fixture
def journal_programs() -> list[str]:
    """What reads journals on this machine, if anything; the test's own reader is always there."""
    return [program for name in ("hledger", "ledger") if (program := shutil.which(name))]


async def test_a_payout_and_a_refund_stand_in_every_book_alike(
    world: RegtestWorld, tmp_path: Path, journal_programs: list[str]
) -> None:
    async with open_hosted_till(world, tmp_path, hosted={"fee_percent": "10", "depth": 1}) as shop:
        sold = await shop.sell(price_sat=50_000, count=3)
        returned = await refund(shop, sold[0].id, 50_000, await shop.new_address())
        paid = await shop.request(80_000)
        before = await asked(shop, "/earnings?since=0")
        assert (before["received_sat"], before["fee_sat"], before["sales"]) == (90_000, 10_000, 2)
        assert (before["refunding_sat"], before["owed_sat"], before["owed_hosted_sat"]) == (50_000, 0, 0)
        view = await asked(shop, "/statement?since=0&lines=50")
        assert (view["closing_sat"], view["reserved_sat"], view["sums"]["paid_out_sat"]) == (
            90_000,
            80_000,
            0,
        )

        txid = await shop.send(await shop.build())
        await shop.mine()
        view = await asked(shop, "/statement?since=0&lines=50")
        sums, lines = view["sums"], view["lines"]
        assert (view["opening_sat"], view["closing_sat"], view["reserved_sat"]) == (0, 10_000, 0)
        assert (sums["gross_sat"], sums["reversed_sat"], sums["operator_fee_sat"], sums["net_sat"]) == (
            100_000,
            50_000,
            10_000,
            90_000,
        )
        assert sums["paid_out_sat"] == await shop.received_sat(paid.address)
        assert sums["paid_out_sat"] + sums["network_fee_sat"] == 80_000
        assert sums["refunds_sat"] == await shop.received_sat(returned.address)
        assert sums["refunds_sat"] + sums["refunds_network_fee_sat"] == 50_000
        assert Counter(line["kind"] for line in lines) == {
            "sale": 3,
            "sale_reversal": 1,
            "payout": 1,
            "refund": 1,
        }
        by_kind = {line["kind"]: line for line in lines}
        assert by_kind["payout"]["transactions"] == by_kind["refund"]["transactions"] == [txid]
        assert by_kind["refund"]["invoice_id"] == sold[0].id == by_kind["sale_reversal"]["invoice_id"]
        assert by_kind["refund"]["reference"] == sold[0].invoice["reference"]
        outputs = (await shop.till.invoice(sold[0]))["outputs"]
        assert by_kind["sale_reversal"]["transactions"] == [f"{outputs[0]['txid']}:{outputs[0]['vout']}"]
        assert {line["offer_id"] for line in lines if line["kind"] == "sale"} == {
            one.invoice["offer_id"] for one in sold
        }

        rows = list(csv.DictReader(io.StringIO(await asked(shop, "/statement.csv?since=0"), newline="")))
        assert [row["balance_sat"] for row in rows[1:-2]] == [str(line["balance_sat"]) for line in lines]
        after = await asked(shop, "/earnings?since=0")
        assert (after["received_sat"], after["fee_sat"], after["refunding_sat"]) == (90_000, 10_000, 0)
        assert sum(day["received_sat"] for day in after["days"]) == view["sums"]["net_sat"]

        held = (await books_of(shop)).held
        coins_sat = await shop.agree()
        assert held.sum_msat == coins_sat * 1_000
        assert {id_: amount // 1_000 for id_, amount in held.sellers_msat.items()} == {shop.seller_id: 10_000}
        await _export_agrees(shop, coins_sat, journal_programs, tmp_path)


async def _export_agrees(shop: HostedShop, coins_sat: int, programs: list[str], folder: Path) -> None:
    balances = await shop.balances_sat()
    text = await exported(shop, Format.HLEDGER)
    totals = Counter({account: msat // 1_000 for account, msat in journal_totals(text).items()})
    # A debit is above zero there, a credit here.
    assert totals[CHAIN] == coins_sat == -balances[ledger.chain()]
    seller = account_name(ledger.seller(shop.seller_id), Code.SETTLED, outside=False)
    assert -totals[seller] == balances[ledger.seller(shop.seller_id)]
    assert -totals["revenues:fees"] - totals["expenses:network fee"] == balances[ledger.operator()]
    rows = list(csv.DictReader(io.StringIO(await exported(shop, Format.CSV), newline="")))
    assert len(rows) == len(re.findall(r"(?m)^\d{4}-", text))
    by_account = Counter[str]()
    for row in rows:
        by_account[row["credit"]] += int(row["amount_sat"])
        by_account[row["debit"]] -= int(row["amount_sat"])
    assert {account: amount for account, amount in by_account.items() if amount} == balances
    journal = folder / "books.journal"
    journal.write_text(text)
    for program in programs:
        words = [program, "-f", str(journal), "balance", CHAIN]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert str(coins_sat) in told.replace(",", "")
