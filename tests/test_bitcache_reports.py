"""Reports about offers: from the page to the operator's terminal, with nothing kept of who sent them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import func, select

from bitcache.config import CONFIG_FILE_NAME, LimitsConfig
from bitcache.db.tables import reports
from bitcache.reports import (
    CONTACT_LENGTH_MAX,
    MESSAGE_LENGTH_MAX,
    OPEN_PER_OFFER_MAX,
    REASONS,
    file_report,
    list_reports,
)
from bitcache.web.i18n import CATALOGUE
from tests.functional_client_crash import bitcache
from tests.plain_browser import Browser
from tests.test_bitcache_takedown import CONFIG, operator
from tests.till import Sold, Till, open_nodeless_till

# A terminal that is shown this as it is clears its screen, turns red, sets its title and writes backwards.
HOSTILE = "\x1b[2J\x1b[31m red \x1b]0;title\x07 \u202e\r\n$(reboot) <script>alert(1)</script>"


@pytest_asyncio.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    async with open_nodeless_till(tmp_path) as till:
        yield till


@pytest_asyncio.fixture
async def browser(till: Till) -> AsyncIterator[Browser]:
    async with Browser(till) as browser:
        yield browser


async def report(browser: Browser, sold: Sold, **fields: str) -> None:
    await browser.get(f"/d/{sold.offer_id}/report")
    await browser.submit(f"/d/{sold.offer_id}/report", **fields)


async def kept(till: Till) -> list[Any]:
    rows = await till.server.services.database.read(
        lambda tx: tx.execute(select(reports).order_by(reports.c.created_at))
    )
    return list(rows.all())


async def test_a_report_reaches_the_operator(till: Till, browser: Browser) -> None:
    sold = await till.offer(price_sat=0)
    await report(browser, sold, reason="copyright", message="I took\r\nthese pictures.", contact="ada@x.org")
    assert browser.status == 200
    assert "The operator has your report" in browser.text
    (row,) = await kept(till)
    assert (row.offer_id, row.reason, row.message, row.contact) == (
        sold.offer_id,
        "copyright",
        "I took\nthese pictures.",
        "ada@x.org",
    )
    (told,) = await operator(till, "reports")
    assert (told["id"], told["parcel_id"], told["seller_name"]) == (row.id, sold.parcel_id, "seller 1")
    assert (told["message"], told["handled_at"]) == (row.message, None)
    await operator(till, "reports", "--handled", row.id)
    assert await operator(till, "reports") == []
    assert [one["id"] for one in await operator(till, "reports", "--all")] == [row.id]


async def test_nothing_of_who_reports_is_kept(till: Till, browser: Browser) -> None:
    await report(browser, await till.offer(price_sat=0), reason="other")
    (row,) = await kept(till)
    assert set(row._mapping) == {
        "id", "offer_id", "created_at", "reason", "message", "contact", "handled_at",
    }  # fmt: skip
    assert (row.message, row.contact) == ("", "")
    assert "127.0.0.1" not in str(row)


async def test_a_terminal_is_shown_no_control_characters(till: Till, browser: Browser) -> None:
    await report(browser, await till.offer(price_sat=0), reason="fraud", message=HOSTILE, contact=HOSTILE)
    folder = till.server.services.config.data_folder
    (folder / CONFIG_FILE_NAME).write_text(CONFIG)
    process = await bitcache(folder, "reports", "--data", str(folder))
    out, err = await process.communicate()
    assert process.returncode == 0, err
    shown = out.decode()
    assert "$(reboot) <script>" in shown
    assert not [character for character in shown if character in "\x1b\x07\r\u202e"]


async def test_what_is_wrong_is_said_next_to_the_field_and_nothing_is_lost(
    till: Till, browser: Browser
) -> None:
    sold = await till.offer(price_sat=0)
    await report(browser, sold, message="<b>words</b>", contact="me")
    assert browser.status == 422
    assert "Choose what is wrong." in browser.text
    assert "&lt;b&gt;words&lt;/b&gt;</textarea>" in browser.text
    await report(browser, sold, reason="nonsense")
    assert browser.status == 422
    too_long = "é" * (MESSAGE_LENGTH_MAX + 1)
    await report(browser, sold, reason="other", message=too_long)
    assert browser.status == 422
    assert too_long in browser.text
    assert 'value="other" required checked' in browser.text
    await report(browser, sold, reason="other", contact="x" * (CONTACT_LENGTH_MAX + 1))
    assert browser.status == 422
    assert await kept(till) == []
    # The longest message, in characters that take the most room in a form.
    await report(browser, sold, reason="other", message="𝄞" * MESSAGE_LENGTH_MAX)
    assert browser.status == 200
    assert (await kept(till))[0].message == "𝄞" * MESSAGE_LENGTH_MAX


async def test_a_client_may_not_flood_the_operator(till: Till, browser: Browser) -> None:
    sold = await till.offer(price_sat=0)
    for _ in range(LimitsConfig().reports_per_hour):
        till.server.services.limits.reports.check("127.0.0.1")
    await report(browser, sold, reason="other", message="one more")
    assert browser.status == 429
    assert "one more</textarea>" in browser.text
    assert await kept(till) == []


async def test_a_crowd_may_not_fill_the_disk_and_older_reports_stay(till: Till) -> None:
    sold, other = await till.offer(price_sat=0), await till.offer(price_sat=0)
    database = till.server.services.database

    async def file(offer_id: str, now: int) -> None:
        await database.write(
            lambda tx: file_report(
                tx, offer_id, reason="other", message="", contact="", kept_max=1_000, now=now
            )
        )

    for now in range(OPEN_PER_OFFER_MAX + 3):
        await file(sold.offer_id, now)
    await file(other.offer_id, 0)
    assert await database.read(lambda tx: tx.scalar(select(func.count()).select_from(reports))) == (
        OPEN_PER_OFFER_MAX + 1
    )
    newest = (await database.read(lambda tx: list_reports(tx, handled=False)))[0]
    assert newest.created_at == OPEN_PER_OFFER_MAX - 1


async def test_there_is_nothing_to_report_where_there_is_no_offer(till: Till, browser: Browser) -> None:
    await browser.get(f"/d/{'a' * 26}/report")
    assert browser.status == 404
    sold = await till.offer(price_sat=0)
    await browser.get(f"/d/{sold.offer_id}/report")
    await browser.send(f"/d/{sold.offer_id}/report", reason="other")  # from another site
    assert browser.status == 403
    async with Browser(till) as stranger:
        await stranger.get(f"/d/{sold.offer_id}/report")
        browser.text = stranger.text
        await browser.submit(f"/d/{sold.offer_id}/report", reason="other")
    assert browser.status == 403
    assert await kept(till) == []


async def test_an_unknown_report_cannot_be_marked(till: Till) -> None:
    folder = till.server.services.config.data_folder
    (folder / CONFIG_FILE_NAME).write_text(CONFIG)
    process = await bitcache(folder, "reports", "--handled", "a" * 26, "--data", str(folder))
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"There is no report" in err


@pytest.mark.parametrize("language", ["en", "fr"])
def test_every_reason_has_its_words(language: str) -> None:
    assert {f"report_reason_{reason}" for reason in REASONS} <= set(CATALOGUE[language])
