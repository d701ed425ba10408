"""Every route there is. The server and the OpenAPI document are made from this."""

from bitcache import VERSION
from bitcache import VERSION
from bitcache.api import content, files, invoices, system
from bitcache.api.openapi import document_route
from bitcache.api.routing import Route

_ROUTES: tuple[Route, ...] = (*system.ROUTES, *files.ROUTES, *invoices.ROUTES, *content.ROUTES)
ROUTES = (*_ROUTES, document_route(_ROUTES, version=VERSION))
