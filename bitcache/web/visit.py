"""One request for a page: its language, its forms, and errors as pages."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from aiohttp import web

from bitcache.api.bodies import read_body
from bitcache.api.problems import problem_of
from bitcache.api.routing import Call, Handler, Route
from bitcache.errors import RequestInvalid
from bitcache.ids import is_id
from bitcache.services import Services
from bitcache.web import forms
from bitcache.web.forms import Forms
from bitcache.web.i18n import LANGUAGES, Words, chosen_language
from bitcache.web.render import page

FORM_BYTES_MAX = 8 * 1024
FORM_FIELDS_MAX = 10
API_FORM = "api"
"""Binds the calls of a page's scripts to this browser, as its form's token does for a form."""


@dataclass(frozen=True, slots=True)
class Visit:
    call: Call
    words: Words
    forms: Forms
    browser: str
    """This browser's mark, to which its forms are bound."""
    account_id: str = ""
    """Whose page it is. A seller's forms are bound to the account too: one of another account, left open in a
    tab or planted by a neighbouring site, changes nothing of this one."""

    @property
    def services(self) -> Services:
        return self.call.services

    def now(self) -> int:
        return self.services.clock()

    def page(
        self,
        template: str,
        fields: Mapping[str, object],
        *,
        form: str = "",
        script_words: tuple[str, ...] = (),
        api: bool = False,
        status: int = 200,
    ) -> web.Response:
        """The template; its form, if it has one, is bound to this browser.

        `script_words` are the beginnings of the keys that its scripts say: `js_upload_`. `api`: they call the
        API for who is signed in (POST /session/token).
        """
        response = page(
            template,
            self.words,
            {
                **fields,
                "operator": self.services.config,
                "form_field": forms.FIELD,
                "form_token": self._token(form) if form else "",
                "api_form_token": self._token(API_FORM) if api else "",
                "script_words": self.words.starting(script_words),
                "language_query": self._language_query(),
                # The answer to a form has no address of its own to read again in another language.
                "switchable": self.call.http.method == "GET",
            },
            status=status,
        )
        if form or api:
            self.forms.keep(response, self.browser)
        return response

    async def form(self, name: str, *, limit_bytes: int = FORM_BYTES_MAX) -> tuple[dict[str, str], str]:
        """(fields, nonce) of the form that was sent. Raises FormRefused, RequestInvalid, BodyTooLarge."""
        octets = await read_body(self.call.http, limit_bytes=limit_bytes)
        try:
            fields = dict(parse_qsl(octets.decode(), max_num_fields=FORM_FIELDS_MAX))
        except ValueError as exc:
            raise RequestInvalid("The form cannot be read.") from exc
        if any("\0" in text for text in fields.values()):
            # Nobody types it, and PostgreSQL has no text with it.
            raise RequestInvalid("The form cannot be read.")
        return fields, self.check_token(name, fields.get(forms.FIELD, ""))

    def check_token(self, form: str, token: str) -> str:
        """The nonce of the token of this form, of this browser and account. Raises FormRefused."""
        return self.forms.check(bound_form(form, self.account_id), self.browser, token, self.now())

    def _token(self, form: str) -> str:
        return self.forms.token(bound_form(form, self.account_id), self.browser, self.now())

    def _language_query(self) -> dict[str, str]:
        """The query of this address with each language in turn; what else is in it stays."""
        others = [(name, text) for name, text in self.call.http.query.items() if name != "lang"]
        return {code: urlencode([*others, ("lang", code)]) for code in LANGUAGES}

    def after(self) -> str | None:
        """The id after which a page of a list begins; None for the first, and for what is no id."""
        asked = self.call.query("after") or ""
        return asked if is_id(asked) else None

    def redirect(self, path: str) -> web.Response:
        """To another page, by GET, in the same language."""
        return see_other(f"{path}?lang={self.words.language}")


def see_other(location: str) -> web.Response:
    """The answer that is read by GET at `location`, a path with all that follows it."""
    return web.Response(status=303, headers={"Location": location, "Cache-Control": "no-store"})


def later(response: web.Response, exc: Exception) -> web.Response:
    """The response, with when to come back, where the error says it."""
    retry_after_s = getattr(exc, "retry_after_s", None)
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(retry_after_s)
    return response


def bound_form(form: str, account_id: str) -> str:
    """The name under which a form's token is made: an account's own where there is one. Pure."""
    return f"{form}/{account_id}" if account_id else form


PageHandler = Callable[[Visit], Awaitable[web.StreamResponse]]


def page_route(method: str, path: str, handler: PageHandler, summary: str, *, back: str = "") -> Route:
    """A route of the table that answers with a page, whatever happens; `back` is where its errors lead to."""
    return Route(
        method=method,
        path=path,
        handler=_visited(handler, back),
        operation_id=handler.__name__,
        summary=summary,
        responses={200: "text/html"},
        documented=False,
    )


def _visited(handler: PageHandler, back: str) -> Handler:
    async def visited(call: Call) -> web.StreamResponse:
        visit = visit_of(call)
        try:
            return await handler(visit)
        except Exception as exc:
            status, key = _error_of(visit, exc)
            place = back.format(**call.http.match_info)
            return later(visit.page("error.html", {"key": key, "back": place}, status=status), exc)

    return visited


def visit_of(call: Call) -> Visit:
    """The call as a page's handler sees it."""
    services, request = call.services, call.http
    made = Forms(services.sealer.mac_key("form"), secure=forms.over_https(services.config))
    language = chosen_language(call.query("lang"), request.headers.get("Accept-Language"))
    return Visit(call, Words(language), made, made.browser(request))


def _error_of(visit: Visit, exc: Exception) -> tuple[int, str]:
    """(status, catalogue key). Raises what nobody foresaw again: the guard logs it."""
    problem = problem_of(exc)
    if problem is None:
        raise exc
    key = f"e_{problem.name}"
    return problem.status, key if key in visit.words else "e_other"
