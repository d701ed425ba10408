"""The front page: what this is, for whom, and who runs it.

GET /
"""

from aiohttp import web

from bitcache.web.visit import Visit, page_route


async def front_page(visit: Visit) -> web.Response:
    config = visit.services.config
    return visit.page(
        "front.html",
        {"sign_up": config.registration != "closed", "retention_days": config.paid_retention_days},
        script_words=("js_front_",),
    )


ROUTES = (page_route("GET", "/", front_page, "The front page"),)
