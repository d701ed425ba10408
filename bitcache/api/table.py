"""Every route there is. The server and the OpenAPI document are made from this."""

from collections.abc import Iterable
from dataclasses import replace

from bitcache import VERSION
from bitcache.api import (
    accounts,
    channels,
    content,
    earnings,
    files,
    invoices,
    offers,
    parcels,
    payouts,
    refunds,
    statements,
    system,
)
from bitcache.api.openapi import document_route
from bitcache.api.routing import Route
from bitcache.api.wire import API
from bitcache.web import pages


def _below_api(routes: Iterable[Route]) -> Iterable[Route]:
    return (replace(route, path=API + route.path) for route in routes)


_ROUTES: tuple[Route, ...] = (
    *system.ROUTES,
    *_below_api(accounts.ROUTES),
    *_below_api(files.ROUTES),
    *_below_api(parcels.ROUTES),
    *_below_api(offers.ROUTES),
    *_below_api(invoices.ROUTES),
    *_below_api(refunds.ROUTES),
    *_below_api(content.ROUTES),
    *_below_api(channels.ROUTES),
    *_below_api(earnings.ROUTES),
    *_below_api(statements.ROUTES),
    *_below_api(payouts.ROUTES),
    *pages.ROUTES,
)
ROUTES = (*_ROUTES, document_route(_ROUTES, version=VERSION))
