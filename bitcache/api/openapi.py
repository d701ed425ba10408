"""The OpenAPI 3.1 document of /api/v1, made from the table of routes and the structs of `wire`. Pure.

What the document says is what the server does, because both are made from one table; that the answers keep to
it is checked on every response of the tests. Prose is in docs/PROTOCOL.md.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from bitcache.api.idempotency import HEADER as IDEMPOTENCY_HEADER
from bitcache.api.problems import CONTENT_TYPE as PROBLEM_TYPE
from bitcache.api.problems import PROBLEMS, TYPE_PREFIX
from bitcache.api.routing import Auth, BodyKind, Call, Header, Query, ResponseKind, Route, problems_of
from bitcache.api.wire import API, ProblemView
from bitcache.ids import ID_PATTERN

Document = dict[str, Any]

PATH = f"{API}/openapi.json"
DESCRIPTION = "Files sold for bitcoin. How to use these operations together: docs/PROTOCOL.md."
REFERENCE = "#/components/schemas/{name}"
JSON_TYPE = "application/json"
UPLOAD_TYPE = "application/octet-stream"

SECURITY_SCHEMES: Mapping[str, Document] = {
    "seller": {"type": "http", "scheme": "bearer", "description": "a seller's token, bcs_..."},
    "grant": {"type": "http", "scheme": "bearer", "description": "a grant token, bcg_..."},
    "payment": {"type": "http", "scheme": "Payment", "description": "an echoed challenge, and what pays it"},
}

CHALLENGE = Header("WWW-Authenticate", "how to authenticate, or to pay", required=True)
RETRY_AFTER = Header("Retry-After", "seconds after which to ask again")
PROBLEM_HEADERS: Mapping[int, tuple[Header, ...]] = {
    401: (CHALLENGE,),
    402: (CHALLENGE,),
    429: (RETRY_AFTER,),
    503: (RETRY_AFTER,),
}


def document_route(routes: Iterable[Route], *, version: str) -> Route:
    """The route that serves the document of `routes` and of itself."""

    async def serve(_call: Call) -> web.Response:
        return web.Response(body=octets, content_type=JSON_TYPE, headers={"Cache-Control": "no-cache"})

    route = Route(
        method="GET",
        path=PATH,
        handler=serve,
        operation_id="getOpenApi",
        summary="This document",
        responses={200: JSON_TYPE},
    )
    octets = msgspec.json.encode(openapi_document((*routes, route), version=version))
    return route


def openapi_document(routes: Iterable[Route], *, version: str) -> Document:
    """The document of all documented routes."""
    documented = [route for route in routes if route.documented]
    paths: Document = {}
    for route in documented:
        operation = _operation(route)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bitcache", "version": version, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _schemas(documented), "securitySchemes": dict(SECURITY_SCHEMES)},
    }


def _operation(route: Route) -> Document:
    operation: Document = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": _responses(route),
        "security": _security(route.auth),
    }
    if body := _request_body(route):
        operation["requestBody"] = body
    return operation


def _parameters(route: Route) -> list[Document]:
    in_path = [_path_parameter(name) for name in re.findall(r"\{([a-z_]+)\}", route.path)]
    headers = list(route.request_headers)
    if route.idempotent:
        headers.append(Header(IDEMPOTENCY_HEADER, "1 to 128 visible ASCII characters, kept for a day"))
    return [*in_path, *map(_query_parameter, route.query), *map(_header_parameter, headers)]


def _path_parameter(name: str) -> Document:
    schema: Document = {"type": "string", "pattern": f"^{ID_PATTERN}$"}
    if not name.endswith("_id"):
        schema = {"type": "integer", "minimum": 0}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameter(query: Query) -> Document:
    return {"name": query.name, "in": "query", "description": query.description, "schema": dict(query.schema)}


def _header_parameter(header: Header) -> Document:
    return {
        "name": header.name,
        "in": "header",
        "description": header.description,
        "required": header.required,
        "schema": {"type": "string"},
    }


def _request_body(route: Route) -> Document | None:
    if route.request is not None:
        return {"required": True, "content": {JSON_TYPE: {"schema": _reference(route.request)}}}
    if route.body is BodyKind.STREAM:
        return {"required": True, "content": {UPLOAD_TYPE: {"schema": {}}}}
    return None


def _responses(route: Route) -> Document:
    responses: Document = {}
    for status, kind in sorted(route.responses.items()):
        responses[str(status)] = _success(kind, route)
    by_status: dict[int, list[str]] = {}
    for name in problems_of(route):
        by_status.setdefault(PROBLEMS[name].status, []).append(name)
    for status, names in sorted(by_status.items()):
        responses[str(status)] = _problem(status, names, route)
    return responses


def _success(kind: ResponseKind, route: Route) -> Document:
    response: Document = {"description": "done" if kind is None else "as asked"}
    if route.response_headers:
        response["headers"] = _headers(route.response_headers)
    if isinstance(kind, str):
        response["content"] = {kind: {"schema": {}}}
    elif kind is not None:
        response["content"] = {JSON_TYPE: {"schema": _reference(kind)}}
    return response


def _problem(status: int, names: list[str], route: Route) -> Document:
    response: Document = {"description": ", ".join(names)}
    if headers := PROBLEM_HEADERS.get(status):
        response["headers"] = _headers(headers)
    if route.method != "HEAD":
        narrowed = {"type": {"enum": [TYPE_PREFIX + name for name in names]}, "status": {"const": status}}
        schema = {"allOf": [_reference(ProblemView), {"properties": narrowed}]}
        response["content"] = {PROBLEM_TYPE: {"schema": schema}}
    return response


def _headers(headers: Iterable[Header]) -> Document:
    return {
        header.name: {
            "description": header.description,
            "required": header.required,
            "schema": {"type": "string"},
        }
        for header in headers
    }


def _security(auth: Auth) -> list[Document]:
    match auth:
        case Auth.NONE:
            return []
        case Auth.SELLER:
            return [{"seller": []}]
        case Auth.GRANT:
            return [{"grant": []}, {"payment": []}]
        case Auth.PAYMENT:
            return [{"payment": []}]


def _reference(struct: type[Struct]) -> Document:
    return {"$ref": REFERENCE.format(name=struct.__name__)}


def _schemas(routes: Iterable[Route]) -> Document:
    structs: set[type[Struct]] = {ProblemView}
    for route in routes:
        structs |= {kind for kind in (*route.responses.values(), route.request) if isinstance(kind, type)}
    ordered = sorted(structs, key=lambda struct: struct.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=REFERENCE)
    return dict(sorted(components.items()))
