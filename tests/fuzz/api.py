"""Requests made up from the served OpenAPI document by schemathesis, with real values put in and oddities.

The rules: no status 5xx but 503 and 507, no answer that the document does not describe, none later than 5 s
(but to a payment's credential, which may wait 25 s for its money, as docs/PROTOCOL.md says).
Honest trades go on in between, and must work.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response

from bitcache.api.openapi import PATH as DOCUMENT_PATH
from tests.fuzz import twists
from tests.fuzz.stock import Stock, new_client
from tests.fuzz.target import Target
from tests.fuzz.wire import Answered, NoAnswer, Sent, Wire
from tests.openapi_check import OpenApiCheck, Undocumented

TRADE_EVERY_CASES = 25
RSS_EVERY_CASES = 250
SERVER_MAY_SAY = frozenset({503, 507})
CHECKS_OF_SCHEMATHESIS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
PLAIN, TWISTED, PART = "plain", "twisted", "part"
KINDS = (PLAIN,) * 11 + (TWISTED,) * 8 + (PART,)
"""As often as each is sent."""
SLOWEST_KEPT = 10
# Of the client that schemathesis stands in for.
_ITS_OWN_HEADERS = frozenset(
    {"user-agent", "accept-encoding", "accept", "connection", "x-schemathesis-testcaseid"}
)


@dataclass
class Findings:
    """What a run saw. `failures` are by their kind, the first of each with its request."""

    cases: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    successes: Counter[str] = field(default_factory=Counter)
    """Operations that answered 2xx, by their name."""
    slowest: list[tuple[float, str]] = field(default_factory=list)
    rss_bytes: dict[int, int] = field(default_factory=dict)
    """By the number of cases before."""
    seconds: float = 0.0

    def fail(self, kind: str, sent: Sent, said: str) -> None:
        self.failures.setdefault(kind, f"case {self.cases}: {said}\n{sent}")

    def note(self, answer: Answered, what: str) -> None:
        self.statuses[answer.status] += 1
        if answer.status < 300:
            self.successes[what] += 1
        took = (round(answer.elapsed_s, 3), f"{what} -> {answer.status}")
        self.slowest = sorted([*self.slowest, took], reverse=True)[:SLOWEST_KEPT]


class ApiFuzz:
    """Sends made-up requests to one server."""

    def __init__(
        self, target: Target, *, number: int, trade: Callable[[Stock], object] = Stock.trade
    ) -> None:
        """`number` seeds everything; `trade` is what honest people do in between."""
        self.target = target
        self.findings = Findings()
        self._number = number
        self._trade = trade
        self._wire = Wire(target.port)
        self.stock = Stock(self._wire, Random(number))
        answer = self._wire.exchange(Sent("GET", DOCUMENT_PATH, [], None))
        document = json.loads(answer.body)
        self._check = OpenApiCheck(document)
        schema = schemathesis.openapi.from_dict(document)
        operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
        load_all_checks()
        self._checks: list[Any] = list(CHECKS.get_by_names(list(CHECKS_OF_SCHEMATHESIS)))
        self._before: Sent | None = None
        self._strategies = [
            operation.as_strategy(generation_mode=mode)
            for operation in operations
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        ]

    def run(self, cases: int) -> Findings:
        """So many cases; failures are gathered, not raised."""
        started = time.monotonic()
        numbers = st.integers(0, 2**64 - 1)
        operations = st.sampled_from(self._strategies)

        @seed(self._number)
        @settings(
            max_examples=cases,
            database=None,
            deadline=None,
            # Nothing is shrunk: the server has changed meanwhile, so nothing would be the same again.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def one(data: st.DataObject) -> None:
            random = Random(data.draw(numbers))
            kind = random.choice(KINDS)
            if kind is PART:
                self._send_part(random)
            else:
                self._send_case(random, data.draw(data.draw(operations)), twisted=kind is TWISTED)

        one()
        self.findings.seconds = time.monotonic() - started
        self._wire.close()
        return self.findings

    def _send_case(self, random: Random, case: Case[Any], *, twisted: bool) -> None:
        self.stock.choose_scene()
        twists.put_real_values(random, self.stock, case.path, case.path_parameters)
        sent = self._request(random, case)
        if twisted:
            self._send(twists.twisted(random, sent), f"twisted {case.operation.label}", None)
        else:
            self._send(sent, case.operation.label, case)

    def _send_part(self, random: Random) -> None:
        part = twists.real_part(random, self.stock)
        if part is not None:
            self._send(part, "part", None)

    def _request(self, random: Random, case: Case[Any]) -> Sent:
        """What schemathesis would send, with real values in the body and a client's credentials."""
        made = case.as_transport_kwargs(base_url=self.target.url)
        body: bytes | None = made.get("data")
        if "json" in made:
            body = twists.json_body(twists.mend_body(random, self.stock, made["json"]))
        headers = [
            (name, text.encode("utf-8", "surrogatepass"))
            for name, text in made["headers"].items()
            if name.lower() not in _ITS_OWN_HEADERS
        ]
        if random.random() < 0.9:
            headers = [header for header in headers if header[0].lower() != "authorization"]
            credentials = twists.credentials(random, self.stock, of_buyer=case.path.endswith("/content"))
            if credentials is not None:
                headers.append(("Authorization", credentials))
        headers.append(("X-Forwarded-For", new_client(random).encode()))
        url = urlsplit(made["url"])
        query = urlencode(made.get("params") or {}, doseq=True)
        return Sent(made["method"], f"{url.path}?{query}" if query else url.path, headers, body)

    def _send(self, sent: Sent, what: str, case: Case[Any] | None) -> None:
        findings = self.findings
        if findings.cases % TRADE_EVERY_CASES == 0:
            self._trade(self.stock)
        if findings.cases % RSS_EVERY_CASES == 0:
            findings.rss_bytes[findings.cases] = self.target.resident_bytes()
        findings.cases += 1
        try:
            answer = self._wire.exchange(sent)
        except NoAnswer as exc:
            findings.fail(f"{what}: no answer", sent, f"{exc}; before it {self._before}")
            return
        finally:
            self._before = sent
        findings.note(answer, what)
        self._judge(sent, what, answer, case)
        self.stock.learn(answer)

    def _judge(self, sent: Sent, what: str, answer: Answered, case: Case[Any] | None) -> None:
        if answer.status >= 500 and answer.status not in SERVER_MAY_SAY:
            self.findings.fail(f"{what} -> {answer.status}", sent, repr(answer.body[:600]))
            return
        path = urlsplit(sent.target).path
        headers = dict(answer.headers.items())
        try:
            body = answer.body if answer.is_json else None
            self._check.check(sent.method, path, answer.status, headers, body)
        except Undocumented as exc:
            if case is not None or not _unrouted(answer):
                self.findings.fail(f"{what} -> {answer.status}: undocumented", sent, str(exc))
            return
        if case is not None:
            self._judge_by_schemathesis(sent, what, answer, case)

    def _judge_by_schemathesis(self, sent: Sent, what: str, answer: Answered, case: Case[Any]) -> None:
        request = requests.Request(sent.method, f"{self.target.url}{sent.target}").prepare()
        seen: dict[str, list[str]] = {}
        for name, text in answer.headers.items():
            seen.setdefault(name, []).append(text)
        response = Response(
            status_code=answer.status,
            headers=seen,
            content=answer.body,
            request=request,
            elapsed=answer.elapsed_s,
            verify=False,
        )
        try:
            case.validate_response(response, checks=self._checks)
        except FailureGroup as group:
            for failure in group.exceptions:
                self.findings.fail(f"{what} -> {answer.status}: {failure.title}", sent, str(failure))


def _unrouted(answer: Answered) -> bool:
    """Not the API's: what the parser refused, and addresses and methods that there are not."""
    return answer.status in {400, 404, 405, 413, 414, 417, 431, 505} or not answer.is_json


def rows(findings: Findings) -> list[str]:
    """Lines for a report."""
    return [
        f"{findings.cases} cases in {findings.seconds:.0f} s",
        "statuses   " + ", ".join(f"{status}: {n}" for status, n in sorted(findings.statuses.items())),
        f"operations that succeeded: {len(findings.successes)}",
        "slowest    " + ", ".join(f"{took:.2f} s {what}" for took, what in findings.slowest[:5]),
        "RSS        "
        + ", ".join(f"{at}: {octets / 1e6:.1f}" for at, octets in findings.rss_bytes.items())
        + " MB",
    ]
