"""Style, scripts and pictures of the pages: read once, sent compressed, asked for again by their hash.

    GET /static/{static_name}
    GET /sw.js                   the service worker, at the root so that it may serve every path

A browser asks each time whether its copy is still right: after an upgrade no page runs old and new scripts
together.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from aiohttp import web

from bitcache.api.routing import Call, Route
from bitcache.errors import NotFound

SERVICE_WORKER = "sw.js"
CONTENT_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# A worker runs under the policy its own script came with.
SCRIPT_POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class Asset:
    content_type: str
    octets: bytes
    compressed: bytes
    etag: str
    """Strong, quoted."""


def _read() -> Mapping[str, Asset]:
    assets = {}
    for place in resources.files(__package__).joinpath("static").iterdir():
        _, _, suffix = place.name.rpartition(".")
        if suffix in CONTENT_TYPES:
            octets = place.read_bytes()
            assets[place.name] = Asset(
                content_type=CONTENT_TYPES[suffix],
                octets=octets,
                compressed=gzip.compress(octets, mtime=0),
                etag=f'"{hashlib.sha256(octets).hexdigest()[:32]}"',
            )
    return assets


ASSETS = _read()


async def static(call: Call) -> web.Response:
    return _answer(call, call.path("static_name"))


async def service_worker(call: Call) -> web.Response:
    return _answer(call, SERVICE_WORKER)


def _answer(call: Call, name: str) -> web.Response:
    asset = ASSETS.get(name)
    if asset is None:
        raise NotFound("file", name)
    headers = {
        "ETag": asset.etag,
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": SCRIPT_POLICY,
    }
    if asset.etag in call.http.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    octets = asset.octets
    if "gzip" in call.http.headers.get("Accept-Encoding", ""):
        octets = asset.compressed
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=octets, content_type=asset.content_type, charset="utf-8", headers=headers)


ROUTES = (
    Route(
        method="GET",
        path="/static/{static_name}",
        handler=static,
        operation_id="static",
        summary="Style, scripts and pictures of the pages",
        responses={200: "text/javascript"},
        documented=False,
    ),
    Route(
        method="GET",
        path=f"/{SERVICE_WORKER}",
        handler=service_worker,
        operation_id="serviceWorker",
        summary="The service worker that saves downloads",
        responses={200: "text/javascript"},
        documented=False,
    ),
)
