"""A seller's statement, as JSON and for a spreadsheet, and the ledger behind it."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from bitcache import statement_csv
from bitcache.api.earnings import CSV, PERIOD
from bitcache.api.routing import PAGE_LIMIT_MAX, Answer, Auth, Call, Query, Route
from bitcache.api.wire_money import StatementLine, StatementPart, StatementSums, StatementView
from bitcache.earnings import Period, parse_period
from bitcache.errors import RequestInvalid
from bitcache.statement_lines import Line, Place, page, parse_line_id, portions, transfer_portions
from bitcache.statement_sums import Movement
from bitcache.statements import Balance, By, Statement, statement, whole_sats
from payments.money import sat_rounded_down
from payments.ports import Transaction

log = logging.getLogger(__name__)

WRITE_S_MAX = 30
"""A reader that takes nothing for so long is gone."""


async def get_statement(call: Call) -> Answer:
    period, by = _period(call), _by(call)
    after, limit = _after(call), _lines(call)

    async def read(tx: Transaction) -> tuple[Statement, list[Line], bool]:
        stated = await statement(tx, call.seller.account_id, period, by=by)
        lines, more = await page(tx, stated, after=after, limit=limit) if limit else ([], False)
        return stated, lines, more

    stated, lines, more = await call.services.database.read(read)
    return Answer(200, await asyncio.to_thread(_view, stated, lines, more))


async def get_statement_csv(call: Call) -> web.StreamResponse:
    return await statement_sheet(call, call.seller.account_id)


async def get_ledger_csv(call: Call) -> web.StreamResponse:
    return await ledger_sheet(call, call.seller.account_id)


async def statement_sheet(call: Call, account_id: str) -> web.StreamResponse:
    """The statement that the query asks for, as CSV, line by line. Raises PeriodInvalid, LedgerImbalance."""
    period = _period(call)
    read = partial(statement, seller_id=account_id, period=period)
    stated = await call.services.database.read(read)

    async def texts() -> AsyncIterator[str]:
        yield statement_csv.line_head(stated.opening, period)
        async for lines in portions(call.services.database, stated):
            yield await asyncio.to_thread(statement_csv.line_rows, lines, period.zone)
        yield statement_csv.line_foot(stated.closing, period)

    return await _streamed(call, texts(), filename="statement.csv")


async def ledger_sheet(call: Call, account_id: str) -> web.StreamResponse:
    """The double entries of the query's period, as CSV. Raises PeriodInvalid."""
    period = _period(call)

    async def texts() -> AsyncIterator[str]:
        yield statement_csv.transfer_head()
        async for some in transfer_portions(call.services.database, account_id, period):
            yield await asyncio.to_thread(statement_csv.transfer_rows, some, period.zone)

    return await _streamed(call, texts(), filename="ledger.csv")


async def _streamed(call: Call, texts: AsyncIterator[str], *, filename: str) -> web.StreamResponse:
    """What does not add up breaks off: a reader sees that the answer has no end."""
    response = web.StreamResponse(
        headers={
            "Cache-Control": "no-store",
            "Content-Disposition": f'attachment; filename="{filename}"',
            "Content-Type": f"{CSV}; charset=utf-8",
        }
    )
    # Trouble with the first words is still told as a problem.
    first = await anext(texts)
    await response.prepare(call.http)
    try:
        await _write(response, first)
        async for text in texts:
            await _write(response, text)
        await response.write_eof()
    except Exception as exc:
        if not isinstance(exc, ConnectionError | TimeoutError):
            log.exception("%s broke off", filename)
        # The answer has begun: another one must not be put into the middle of it.
        if call.http.transport is not None:
            call.http.transport.abort()
        raise ConnectionResetError("a table broke off") from exc
    return response


