"""`bitcache statement` and `bitcache ledger`: what the installed program prints, and what it refuses."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path

from typer.testing import CliRunner

from bitcache import accounts, config_file
from bitcache.cli.main import app
from bitcache.db.engine import Database
from bitcache.setup import initialise
from payments.ports import Transaction
from tests.statement_histories import START, History, Step
from tests.till import open_nodeless_till

DAY_S = 86_400
STEPS = (
    Step("sale", 0, 0, (50_000,), 10),
    Step("sale", 60, 0, (30_000,), 10),
    Step("direct sale", 60, 0, (7_000,), 0),
    Step("payout", 60, 0, (20_000,), 0),
    Step("mine", 60, 0, (300,), 0),
    Step("sale", 20 * DAY_S, 0, (1_000,), 10),
    Step("payout", 60, 0, (9_000,), 0),
)


async def command(*words: str, **variables: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    done = await asyncio.to_thread(CliRunner().invoke, app, words, env=variables)
    return done.exit_code, done.stdout_bytes.decode(), " ".join(done.stderr.split())


async def test_a_seller_reads_a_month_and_takes_every_line_away(tmp_path: Path) -> None:
    async with open_nodeless_till(tmp_path) as till:
        history = History(till.account.account_id)
        await till.server.services.database.write(lambda tx: history.play(tx, STEPS))
        variables = {"BITCACHE_SERVER": till.server.url, "BITCACHE_TOKEN": till.account.token}
        code, out, err = await command("statement", "--month", "2026-09", **variables)
        assert code == 0, err
        told = [" ".join(line.split()) for line in out.splitlines()]
        assert told[:8] == [
            "Balance before 0 sat",
            "Sold, hosted 80,000 sat",
            "Sold per chunk 0 sat",
            "Operator's fee -8,000 sat",
            "Paid out, arrived -19,700 sat",
            "Paid out, to the network -300 sat",
            "Corrections 0 sat",
            "Balance after 52,000 sat",
        ]
        assert "Sold to your own wallet: 7,000 sat." in told
        code, out, err = await command(
            "statement", "--since", "2026-10-01", "--until", "2026-10-31", "--csv", **variables
        )
        assert code == 0, err
        rows = list(csv.DictReader(io.StringIO(out, newline="")))
        assert [(row["kind"], row["balance_sat"]) for row in rows] == [
            ("opening_balance", "52000"),
            ("sale", "52900"),
            ("closing_balance", "52900"),
            ("of_it_reserved", "9000"),
        ]
        for words, said in (
            (("--month", "2026-13"), "Write it as 2030-01"),
            (("--month", "2026-09", "--since", "2026-09-01"), "Choose --month, or"),
            (("--since", "2026-09-02", "--until", "2026-09-01"), "after the last"),
        ):
            code, _, err = await command("statement", *words, **variables)
            assert (code, said in err) == (2, True), err


async def test_the_operator_sees_for_whom_money_is_held_and_takes_the_books_away(tmp_path: Path) -> None:
    await initialise(tmp_path, network="regtest")
    data = ("--data", str(tmp_path))
    database = Database(config_file.load(tmp_path, {}).database)

    async def write(tx: Transaction) -> str:
        account_id = await accounts.register(tx, name="Ada", now=START)
        await History(account_id).play(tx, STEPS)
        return account_id

    account_id = await database.write(write)
    await database.close()
    code, out, err = await command("ledger", "show", "--month", "2026-09", *data, "--json")
    assert code == 0, err
    month = json.loads(out)
    assert (month["sums"]["hosted_sat"], month["sums"]["fees_sat"], month["sums"]["direct_sat"]) == (
        80_000,
        8_000,
        7_000,
    )
    assert (month["sums"]["paid_to_sellers_sat"], month["sums"]["network_fee_sat"]) == (19_700, 300)
    assert month["held"]["sellers"] == [{"account_id": account_id, "name": "Ada", "balance_sat": 52_000}]
    # A payout asked for in October is no part of September's end.
    assert (month["held"]["payouts_sat"], month["held"]["operator_sat"], month["held"]["sum_sat"]) == (
        0,
        8_000,
        60_000,
    )
    code, out, err = await command("ledger", "show", "--month", "2026-10", *data)
    assert code == 0, err
    told = [" ".join(line.split()) for line in out.splitlines()]
    assert {"For Ada 43,900 sat", "For payouts under way 9,000 sat", "In the wallet 61,000 sat"} <= set(told)

    code, journal, err = await command("ledger", "export", "--format", "hledger", *data)
    assert code == 0, err
    assert journal.startswith("; The ledger of a Bitcache server.")
    assert f"    liabilities:sellers:{account_id}  -50000 sat\n" in journal
    assert f"    outside:direct:{account_id}  -7000 sat\n" in journal
    code, table, err = await command("ledger", "export", "--since", "2026-10-01", *data)
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    assert sorted(row["code"] for row in rows) == ["fee", "held", "received", "settled"]
