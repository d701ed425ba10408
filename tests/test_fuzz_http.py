"""Requests made up from the served document, and forms with fields that nobody typed: short runs.

No status 5xx but 503 and 507, nothing undocumented, nothing late, no bug in the log, and honest sales go on
in between. The long form, with a node too and with the curve of the server's memory, is `make soak-fuzz`.
"""

from collections.abc import Iterator

import pytest

from tests.fuzz import pages
from tests.fuzz.api import ApiFuzz
from tests.fuzz.target import Target

CASES = 200
FORMS = 40
SEED = 1


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


def test_made_up_requests_break_no_rule(target: Target) -> None:
    findings = ApiFuzz(target, number=SEED).run(CASES)
    assert not findings.failures, "\n\n".join(f"{kind}\n{said}" for kind, said in findings.failures.items())
    assert findings.cases == CASES
    assert len(findings.successes) > 6, "hardly anything was reached"
    assert not target.troubles()


def test_forms_with_made_up_fields_break_no_rule(target: Target) -> None:
    fuzz = pages.PagesFuzz(target, SEED + 1)
    fuzz.run(FORMS)
    assert len(fuzz.sent) > 8, "hardly any form was found"
    assert {200, 303, 401} <= set(fuzz.statuses)
    assert not target.troubles()
