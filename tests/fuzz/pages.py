"""The forms of the pages, sent back with fields that nobody typed.

A browser's part is played: pages are read, their forms found, marks and cookies kept. The rules: no status
5xx but 503 and 507, an answer that is a page or leads to one, none later than 5 s.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from http.cookies import SimpleCookie
from random import Random
from urllib.parse import urlencode

from tests.fuzz.stock import Stock, new_client
from tests.fuzz.target import Target
from tests.fuzz.twists import ODD_STRINGS
from tests.fuzz.wire import Answered, Sent, Wire

PAGES = (
    "/", "/sign-in", "/sign-up", "/account", "/upload", "/dashboard", "/dashboard/offers", "/d/{offer_id}",
    "/d/{offer_id}/report", "/r/{invoice_id}",
)  # fmt: skip
QUERIES = (
    "",
    "?lang=fr",
    "?lang=%00",
    "?after=x",
    "?days=365",
    "?from=2026-01-01&to=9999-99-99",
    "?zone=../x",
    "?q=%ff",
)
FORM_TYPE = ("Content-Type", b"application/x-www-form-urlencoded")
_FORM = re.compile(r'<form\b[^>]*\baction="([^"]+)"[^>]*>(.*?)</form>', re.DOTALL)
_FIELD = re.compile(r'<(?:input|select|textarea|button)\b[^>]*\bname="([^"]+)"[^>]*>')
_VALUE = re.compile(r'\bvalue="([^"]*)"')


class PagesFuzz:
    """One browser, signed in again whenever it was signed out."""

    def __init__(self, target: Target, number: int) -> None:
        self._random = Random(number)
        self._wire = Wire(target.port)
        self._stock = Stock(self._wire, self._random)
        self._cookies: dict[str, str] = {}
        self.statuses: Counter[int] = Counter()
        self.sent: Counter[str] = Counter()
        """Forms sent, by their action."""

    def run(self, forms: int) -> None:
        """Send about so many forms. Raises AssertionError."""
        while self.sent.total() < forms:
            if self.sent.total() % 50 == 0:
                self._stock.trade()
            self._stock.choose_scene()
            if "bitcache_session" not in self._cookies:
                self._sign_in()
            self._visit()
        self._wire.close()

    def _visit(self) -> None:
        path = re.sub(
            r"\{(\w+)\}", lambda found: self._stock.pick(found[1]) or "", self._random.choice(PAGES)
        )
        shown = self._ask("GET", path + self._random.choice(QUERIES), None)
        for action, fields in forms_in(shown.body.decode()):
            self.sent[re.sub(r"[a-z2-7]{26}", "{id}", action.partition("?")[0])] += 1
            self._ask("POST", action, self._body(fields))

    def _sign_in(self) -> None:
        shown = self._ask("GET", "/sign-in", None)
        ((_, fields),) = [form for form in forms_in(shown.body.decode()) if "token" in form[1]]
        fields["token"] = self._stock.pick("token") or ""
        self._ask("POST", "/sign-in", urlencode(fields).encode())

    def _body(self, fields: dict[str, str]) -> bytes:
        """The fields as the page had them, some with another value, one more or one less."""
        random = self._random
        for name in list(fields):
            keep = 0.95 if name == "form_token" else 0.4
            if random.random() > keep:
                fields[name] = random.choice(
                    (*ODD_STRINGS, "1", "-1", "9" * 40, "a@b.c", "x" * 81, "correct horse")
                )
            if random.random() < 0.03:
                del fields[name]
        body = urlencode(fields).encode()
        if random.random() < 0.1:
            body += random.choice(
                (b"&x=1" * 20, b"&%ff=%ff", b"&form_token=x", b"\xff", b"&" * 9_000, b"&a=%00")
            )
        return body

    def _ask(self, method: str, target: str, body: bytes | None) -> Answered:
        cookies = "; ".join(f"{name}={text}" for name, text in self._cookies.items())
        headers = [("X-Forwarded-For", new_client(self._random).encode()), ("Cookie", cookies.encode())]
        sent = Sent(method, target, [*headers, FORM_TYPE] if body is not None else headers, body)
        answer = self._wire.exchange(sent)
        self.statuses[answer.status] += 1
        fine = answer.status < 500 or answer.status in {503, 507}
        assert fine, f"{answer.status}: {answer.body[:600]!r}\n{sent}"
        leads = answer.status == 303 or answer.media_type in {"text/html", "application/problem+json"}
        assert leads, f"{answer.status}, {answer.media_type}\n{sent}"
        for text in answer.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(text).items():
                self._cookies[name] = morsel.value
                if not morsel.value:
                    del self._cookies[name]
        return answer


def forms_in(page: str) -> list[tuple[str, dict[str, str]]]:
    """(action, fields with their values) of each form."""
    found = []
    for action, inside in _FORM.findall(page):
        fields = {}
        for field in _FIELD.finditer(inside):
            value = _VALUE.search(field[0])
            fields[field[1]] = html.unescape(value[1]) if value else ""
        found.append((html.unescape(action), fields))
    return found


def run(target: Target, number: int, forms: int) -> str:
    """One line of what was seen. Raises AssertionError."""
    fuzz = PagesFuzz(target, number)
    fuzz.run(forms)
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(fuzz.statuses.items()))
    return f"{fuzz.sent.total()} forms of {len(fuzz.sent)} kinds; {statuses}"
