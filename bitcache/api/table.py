"""Every route there is. The server and the OpenAPI document are made from this."""

from bitcache.api import system
from bitcache.api.routing import Route

ROUTES: tuple[Route, ...] = (*system.ROUTES,)
