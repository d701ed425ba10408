"""What a fuzzer puts into its requests so that they get somewhere: real tokens, ids, secrets and digests.

`trade` does what honest people do, from opening an account to the bytes of a bought file, and fails if that
no longer works. `learn` keeps what answers to made-up requests name.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from random import Random
from typing import Any

from bitcache.api.files import DIGESTS_HEADER
from bitcache.api.wire import API
from storage import base64url, digests
from tests.fuzz.wire import Answered, Sent, Wire

KEPT_PER_KIND = 60
ID_KINDS = ("file_id", "parcel_id", "offer_id", "invoice_id", "token_id")
SECRET_KINDS = (
    "token", "grant_token", "root", "release_secret", "claim_secret", "claim_hash", "wrapped_key",
    "credential", "payout_descriptor",
)  # fmt: skip
NEWEST_SCENES = 4
FILE_BYTES = (56, 57, 1_000, 70_000)


class Stock:
    """Values by the name that they have in the API; the newest are kept."""

    def __init__(self, wire: Wire, random: Random) -> None:
        self._wire = wire
        self._random = random
        self._kept: dict[str, deque[str]] = {
            kind: deque(maxlen=KEPT_PER_KIND) for kind in (*ID_KINDS, *SECRET_KINDS)
        }
        self._trades = 0
        self._scenes: deque[dict[str, str]] = deque(maxlen=KEPT_PER_KIND)
        self._scene: dict[str, str] = {}
        self.parts: deque[tuple[str, str, bytes]] = deque(maxlen=KEPT_PER_KIND)
        """(token, target, octets) of parts that files wait for, or have."""

    def choose_scene(self) -> None:
        """What is picked from now on mostly belongs together."""
        if self._scenes:
            # Older ones have mostly been closed and deleted meanwhile.
            newest = list(self._scenes)[-NEWEST_SCENES:]
            self._scene = self._random.choice(newest if self._random.random() < 0.8 else self._scenes)

    def pick(self, kind: str) -> str | None:
        """Some real value of this kind."""
        if kind in self._scene and self._random.random() < 0.8:
            return self._scene[kind]
        kept = self._kept.get(kind)
        return self._random.choice(kept) if kept else None

    def keep(self, kind: str, text: str) -> None:
        kept = self._kept[kind]
        if text not in kept:
            kept.append(text)

    def learn(self, answer: Answered) -> None:
        """Keep what an answer names."""
        if answer.status < 300 and answer.media_type == "application/json":
            self._learn(json.loads(answer.body))

    def trade(self, *, price_sat: int = 0, descriptor: str = "") -> dict[str, Any]:
        """Sell a file to somebody; the invoice. A free one is claimed and downloaded at once."""
        self._trades += 1
        token = self._new_seller(descriptor)
        file_id, octets, listed = self._upload(token)
        wrapped = base64url.encode(self._random.randbytes(60))
        self.keep("wrapped_key", wrapped)
        parcel = self._done(
            "POST", "/parcels", {"files": [{"file_id": file_id, "wrapped_key": wrapped}]}, token
        )
        seal = {"metadata": base64url.encode(b"sealed"), "release_secret": self._secret("release_secret")}
        self._done("POST", f"/parcels/{parcel['parcel_id']}/seal", seal, token)
        offer = self._done(
            "POST",
            "/offers",
            {
                "parcel_id": parcel["parcel_id"],
                "price": {"kind": "fixed", "amount_msat": price_sat * 1000},
                "policy": {"bytes_at": self._random.randint(0, 1), "key_at": 1},
            },
            token,
        )
        secret = self._random.randbytes(32)
        claim = {"claim_secret": base64url.encode(secret)}
        self.keep("claim_secret", claim["claim_secret"])
        claim_hash = base64url.encode(hashlib.sha256(secret).digest())
        invoice = self._done("POST", f"/offers/{offer['offer_id']}/invoices", {"claim_hash": claim_hash})
        self.keep("claim_hash", claim_hash)
        content = f"{API}/offers/{offer['offer_id']}/files/{file_id}/content"
        scene = {
            "token": token,
            "file_id": file_id,
            "parcel_id": parcel["parcel_id"],
            "offer_id": offer["offer_id"],
            "invoice_id": invoice["invoice_id"],
            "claim_secret": claim["claim_secret"],
            "claim_hash": claim_hash,
            "root": base64url.encode(digests.root(listed)),
        }
        self._scenes.append(scene)
        self._challenge(content, scene)
        if price_sat == 0:
            claimed = self._done("POST", f"/invoices/{invoice['invoice_id']}/claim", claim)
            bought = self._send("GET", content, token=claimed["grant_token"])
            assert bought.body == octets, f"a bought file came as {bought.status}, {bought.body[:300]!r}"
            scene["grant_token"] = claimed["grant_token"]
        # One more upload is left under way.
        self._announce(token, self._random.randbytes(self._random.choice(FILE_BYTES)))
        return invoice

    def _new_seller(self, descriptor: str) -> str:
        name = f"trader {self._trades} {self._random.getrandbits(64):x}"
        token = str(self._done("POST", "/accounts", {"name": name})["token"])
        if descriptor:
            self._done("PATCH", "/account", {"payout_descriptor": descriptor}, token)
        # Accounts that answers name are learnt too, but theirs own less.
        self.keep("token", token)
        return token

    def _upload(self, token: str) -> tuple[str, bytes, bytes]:
        octets = self._random.randbytes(self._random.choice(FILE_BYTES))
        file_id, target = self._announce(token, octets)
        listed = digests.chunk_digests(octets)
        put = self._send("PUT", target, octets, token, ((DIGESTS_HEADER, base64url.encode(listed)),))
        assert put.status == 204, put.body
        self._done(
            "POST", f"/files/{file_id}/complete", {"root": base64url.encode(digests.root(listed))}, token
        )
        return file_id, octets, listed

    def _announce(self, token: str, octets: bytes) -> tuple[str, str]:
        file_id = str(self._done("POST", "/files", {"size_bytes": len(octets)}, token)["file_id"])
        target = f"{API}/files/{file_id}/parts/0"
        self.parts.append((token, target, octets))
        return file_id, target

    def _challenge(self, content: str, scene: dict[str, str]) -> None:
        """Keep an unpaid challenge as the credential its receiver would send."""
        answer = self._send("GET", content, headers=(("Accept-Payment", "bitcoin/charge"),))
        challenge = str(answer.headers.get("WWW-Authenticate", ""))
        if not challenge.startswith("Payment "):
            return
        members = {
            name.strip(): text.strip('"')
            for name, _, text in (part.partition("=") for part in challenge[8:].split(", "))
        }
        request = json.loads(base64url.decode(members["request"]))
        payload = {"invoiceId": request.get("externalId", "")}
        credential = json.dumps({"challenge": members, "payload": payload}).encode()
        scene["credential"] = base64url.encode(credential)
        self.keep("credential", scene["credential"])

    def _secret(self, kind: str) -> str:
        text = base64url.encode(self._random.randbytes(32))
        self.keep(kind, text)
        return text

    def _done(self, method: str, path: str, body: object, token: str | None = None) -> dict[str, Any]:
        """An honest call, which must work."""
        answer = self._send(method, f"{API}{path}", json.dumps(body).encode(), token)
        assert answer.status in {200, 201}, f"{method} {path} -> {answer.status}: {answer.body!r:.500}"
        self.learn(answer)
        view: dict[str, Any] = json.loads(answer.body)
        return view

    def _send(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        token: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Answered:
        named = [*headers, ("X-Forwarded-For", new_client(self._random))]
        if token:
            named.append(("Authorization", f"Bearer {token}"))
        return self._wire.exchange(
            Sent(method, target, [(name, text.encode()) for name, text in named], body)
        )

    def _learn(self, node: Any) -> None:
        if isinstance(node, list):
            for item in node[:20]:
                self._learn(item)
        elif isinstance(node, dict):
            for name, text in node.items():
                if name in self._kept and isinstance(text, str):
                    self.keep(name, text)
                self._learn(text)


def new_client(random: Random) -> str:
    """An address of a client that was not here before."""
    return f"10.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(1, 255)}"
