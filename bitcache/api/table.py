"""Every route there is. The server and the OpenAPI document are made from this."""

from bitcache import VERSION
from bitcache.api import accounts, content, earnings, files, invoices, offers, parcels, system
from bitcache.api.openapi import document_route
from bitcache.api.routing import Route
from bitcache.web import pages

_ROUTES: tuple[Route, ...] = (
    *system.ROUTES,
    *accounts.ROUTES,
    *files.ROUTES,
    *parcels.ROUTES,
    *offers.ROUTES,
    *invoices.ROUTES,
    *content.ROUTES,
    *earnings.ROUTES,
    *pages.ROUTES,
)
ROUTES = (*_ROUTES, document_route(_ROUTES, version=VERSION))
