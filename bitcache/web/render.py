"""Templates to answers: the one policy of all pages, and how amounts, sizes and times are written."""

import datetime
from collections.abc import Mapping

import jinja2
import segno
from aiohttp import web
from markupsafe import Markup

from bitcache.web.i18n import LANGUAGES, Words
from payments.money import MSAT_PER_SAT, Sat, btc_from_sat

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    # The worker encrypts; the frame is how the service worker hands a download to the browser.
    "connect-src 'self'; worker-src 'self'; frame-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types bitcache"
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Vary": "Accept-Language",
}
LINKED = ("https://", "http://", "mailto:")
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def page(template: str, words: Words, fields: Mapping[str, object], *, status: int = 200) -> web.Response:
    """The template as an answer that nobody keeps: it shows addresses, amounts and receipts."""
    text = _TEMPLATES.get_template(template).render({**fields, "words": words, "languages": LANGUAGES})
    return web.Response(
        status=status,
        text=text,
        content_type="text/html",
        headers={**PAGE_HEADERS, "Content-Language": words.language},
    )


def qr_code(text: str) -> Markup:
    """Inline SVG that scales with its box; black on white in dark mode too, or cameras fail."""
    # The markup is segno's own and holds no part of `text` but as squares.
    return Markup(segno.make(text, error="m").svg_inline(omitsize=True, border=4))  # noqa: S704


def sat_text(amount_sat: int) -> str:
    """12 345 678 with thin spaces: neither a comma nor a point can be misread."""
    return f"{amount_sat:,}".replace(",", "\u202f")


def msat_text(amount_msat: int) -> tuple[str, str]:
    """(amount, unit): 10 sat of 10000, else 1 500 msat."""
    whole, rest = divmod(amount_msat, MSAT_PER_SAT)
    return (sat_text(amount_msat), "msat") if rest else (sat_text(whole), "sat")


def size_text(size_bytes: int) -> str:
    """Decimal units, as operating systems show downloads; one decimal from kB on."""
    power = 0
    while power + 1 < len(UNITS) and size_bytes >= 1000 ** (power + 1):
        power += 1
    if power == 0:
        return f"{size_bytes} B"
    tenths = size_bytes * 10 // 1000**power
    return f"{tenths // 10}.{tenths % 10} {UNITS[power]}"


def minute_text(at: int, zone: datetime.tzinfo = datetime.UTC) -> str:
    """YYYY-MM-DD HH:MM."""
    return datetime.datetime.fromtimestamp(at, zone).strftime("%Y-%m-%d %H:%M")


def web_address(text: str) -> str | None:
    """`text` where it may be a link's target; anything else, `javascript:` above all, stays words."""
    return text if text.lower().startswith(LINKED) else None


def _environment() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("bitcache.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # They are part of the program: looking at their files again at every page costs, and changes nothing.
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["sat"] = sat_text
    templates.filters["msat"] = lambda amount_msat: " ".join(msat_text(amount_msat))
    templates.filters["btc"] = lambda amount_sat: btc_from_sat(Sat(amount_sat))
    templates.filters["size"] = size_text
    templates.filters["minute"] = minute_text
    templates.filters["web_address"] = web_address
    return templates


_TEMPLATES = _environment()
