"""Telling the operator that an offer should not be here. Who tells it is not kept, unless they say it.

GET  /d/{offer_id}/report
POST /d/{offer_id}/report
"""

from collections.abc import Mapping

from aiohttp import web

from bitcache import reports
from bitcache.errors import TooManyRequests, ValueRefused
from bitcache.web.visit import Visit, later, page_route

REPORT_FORM = "report"
# A character may take 12 bytes in a form.
FORM_BYTES_MAX = 12 * (reports.MESSAGE_LENGTH_MAX + reports.CONTACT_LENGTH_MAX) + 4_096


async def show_report(visit: Visit) -> web.Response:
    # An address that is none must say so before anybody writes a page of text.
    offer_id, now = visit.call.path("offer_id"), visit.now()
    await visit.services.database.read(lambda tx: visit.services.offers.load(tx, offer_id, now=now))
    return _page(visit)


async def report(visit: Visit) -> web.Response:
    fields, _ = await visit.form(REPORT_FORM, limit_bytes=FORM_BYTES_MAX)
    services, offer_id = visit.services, visit.call.path("offer_id")
    try:
        services.limits.reports.check(visit.call.client)
        await services.database.write(
            lambda tx: reports.file_report(
                tx,
                offer_id,
                reason=fields.get("reason", ""),
                message=fields.get("message", ""),
                contact=fields.get("contact", ""),
                kept_max=services.config.limits.reports_kept_max,
                now=visit.now(),
            )
        )
    except TooManyRequests as exc:
        return later(_page(visit, typed=fields, wrong={"form": "e_too-many-requests"}, status=429), exc)
    except ValueRefused as exc:
        return _page(visit, typed=fields, wrong={str(exc.field): f"report_{exc.field}_bad"}, status=422)
    return _page(visit, sent=True)


def _page(
    visit: Visit,
    *,
    typed: Mapping[str, str] | None = None,
    wrong: Mapping[str, str] | None = None,
    sent: bool = False,
    status: int = 200,
) -> web.Response:
    fields = {
        "offer_id": visit.call.path("offer_id"),
        "reasons": reports.REASONS,
        "message_length_max": reports.MESSAGE_LENGTH_MAX,
        "contact_length_max": reports.CONTACT_LENGTH_MAX,
        "typed": typed or {},
        "wrong": wrong or {},
        "sent": sent,
    }
    return visit.page("report.html", fields, form=REPORT_FORM, status=status)


ROUTES = (
    page_route("GET", "/d/{offer_id}/report", show_report, "Report an offer"),
    page_route("POST", "/d/{offer_id}/report", report, "Report an offer", back="/d/{offer_id}/report"),
)
