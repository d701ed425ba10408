"""The OpenAPI document: valid, complete, and what the server serves; and that its check can fail."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from jsonschema import Draft202012Validator

from bitcache import VERSION
from bitcache.api.openapi import PATH, openapi_document
from bitcache.api.problems import PROBLEMS
from bitcache.api.routing import ROUTE_ATTRIBUTE, add_routes
from bitcache.api.table import ROUTES
from tests.openapi_check import Document, OpenApiCheck, Undocumented
from tests.service import running_server

METHODS = {"get", "head", "post", "put", "patch", "delete"}
# The pieces of the OpenAPI 3.1 schema that this document uses.
SCHEMA: Document = {
    "type": "object",
    "required": ["openapi", "info", "paths", "components"],
    "additionalProperties": False,
    "properties": {
        "openapi": {"const": "3.1.0"},
        "info": {"type": "object", "required": ["title", "version"]},
        "servers": {"type": "array", "items": {"type": "object", "required": ["url"]}},
        "paths": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^/"},
            "additionalProperties": {
                "type": "object",
                "propertyNames": {"enum": sorted(METHODS)},
                "additionalProperties": {"$ref": "#/$defs/operation"},
            },
        },
        "components": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "schemas": {"type": "object", "propertyNames": {"pattern": "^[A-Za-z0-9._-]+$"}},
                "securitySchemes": {
                    "type": "object",
                    "additionalProperties": {"type": "object", "required": ["type", "scheme"]},
                },
            },
        },
    },
    "$defs": {
        "operation": {
            "type": "object",
            "required": ["operationId", "summary", "responses"],
            "additionalProperties": False,
            "properties": {
                "operationId": {"type": "string", "pattern": "^[a-z][A-Za-z]+$"},
                "summary": {"type": "string", "minLength": 1},
                "parameters": {"type": "array", "items": {"$ref": "#/$defs/parameter"}},
                "requestBody": {"type": "object", "required": ["content"]},
                "responses": {
                    "type": "object",
                    "minProperties": 1,
                    "propertyNames": {"pattern": "^[1-5][0-9][0-9]$"},
                    "additionalProperties": {"$ref": "#/$defs/response"},
                },
                "security": {"type": "array", "items": {"type": "object"}},
            },
        },
        "parameter": {
            "type": "object",
            "required": ["name", "in", "schema"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "in": {"enum": ["path", "query", "header"]},
                "description": {"type": "string"},
                "required": {"type": "boolean"},
                "schema": {"type": "object"},
            },
            "if": {"properties": {"in": {"const": "path"}}},
            "then": {"required": ["required"], "properties": {"required": {"const": True}}},
        },
        "response": {
            "type": "object",
            "required": ["description"],
            "additionalProperties": False,
            "properties": {
                "description": {"type": "string"},
                "headers": {
                    "type": "object",
                    "additionalProperties": {"type": "object", "required": ["schema"]},
                },
                "content": {
                    "type": "object",
                    "additionalProperties": {"type": "object", "required": ["schema"]},
                },
            },
        },
    },
}
PROBLEM = {"type": "/problems/not-found", "title": "Not found", "status": 404, "detail": "No such invoice."}


@pytest.fixture(scope="module")
def document() -> Document:
    return openapi_document(ROUTES, version=VERSION)


@pytest.fixture
def check(document: Document) -> OpenApiCheck:
    return OpenApiCheck(document)


# --- the document -----------------------------------------------------------------------------------------


def test_the_document_is_openapi_3_1(document: Document) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(document)


def test_every_schema_is_json_schema_2020_12(document: Document) -> None:
    schemas = [*document["components"]["schemas"].values(), *_inner(document, "schema")]
    assert len(schemas) > len(ROUTES)
    for schema in schemas:
        Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: Document) -> None:
    named = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(_inner(document, "$ref")) == named


def test_operation_ids_are_unique(document: Document) -> None:
    ids = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(ids) == len(set(ids))


def test_path_parameters_are_those_of_the_path(document: Document) -> None:
    for path, _, operation in _operations(document):
        declared = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
        assert declared == re.findall(r"\{([a-z_]+)\}", path), path


def test_security_names_known_schemes(document: Document) -> None:
    known = set(document["components"]["securitySchemes"])
    for _, _, operation in _operations(document):
        assert {name for one in operation["security"] for name in one} <= known


def test_every_route_of_the_server_is_in_it(document: Document) -> None:
    app = web.Application()
    add_routes(app, ROUTES)
    served = set()
    for resource_route in app.router.routes():
        route = getattr(resource_route.handler, ROUTE_ATTRIBUTE)
        if route.documented:
            served.add((route.path, resource_route.method.lower()))
    assert served == {(path, method) for path, method, _ in _operations(document)}


def test_every_problem_can_happen_somewhere(document: Document) -> None:
    named = {name for route in ROUTES for name in route.problems}
    assert named <= set(PROBLEMS), "routes name problems that do not exist"


async def test_the_server_serves_it(document: Document, tmp_path: Path) -> None:
    async with running_server(tmp_path) as server, server.session() as http, http.get(PATH) as answer:
        assert answer.status == 200
        assert answer.content_type == "application/json"
        assert await answer.json() == json.loads(json.dumps(document))


# --- the check --------------------------------------------------------------------------------------------

INVOICE = "/api/v1/invoices/" + "a" * 26
JSON = {"Content-Type": "application/json; charset=utf-8"}
PROBLEM_JSON = {"Content-Type": "application/problem+json"}


def octets(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_a_documented_problem_passes(check: OpenApiCheck) -> None:
    check.check("GET", INVOICE, 404, PROBLEM_JSON, octets(PROBLEM))
    assert check.seen == {("getInvoice", 404)}


@pytest.mark.parametrize(
    ("status", "headers", "body", "what"),
    [
        (418, PROBLEM_JSON, octets(PROBLEM), "documented are"),
        (404, JSON, octets(PROBLEM), "instead of"),
        (404, PROBLEM_JSON, octets({**PROBLEM, "hint": "x"}), "hint"),
        (404, PROBLEM_JSON, octets({**PROBLEM, "type": "/problems/disk-full"}), "disk-full"),
        (404, PROBLEM_JSON, octets({**PROBLEM, "status": 410}), "404"),
        (404, PROBLEM_JSON, octets({"type": "/problems/not-found"}), "required"),
        (200, JSON, octets({"invoice_id": "a" * 26}), "required"),
    ],
)
def test_everything_else_fails(
    check: OpenApiCheck, status: int, headers: dict[str, str], body: bytes, what: str
) -> None:
    with pytest.raises(Undocumented, match=what):
        check.check("GET", INVOICE, status, headers, body)
    assert check.seen == set()


def test_a_402_without_a_challenge_fails(check: OpenApiCheck) -> None:
    path = f"/api/v1/offers/{'a' * 26}/files/{'b' * 26}/content"
    with pytest.raises(Undocumented, match="WWW-Authenticate"):
        check.check("HEAD", path, 402, PROBLEM_JSON, None)


def test_an_unknown_operation_fails(check: OpenApiCheck) -> None:
    with pytest.raises(Undocumented, match="no such operation"):
        check.check("DELETE", INVOICE, 204, {}, None)


def test_a_field_inside_a_list_is_checked_too(document: Document) -> None:
    view = _example(document, "ClaimView")
    path = f"{INVOICE}/claim"
    check = OpenApiCheck(document)
    check.check("POST", path, 200, JSON, octets(view))
    altered = copy.deepcopy(view)
    altered["files"][0]["name"] = "secret.pdf"
    with pytest.raises(Undocumented, match="name"):
        check.check("POST", path, 200, JSON, octets(altered))


async def test_the_client_middleware_sees_every_answer(document: Document, tmp_path: Path) -> None:
    """A server that answers what another document promises is caught in the request that meets it."""
    narrowed = copy.deepcopy(document)
    del narrowed["paths"]["/api/v1/invoices/{invoice_id}"]["get"]["responses"]["404"]
    async with running_server(tmp_path) as server:
        for promised, fails in ((document, False), (narrowed, True)):
            async with server.session(check=OpenApiCheck(promised)) as http:
                if fails:
                    with pytest.raises(Undocumented):
                        await http.get(INVOICE)
                else:
                    assert (await http.get(INVOICE)).status == 404


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _inner(node: Any, key: str) -> Iterator[Any]:
    """Every value under `key`, at any depth."""
    if isinstance(node, list):
        for item in node:
            yield from _inner(item, key)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from _inner(value, key)


def _example(document: Document, name: str) -> Any:
    """Some value of a component's schema."""
    return _value(document["components"]["schemas"], document["components"]["schemas"][name])


def _value(schemas: Document, schema: Document) -> Any:
    if "$ref" in schema:
        return _example({"components": {"schemas": schemas}}, schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return None
    match schema["type"]:
        case "object":
            return {name: _value(schemas, inner) for name, inner in schema["properties"].items()}
        case "array":
            return [_value(schemas, schema["items"])]
        case "boolean":
            return True
        case "integer":
            return schema.get("minimum", 0)
        case _:
            return "a" * (43 if "{43}" in schema.get("pattern", "") else 26)
