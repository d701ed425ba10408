"""What every request goes through: an id, security headers, problems for errors, one line in the log.

The log has the route's pattern, never the address itself: ids of invoices are all that protects them from
strangers, and query strings and headers may hold secrets.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from bitcache.api.answer_headers import OUR_NAME, SECURITY_HEADERS
from bitcache.api.problems import PROBLEMS, problem_of, problem_response
from bitcache.api.routing import SERVICES, route_of
from bitcache.log import REQUEST_ID

log = logging.getLogger(__name__)
access_log = logging.getLogger("bitcache.access")

REQUEST_ID_HEADER = "Bitcache-Request-Id"
REQUEST_ID_OF: web.RequestKey[str] = web.RequestKey("request_id", str)
NO_ROUTE = "none"
CLIENT_LEFT = "left"
LEFT = (ConnectionResetError, BrokenPipeError)
"""What writing to a client raises that is gone. Refused connections are our own: to the database, say."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware: nothing but answers comes out of it."""
    request[REQUEST_ID_OF] = secrets.token_hex(8)
    mark = REQUEST_ID.set(request[REQUEST_ID_OF])
    started_at = time.monotonic()
    left = False
    try:
        try:
            response = await handler(request)
        except web.HTTPException as exc:
            response = _of_aiohttp(exc)
        except LEFT:
            response, left = web.Response(), True  # nobody reads this
        except Exception as exc:
            response = _of_error(exc)
        _note(request, None if left else response, time.monotonic() - started_at)
    finally:
        # The connection's next request has the same context.
        REQUEST_ID.reset(mark)
    return response


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer just before it goes out, streams too; pages have set their own policy already."""
    for name, text in SECURITY_HEADERS.items():
        response.headers.setdefault(name, text)
    response.headers[REQUEST_ID_HEADER] = request.get(REQUEST_ID_OF, "")
    response.headers["Server"] = OUR_NAME


def _of_aiohttp(exc: web.HTTPException) -> web.StreamResponse:
    if exc.status < 400:
        return web.Response(status=exc.status, headers=exc.headers)
    name = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}.get(exc.status, "bad-request")
    response = problem_response(PROBLEMS[name])
    if "Allow" in exc.headers:
        response.headers["Allow"] = exc.headers["Allow"]
    return response


def _of_error(exc: Exception) -> web.StreamResponse:
    problem = problem_of(exc)
    if problem is None:
        log.exception("the request failed")
        return problem_response(PROBLEMS["internal-error"])
    if problem.status >= 500:
        log.warning("%s: %s", problem.name, exc)
    return problem_response(problem, exc)


def _note(request: web.Request, response: web.StreamResponse | None, elapsed_s: float) -> None:
    """None: the client left before the answer's end, as readers of events do."""
    route = route_of(request)
    path = route.path if route else NO_ROUTE
    # Methods are the client's words: only known ones become a label.
    method = route.method if route else NO_ROUTE
    outcome = str(response.status) if response is not None else CLIENT_LEFT
    metrics = request.app[SERVICES].metrics
    metrics.requests.labels(method, path, outcome).inc()
    metrics.request_seconds.labels(path).observe(elapsed_s)
    duration_ms = round(elapsed_s * 1000)
    fields: dict[str, object] = {"method": method, "route": path, "duration_ms": duration_ms}
    size = ""
    if response is None:
        fields["left"] = True
    else:
        fields["status"] = response.status
        if (length := _length_bytes(response)) is not None:
            fields["bytes"] = length
            size = f" {length} bytes"
    access_log.info("%s %s %s %d ms%s", method, path, outcome, duration_ms, size, extra=fields)


def _length_bytes(response: web.StreamResponse) -> int | None:
    """Of the body, as far as it is known: what was announced, or else what was written."""
    if response.content_length is not None:
        return response.content_length
    return response.body_length if response.prepared else None
