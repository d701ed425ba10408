"""A short soak of payouts (`make soak-payouts` is the long one): deaths, a reorg, refunds, and right books.

And its checks are worth something: whatever is altered in what a soak leaves, they name it.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from regtest.install import BitcoindInstallation
from tests.payout_soak import checks
from tests.payout_soak.evidence import Evidence
from tests.payout_soak.run import Size, played, story_of
from tests.payout_soak.story import MUST

SEED = 3
SHORT = Size(sellers=2, buyers=1, steps=6, depths=(3,))
LONG = Size(sellers=10, buyers=100, steps=500)

ONE_PAID = "(SELECT id FROM transfers WHERE code = 'paid_out' ORDER BY id LIMIT 1)"
ONE_DONE = "(SELECT id FROM payouts WHERE state = 'done' ORDER BY id LIMIT 1)"
OF_SELLER = "(SELECT id FROM payouts WHERE state = 'done' AND kind = 'seller' ORDER BY id LIMIT 1)"
OF_BUYER = "(SELECT id FROM payouts WHERE state = 'done' AND kind = 'refund' ORDER BY id LIMIT 1)"
TAMPERING = (
    (f"UPDATE transfers SET amount_msat = amount_msat + 1 WHERE id = {ONE_PAID}", "its addresses have"),
    (f"DELETE FROM transfers WHERE id = {ONE_PAID}", "msat, not"),
    ("UPDATE balances SET amount_msat = amount_msat + 1 WHERE account = 'operator'", "operator is kept as"),
    ("DELETE FROM balances WHERE account = 'operator'", "the balances sum to"),
    (f"UPDATE payouts SET state = 'cancelled' WHERE id = {ONE_DONE}", "is cancelled, and paid 1 times"),
    (f"UPDATE payouts SET state = 'batched' WHERE id = {ONE_DONE}", "ends as batched"),
    (f"DELETE FROM payouts WHERE id = {ONE_DONE}", "is not in the database"),
    (f"UPDATE payouts SET address = 'elsewhere' WHERE id = {ONE_DONE}", "is another one in the database"),
    (f"UPDATE payouts SET amount_sat = amount_sat + 1 WHERE id = {OF_SELLER}", "out: "),
    (f"UPDATE payouts SET amount_sat = amount_sat + 1 WHERE id = {OF_BUYER}", "sat refunded: "),
    ("UPDATE version_shares SET arrives_sat = arrives_sat + 1", "sat, its payouts say"),
    ("UPDATE version_shares SET vout = 1 - vout WHERE vout < 2", "the block says"),
    ("UPDATE payout_versions SET fee_sat = fee_sat + 1", "to the network, its version says"),
    ("UPDATE payout_versions SET txid = NULL", "is nobody's"),
    ("UPDATE payout_batches SET state = 'dead' WHERE state = 'done'", "1 of its versions are mined"),
    ("UPDATE invoices SET status = 'open' WHERE status = 'settled'", "is open"),
    ("DELETE FROM invoices WHERE status = 'settled'", "is not in the database so"),
    ("DELETE FROM transfers WHERE code = 'explained'", "explained are 0 msat"),
)


def test_a_seed_is_a_story() -> None:
    assert story_of(1, LONG) == story_of(1, LONG)
    assert story_of(1, LONG) != story_of(2, LONG)
    told = story_of(1, LONG)
    assert set(MUST) <= set(told.steps)
    assert {type(step) for step in MUST} < {type(step) for step in told.steps}
    assert told.buyers >= LONG.buyers


def test_a_short_soak(bitcoind: BitcoindInstallation, tmp_path: Path) -> None:
    """One test, since another worker would have to play it again."""
    kept = tmp_path / "kept.db"
    outcome = played(SEED, SHORT, loud=True, keep=kept)
    done = ("seller payouts done", "refund payouts done", "batches done", "versions")
    for what in (*done, "reversals", "server deaths", "admin deaths"):
        assert outcome.counts[what], (what, outcome.counts)
    assert outcome.evidence is not None
    evidence = msgspec.json.decode(msgspec.json.encode(outcome.evidence), type=Evidence)
    assert checks.everything(kept, evidence) == []

    for number, (statement, named) in enumerate(TAMPERING):
        file = tmp_path / f"tampered-{number}.db"
        shutil.copy(kept, file)
        with closing(sqlite3.connect(file)) as rows, rows:
            changed = rows.execute(statement).rowcount
        assert changed > 0, f"the soak left nothing for: {statement}"
        found = checks.everything(file, evidence)
        assert any(named in line for line in found), (statement, found)

    richer = msgspec.structs.replace(evidence, wallet_sat=evidence.wallet_sat + 1)
    assert any("the wallet has" in line for line in checks.everything(kept, richer))
