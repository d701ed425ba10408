"""The Payment scheme of HTTP 402, written a second time from section 10 of docs/PROTOCOL.md alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tests import second_format as second
from tests.second_client import Answer, Mismatch, Problem, Server, Shown

PARAMETERS = {"id", "realm", "method", "intent", "expires", "request"}


@dataclass(frozen=True)
class Challenge:
    """What to pay, and the header that claims it once it is paid."""

    request: dict[str, Any]
    credential: str


def ask(shown: Shown, *, file_no: int) -> Challenge:
    """Ask for content that is not paid for, with a wish to pay for it in bitcoin."""
    try:
        shown.server.send("GET", content_path(shown, file_no), headers={"Accept-Payment": "bitcoin/charge"})
    except Problem as refused:
        if refused.status != 402:
            raise
        challenge = challenge_in(str(refused.headers["WWW-Authenticate"]))
        price_msat = int(challenge.request["amount"]) * 1000
        network = challenge.request["methodDetails"]["network"]
        if (price_msat, network) != (shown.offer["price"]["amount_msat"], shown.offer["network"]):
            raise Mismatch("the challenge asks for another price than the offer") from refused
        return challenge
    raise Mismatch("the server gave away what it sells")


def challenge_in(header: str) -> Challenge:
    """Read a bound challenge. Raises Mismatch if it is another one."""
    scheme, _, rest = header.partition(" ")
    parameters = dict(re.findall(r'([a-z]+)="([^"]*)"(?:, |$)', rest))
    if scheme != "Payment" or parameters.keys() != PARAMETERS:
        raise Mismatch("not a challenge of the Payment scheme")
    if (parameters["method"], parameters["intent"]) != ("bitcoin", "charge"):
        raise Mismatch("not to be paid in bitcoin")
    request = json.loads(second.decode(parameters["request"]))
    if request["currency"] != "sat" or "externalId" not in request:
        raise Mismatch("an invitation, or another currency")
    document = {"challenge": parameters, "payload": {"invoiceId": request["externalId"]}}
    return Challenge(request, f"Payment {second.encode(json.dumps(document).encode())}")


def content(shown: Shown, challenge: Challenge, *, file_no: int) -> Answer:
    return shown.server.send(
        "GET", content_path(shown, file_no), headers={"Authorization": challenge.credential}
    )


def release_secret(server: Server, challenge: Challenge) -> bytes:
    """The server's half of the key, claimed with the paid challenge alone."""
    claim = server.send(
        "POST",
        f"/invoices/{challenge.request['externalId']}/claim",
        document={},
        headers={"Authorization": challenge.credential},
    )
    return second.decode(claim.json()["release_secret"])


def receipt_in(answer: Answer) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(second.decode(str(answer.headers["Payment-Receipt"])))
    return receipt


def content_path(shown: Shown, file_no: int) -> str:
    return f"/offers/{shown.offer['offer_id']}/files/{shown.offer['files'][file_no]['file_id']}/content"
