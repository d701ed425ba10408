"""Holds the served OpenAPI document true: every response of a test must be one that the document describes.

Stricter than the document itself, by which clients ignore fields they do not know: here an object may have no
field but those described, so that a field cannot be added without being documented.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import aiohttp
from jsonschema import Draft202012Validator

Document: TypeAlias = dict[str, Any]
API = "/api/v1/"
JSON_TYPES = frozenset({"application/json", "application/problem+json"})


class Undocumented(AssertionError):
    """A response that the document does not describe."""


class OpenApiCheck:
    """Judges responses by one document, and remembers which operations and statuses it has seen."""

    def __init__(self, document: Document) -> None:
        self._document = _strict(document)
        self._paths = [(_pattern(path), operations) for path, operations in self._document["paths"].items()]
        self.seen: set[tuple[str, int]] = set()

    def check(
        self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes | None
    ) -> None:
        """Raise Undocumented unless the document describes this response. `body` None: not looked at."""
        where = f"{method} {path} -> {status}"
        operation = self._find(method, path)
        if operation is None:
            raise Undocumented(f"{where}: no such operation")
        response = operation["responses"].get(str(status))
        if response is None:
            raise Undocumented(f"{where}: documented are {', '.join(operation['responses'])}: {body!r:.300}")
        for name, header in response.get("headers", {}).items():
            if header["required"] and name not in headers:
                raise Undocumented(f"{where}: the header {name} is missing")
        self._check_body(where, response.get("content", {}), headers.get("Content-Type", ""), body)
        self.seen.add((operation["operationId"], status))

    async def middleware(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """For `ClientSession(middlewares=...)`: fails the test whose request got an undocumented answer.

        Pages are not part of the document, nor are answers to what no route matches.
        """
        response = await handler(request)
        path = request.url.path
        unrouted = response.status in {404, 405} and self._find(request.method, path) is None
        if not path.startswith(API) or unrouted:
            return response
        body = await response.read() if response.content_type in JSON_TYPES else None
        self.check(request.method, path, response.status, response.headers, body)
        return response

    def _find(self, method: str, path: str) -> Document | None:
        for pattern, operations in self._paths:
            if pattern.fullmatch(path) and method.lower() in operations:
                return dict(operations[method.lower()])
        return None

    def _check_body(self, where: str, content: Document, content_type: str, body: bytes | None) -> None:
        media_type = content_type.partition(";")[0].strip()
        if not content:
            if body:
                raise Undocumented(f"{where}: a body where none is documented: {body!r:.200}")
            return
        if media_type not in content:
            raise Undocumented(f"{where}: {media_type or 'no content type'} instead of {', '.join(content)}")
        if media_type not in JSON_TYPES or body is None:
            return
        # The schema refers to #/components/schemas/...: it must be there for it.
        rooted = {**content[media_type]["schema"], "components": self._document["components"]}
        validator = Draft202012Validator(rooted)
        errors = [error.message for error in validator.iter_errors(json.loads(body))]
        if errors:
            raise Undocumented(f"{where}: {'; '.join(errors)[:500]}")


def _pattern(path: str) -> re.Pattern[str]:
    """/files/{file_id}/parts/{part_no} as a pattern of whole paths."""
    literals = re.split(r"\{[a-z_]+\}", path)
    return re.compile("[^/]+".join(re.escape(literal) for literal in literals))


def _strict(node: Any) -> Any:
    """A copy in which every described object refuses further fields."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {key: _strict(value) for key, value in node.items()}
    if node.get("type") == "object" and "properties" in node:
        copy["additionalProperties"] = False
    return copy
