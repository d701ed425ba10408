"""/healthz: the process is up. /readyz: it can do its work. /metrics: numbers for Prometheus.

The first and the last answer whatever is the matter with the database: they are how one learns of it.
"""

import logging

from aiohttp import web
from sqlalchemy import text

from bitcache import VERSION, channel_operations, damage, payout_figures, reconciling
from bitcache.api.bodies import encode, json_response
from bitcache.api.routing import Answer, Call, Route
from bitcache.api.wire import HealthView
from bitcache.errors import DatabaseUnavailable
from bitcache.metrics import CONTENT_TYPE
from bitcache.node_state import node_state
from bitcache.services import Services

log = logging.getLogger(__name__)


NOT_ANSWERING = "database or blobs do not answer"


async def healthz(call: Call) -> Answer:
    try:
        return Answer(200, await _health(call.services))
    except DatabaseUnavailable:
        return Answer(200, _trouble())


async def readyz(call: Call) -> web.StreamResponse:
    """503 while database or blobs do not work. A node that is away is told, but paid downloads go on."""
    services = call.services
    try:
        await services.database.read(lambda tx: tx.execute(text("SELECT 1")))
        await services.blobs.free_bytes()
    except Exception:
        log.exception("not ready")
        return json_response(503, encode(_trouble()))
    return json_response(200, encode(await _health(services)))


async def metrics(call: Call) -> web.StreamResponse:
    services = call.services
    try:
        state = await services.database.read(lambda tx: node_state(tx, services.clock()))
    except DatabaseUnavailable:
        services.metrics.database_online.set(False)
        services.metrics.node_online.set(False)
    else:
        services.metrics.database_online.set(True)
        services.metrics.node_online.set(state.online)
        services.metrics.tip_height.set(state.tip_height)
        services.metrics.damaged_files.set(await services.database.read(damage.count))
        paying = await services.database.read(lambda tx: payout_figures.figures(tx, now=services.clock()))
        services.metrics.show_payouts(paying)
        if services.config.channels.enabled:
            here = services.channels is not None and services.channels.registry.available
            metered = await services.database.read(channel_operations.figures)
            services.metrics.show_channels(metered, here=here)
        found = await services.database.read(reconciling.latest)
        services.metrics.reconciled_at.set(found.at if found else 0)
        services.metrics.reconciliation_explained.set(found is None or found.explained)
        services.metrics.reconciliation_difference_sat.set(found.difference_sat if found else 0)
    free_bytes = await services.blobs.free_bytes()
    if free_bytes is not None:
        services.metrics.free_bytes.set(free_bytes)
    return web.Response(body=services.metrics.page(), headers={"Content-Type": CONTENT_TYPE})


def _trouble() -> HealthView:
    return HealthView(status="degraded", node_online=False, trouble=NOT_ANSWERING, version=VERSION)


async def _health(services: Services) -> HealthView:
    state = await services.database.read(lambda tx: node_state(tx, services.clock()))
    return HealthView(
        status="ok" if state.online else "degraded",
        node_online=state.online,
        trouble=state.trouble,
        version=VERSION,
    )


ROUTES = (
    Route(
        method="GET",
        path="/healthz",
        handler=healthz,
        operation_id="getHealth",
        summary="The process is up",
        responses={200: HealthView},
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=readyz,
        operation_id="getReadiness",
        summary="Database and blobs work; whether the node does is in the body",
        responses={200: HealthView, 503: HealthView},
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=metrics,
        operation_id="getMetrics",
        summary="Numbers in Prometheus' text format",
        responses={200: "text/plain"},
    ),
)
