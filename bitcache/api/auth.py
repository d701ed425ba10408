"""Who calls: `Authorization: Bearer bcs_...` for sellers. Tokens come in headers only, never in logs.

The pages' own scripts send a short-lived `bcw_...` of the signed-in session instead.
"""

from aiohttp import web

from bitcache import accounts, sessions
from bitcache.accounts import Seller
from bitcache.errors import TokenInvalid, TokenMissing
from bitcache.services import Services

SCHEME = "bearer"


async def seller(services: Services, request: web.Request) -> Seller:
    """The seller whose token the request carries. Raises TokenMissing, TokenInvalid."""
    token = bearer_token(request)
    if token is None:
        raise TokenMissing("This needs a seller's token. Send it as `Authorization: Bearer bcs_...`.")
    if token.startswith(sessions.WEB_TOKEN_PREFIX):
        key, now = services.sealer.mac_key(sessions.MAC_PURPOSE), services.clock()
        return await services.database.read(lambda tx: sessions.seller_of_web_token(tx, key, token, now=now))
    return await services.database.read(lambda tx: accounts.seller_of_token(tx, token))


def bearer_token(request: web.Request) -> str | None:
    """The bearer token of the request; None without Authorization or with another scheme.

    Raises TokenInvalid for an empty one.
    """
    authorization = request.headers.get("Authorization")
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != SCHEME:
        return None
    token = token.strip()
    if not token or not token.isascii():
        raise TokenInvalid("The Authorization header has no token after `Bearer`.")
    return token
