"""What a seller earned: GET /earnings as JSON, /earnings.csv for a spreadsheet."""

from aiohttp import web

from bitcache.api.routing import Answer, Auth, Call, Query, Route
from bitcache.api.wire_money import EarningsView
from bitcache.earnings import earnings, earnings_csv, parse_period

CSV = "text/csv"
UNIX_SECONDS = {"type": "integer", "minimum": 0}


async def get_earnings(call: Call) -> Answer:
    return Answer(200, await _view(call))


async def get_earnings_csv(call: Call) -> web.StreamResponse:
    return web.Response(
        text=earnings_csv(await _view(call)),
        content_type=CSV,
        charset="utf-8",
        headers={
            "Cache-Control": "no-store",
            "Content-Disposition": 'attachment; filename="earnings.csv"',
        },
    )


async def _view(call: Call) -> EarningsView:
    services, seller_id = call.services, call.seller.account_id
    period = parse_period(call.query("since"), call.query("until"), call.query("tz"), now=services.clock())
    return await services.database.read(lambda tx: earnings(tx, seller_id, period))


PERIOD = (
    Query("since", "Unix seconds; by default 30 days before `until`", UNIX_SECONDS),
    Query("until", "Unix seconds, not included; by default now", UNIX_SECONDS),
    Query("tz", "IANA name of the time zone whose days are meant; by default UTC"),
)

ROUTES = (
    Route(
        method="GET",
        path="/earnings",
        handler=get_earnings,
        operation_id="getEarnings",
        summary="Settled sales by parcel and day, what is pending, what is owed to buyers",
        responses={200: EarningsView},
        problems=("invalid-value",),
        auth=Auth.SELLER,
        query=PERIOD,
    ),
    Route(
        method="GET",
        path="/earnings.csv",
        handler=get_earnings_csv,
        operation_id="getEarningsCsv",
        summary="Settled sales by parcel and day, for a spreadsheet",
        responses={200: CSV},
        problems=("invalid-value",),
        auth=Auth.SELLER,
        query=PERIOD,
    ),
)
