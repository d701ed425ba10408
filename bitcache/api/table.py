"""Every route there is. The server and the OpenAPI document are made from this."""

from bitcache.api import content, invoices, system
from bitcache.api.routing import Route

ROUTES: tuple[Route, ...] = (*system.ROUTES, *invoices.ROUTES, *content.ROUTES)
