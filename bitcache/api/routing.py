"""One table of routes: the server's dispatch and the OpenAPI document are both made from it.

A handler gets a `Call` and gives an `Answer`, or a prepared stream. What is declared here is done here, once,
for every route: authentication, limits on the body before it is read, strict decoding, Idempotency-Key.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from aiohttp import web
from msgspec import Struct

from bitcache.accounts import Seller
from bitcache.api import auth, idempotency
from bitcache.api.bodies import decode, encode, json_response, read_body
from bitcache.api.client_address import client_address, is_proxied
from bitcache.errors import RequestInvalid
from bitcache.ids import ID_PATTERN, is_id
from bitcache.services import Services
from payments.ports import Transaction

BODY_BYTES_MAX = 64 * 1024
PAGE_LIMIT_DEFAULT = 50
PAGE_LIMIT_MAX = 200
PATH_PARAMETERS = {"part_no": "[0-9]{1,7}", "static_name": "[a-z0-9-]{1,40}[.][a-z]{2,4}"}
"""Patterns of path parameters; those ending in `_id` are ids. Anything else never reaches a handler: 404."""

SERVICES: web.AppKey[Services] = web.AppKey("services", Services)
ROUTE_ATTRIBUTE = "bitcache_route"

RequestStruct = TypeVar("RequestStruct", bound=Struct)


class Auth(Enum):
    NONE = "none"
    SELLER = "seller"
    """`Authorization: Bearer bcs_...`"""
    GRANT = "grant"
    """`Authorization: Bearer bcg_...`, or the Payment scheme; the handler checks it."""
    PAYMENT = "payment"
    """`Authorization: Payment`; the handler checks it."""


class BodyKind(Enum):
    JSON = "json"
    """Read whole and decoded into the route's request struct before the handler runs."""
    STREAM = "stream"
    """Left to the handler."""


@dataclass(frozen=True, slots=True)
class Header:
    """A request or response header that the document names."""

    name: str
    description: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter. Those not declared are refused, so that a misspelt filter never means "all"."""

    name: str
    description: str
    schema: Mapping[str, object] = field(default_factory=lambda: {"type": "string"})


PAGE_QUERY = (
    Query("after", "`next` of the page before", {"type": "string", "pattern": f"^{ID_PATTERN}$"}),
    Query("limit", "at most so many items", {"type": "integer", "minimum": 1, "maximum": PAGE_LIMIT_MAX}),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer; `body` None is an empty one."""

    status: int
    body: Struct | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, authenticated and with its body decoded as its route says."""

    http: web.Request
    services: Services
    decoded: Struct | None
    body_hash: bytes
    authenticated: Seller | None

    @property
    def seller(self) -> Seller:
        """Who calls; only on routes with Auth.SELLER."""
        assert self.authenticated is not None, "this route has no seller"
        return self.authenticated

    @property
    def client(self) -> str:
        """Whose limits count; not who it is."""
        forwarded_for = ",".join(self.http.headers.getall("X-Forwarded-For", [])) or None
        return client_address(self.http.remote, forwarded_for, self.services.config.proxies)

    @property
    def is_proxied(self) -> bool:
        """Whether a trusted proxy passed the request on, rather than a local client made it."""
        return is_proxied(
            self.http.remote, self.http.headers.get("X-Forwarded-For"), self.services.config.proxies
        )

    def body(self, kind: type[RequestStruct]) -> RequestStruct:
        """The decoded body, of the type the route declares."""
        assert isinstance(self.decoded, kind)
        return self.decoded

    def path(self, name: str) -> str:
        return self.http.match_info[name]

    def query(self, name: str) -> str | None:
        return self.http.query.get(name)

    def page(self) -> tuple[str | None, int]:
        """(after, limit) of a list. Raises RequestInvalid."""
        after, limit = self.query("after"), self.query("limit")
        if after is not None and not is_id(after):
            raise RequestInvalid("`after` is the `next` of the page before, an id.", field="after")
        if limit is None:
            return after, PAGE_LIMIT_DEFAULT
        if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= PAGE_LIMIT_MAX:
            raise RequestInvalid(f"`limit` is a number from 1 to {PAGE_LIMIT_MAX}.", field="limit")
        return after, int(limit)

    async def create(self, make: Callable[[Transaction], Awaitable[Answer]]) -> web.Response:
        """Run `make` in a write transaction; with an Idempotency-Key once, and the same answer later."""

        async def made(tx: Transaction) -> tuple[int, bytes]:
            answer = await make(tx)
            return answer.status, encode(answer.body)

        status, octets = await idempotency.once(
            self.services,
            account_id=self.seller.account_id,
            key=self.http.headers.get(idempotency.HEADER),
            request_hash=self.body_hash,
            make=made,
        )
        return json_response(status, octets)


Handler = Callable[[Call], Awaitable[Answer | web.StreamResponse]]
ResponseKind = type[Struct] | str | None
"""A body struct, a content type, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation. `path` is as in OpenAPI, such as `/files/{file_id}`; `table` puts /api/v1 before it."""

    method: str
    path: str
    handler: Handler
    operation_id: str
    summary: str
    responses: Mapping[int, ResponseKind]
    problems: tuple[str, ...] = ()
    """Names from `bitcache.api.problems`, besides those every such route can give (`problems_of`)."""
    request: type[Struct] | None = None
    auth: Auth = Auth.NONE
    body: BodyKind = BodyKind.JSON
    body_bytes_max: int = BODY_BYTES_MAX
    idempotent: bool = False
    """A creating POST that takes Idempotency-Key: its handler uses `Call.create`."""
    query: tuple[Query, ...] = ()
    request_headers: tuple[Header, ...] = ()
    response_headers: tuple[Header, ...] = ()
    documented: bool = True
    """False for pages: they are not part of the API's document."""