async def _write(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(WRITE_S_MAX):
        await response.write(text.encode())


def _period(call: Call) -> Period:
    return parse_period(call.query("since"), call.query("until"), call.query("tz"), now=call.services.clock())


def _by(call: Call) -> By:
    by = call.query("by") or By.MONTH
    if by not in [*By]:
        raise RequestInvalid("`by` is day or month.", field="by")
    return By(by)


def _after(call: Call) -> Place | None:
    text = call.query("after")
    if text is None:
        return None
    place = parse_line_id(text)
    if place is None:
        raise RequestInvalid("`after` is the `next` of the answer before.", field="after")
    return place


def _lines(call: Call) -> int:
    text = call.query("lines")
    if text is None:
        return 0
    if not re.fullmatch("[0-9]{1,3}", text) or not 0 <= int(text) <= PAGE_LIMIT_MAX:
        raise RequestInvalid(f"`lines` is a number from 0 to {PAGE_LIMIT_MAX}.", field="lines")
    return int(text)


def _view(stated: Statement, lines: list[Line], more: bool) -> StatementView:
    return StatementView(
        since=stated.period.since,
        until=stated.period.until,
        opening_sat=sat_rounded_down(stated.opening.balance_msat),
        closing_sat=sat_rounded_down(stated.closing.balance_msat),
        reserved_sat=sat_rounded_down(stated.closing.reserved_msat),
        direct_opening_sat=sat_rounded_down(stated.opening.direct_msat),
        direct_closing_sat=sat_rounded_down(stated.closing.direct_msat),
        sums=_sums(stated.opening, stated.moved),
        parts=[StatementPart(part.name, _sums(part.before, part.moved)) for part in stated.parts],
        lines=[_line(line) for line in lines],
        next=lines[-1].place.line_id if more else None,
    )


def _sums(before: Balance, moved: Movement) -> StatementSums:
    whole = whole_sats(before, moved)
    return StatementSums(
        gross_sat=whole.gross_sat,
        metered_sat=whole.metered_sat,
        reversed_sat=sat_rounded_down(moved.reversed_msat),
        operator_fee_sat=whole.fee_sat,
        net_sat=whole.net_sat,
        corrections_sat=sat_rounded_down(moved.corrections_msat),
        paid_out_sat=sat_rounded_down(moved.paid_out_msat),
        network_fee_sat=sat_rounded_down(moved.network_fee_msat),
        refunds_sat=sat_rounded_down(moved.refunded_msat),
        refunds_network_fee_sat=sat_rounded_down(moved.refund_network_fee_msat),
        direct_sat=sat_rounded_down(moved.direct_msat),
    )


def _line(line: Line) -> StatementLine:
    facts = line.facts
    return StatementLine(
        line_id=line.place.line_id,
        at=line.place.at,
        kind=line.place.kind.value,
        reference=facts.invoice_reference,
        invoice_id=facts.invoice_id,
        payout_id=facts.payout_id,
        offer_id=facts.offer_id,
        parcel_id=facts.parcel_id,
        transactions=list(facts.transactions),
        gross_sat=line.gross_sat,
        operator_fee_sat=line.whole.fee_sat,
        network_fee_sat=sat_rounded_down(line.network_fee_msat),
        net_sat=line.net_sat,
        change_sat=line.whole.change_sat,
        balance_sat=sat_rounded_down(line.balance_msat),
    )


_LINES = {"type": "integer", "minimum": 0, "maximum": PAGE_LIMIT_MAX}

ROUTES = (
    Route(
        method="GET",
        path="/statement",
        handler=get_statement,
        operation_id="getStatement",
        summary="What the operator has of the seller's, and how it came about: by month or day, by line",
        responses={200: StatementView},
        problems=("invalid-value",),
        auth=Auth.SELLER,
        query=(
            *PERIOD,
            Query("by", "`day` or `month`: what is summed; by default months"),
            Query("lines", "at most so many lines; by default none", _LINES),
            Query("after", "`next` of the answer before"),
        ),
    ),
    Route(
        method="GET",
        path="/statement.csv",
        handler=get_statement_csv,
        operation_id="getStatementCsv",
        summary="The statement for a spreadsheet, every line",
        responses={200: CSV},
        problems=("invalid-value",),
        auth=Auth.SELLER,
        query=PERIOD,
    ),
    Route(
        method="GET",
        path="/ledger.csv",
        handler=get_ledger_csv,
        operation_id="getLedgerCsv",
        summary="Every transfer of the double-entry ledger on the seller's accounts",
        responses={200: CSV},
        problems=("invalid-value",),
        auth=Auth.SELLER,
        query=PERIOD,
    ),
)
