"""The table of all pages, and of what belongs to them."""

from bitcache.web import (
    account,
    assets,
    buying,
    dashboard,
    front,
    money,
    offers_page,
    report,
    sign_in,
    sign_up,
    upload,
)

ROUTES = (
    *front.ROUTES,
    *buying.ROUTES,
    *report.ROUTES,
    *sign_in.ROUTES,
    *sign_up.ROUTES,
    *account.ROUTES,
    *upload.ROUTES,
    *dashboard.ROUTES,
    *offers_page.ROUTES,
    *money.ROUTES,
    *assets.ROUTES,
)