def problems_of(route: Route) -> tuple[str, ...]:
    """Every problem the route can answer with: its own, and those that follow from what it declares."""
    # Any query parameter that is not declared is refused, and malformed ids are not found.
    names = {*route.problems, "bad-request", "internal-error"}
    if 503 not in route.responses:
        names |= {"database-unavailable"}
    if "{" in route.path:
        names |= {"not-found"}
    if route.auth is Auth.SELLER:
        names |= {"token-missing", "token-invalid"}
    if route.request is not None:
        names |= {"invalid-value", "too-large", "too-slow"}
    if route.method not in {"GET", "HEAD"}:
        names |= {"disk-full"}
    if route.idempotent:
        names |= {"idempotency-key-reused"}
    return tuple(sorted(names))


def add_routes(app: web.Application, routes: tuple[Route, ...]) -> None:
    """Serve `routes`. HEAD goes with GET only where it is declared."""
    for route in routes:
        app.router.add_route(route.method, _aiohttp_path(route.path), _served(route))


def route_of(request: web.Request) -> Route | None:
    """The route a request was matched with; None for 404 and 405."""
    return getattr(request.match_info.handler, ROUTE_ATTRIBUTE, None)


def _served(route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        services = request.app[SERVICES]
        _refuse_unknown_query(route, request)
        seller = await auth.seller(services, request) if route.auth is Auth.SELLER else None
        decoded, body_hash = None, b""
        if route.request is not None and route.body is BodyKind.JSON:
            octets = await read_body(request, limit_bytes=route.body_bytes_max)
            decoded = decode(octets, route.request)
            body_hash = idempotency.request_hash(request.method, request.path, octets)
        answer = await route.handler(Call(request, services, decoded, body_hash, seller))
        if isinstance(answer, Answer):
            return json_response(answer.status, encode(answer.body), answer.headers)
        return answer

    setattr(serve, ROUTE_ATTRIBUTE, route)
    return serve


def _refuse_unknown_query(route: Route, request: web.Request) -> None:
    if not route.documented:
        return
    known = {query.name for query in route.query}
    for name in request.query:
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise RequestInvalid(
                f"Unknown query parameter `{name[:40]}`. Known here: {allowed}.", field=name[:40]
            )


def _aiohttp_path(path: str) -> str:
    """Path parameters with their patterns, so that malformed ids are simply not found."""

    def with_pattern(match: re.Match[str]) -> str:
        name = match[1]
        pattern = ID_PATTERN if name.endswith("_id") else PATH_PARAMETERS[name]
        return f"{{{name}:{pattern}}}"

    return re.sub(r"\{([a-z_]+)\}", with_pattern, path)
