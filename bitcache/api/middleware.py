"""What every request goes through: an id, security headers, problems for errors, one line in the log.

The log has the route's pattern, never the address itself: ids of invoices are all that protects them from
strangers, and query strings and headers may hold secrets.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from bitcache.api.problems import PROBLEMS, problem_of, problem_response
from bitcache.api.routing import SERVICES, route_of

log = logging.getLogger(__name__)
access_log = logging.getLogger("bitcache.access")

REQUEST_ID_HEADER = "Bitcache-Request-Id"
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
NO_ROUTE = "none"
CLIENT_LEFT = "left"
LEFT = (ConnectionResetError, BrokenPipeError)
"""What writing to a client raises that is gone. Refused connections are our own: to the database, say."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware: nothing but answers comes out of it."""
    request[REQUEST_ID] = secrets.token_hex(8)
    started_at = time.monotonic()
    outcome = ""
    try:
        response = await handler(request)
    except web.HTTPException as exc:
        response = _of_aiohttp(exc)
    except LEFT:
        response, outcome = web.Response(), CLIENT_LEFT  # nobody reads this
    except Exception as exc:
        response = _of_error(request, exc)
    _note(request, outcome or str(response.status), time.monotonic() - started_at)
    return response


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer just before it goes out, streams too; pages have set their own policy already."""
    for name, text in SECURITY_HEADERS.items():
        response.headers.setdefault(name, text)
    response.headers[REQUEST_ID_HEADER] = request.get(REQUEST_ID, "")
    response.headers["Server"] = "bitcache"


def _of_aiohttp(exc: web.HTTPException) -> web.StreamResponse:
    if exc.status < 400:
        return web.Response(status=exc.status, headers=exc.headers)
    name = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}.get(exc.status, "bad-request")
    response = problem_response(PROBLEMS[name])
    if "Allow" in exc.headers:
        response.headers["Allow"] = exc.headers["Allow"]
    return response


def _of_error(request: web.Request, exc: Exception) -> web.StreamResponse:
    problem = problem_of(exc)
    if problem is None:
        log.exception("request %s failed", request[REQUEST_ID])
        return problem_response(PROBLEMS["internal-error"])
    if problem.status >= 500:
        log.warning("request %s: %s", request[REQUEST_ID], exc)
    return problem_response(problem, exc)


def _note(request: web.Request, outcome: str, elapsed_s: float) -> None:
    """`outcome` is the status, or that the client left before the answer's end, as readers of events do."""
    route = route_of(request)
    path = route.path if route else NO_ROUTE
    # Methods are the client's words: only known ones become a label.
    method = route.method if route else NO_ROUTE
    metrics = request.app[SERVICES].metrics
    metrics.requests.labels(method, path, outcome).inc()
    metrics.request_seconds.labels(path).observe(elapsed_s)
    access_log.info("%s %s %s %.0f ms %s", method, path, outcome, elapsed_s * 1000, request[REQUEST_ID])
