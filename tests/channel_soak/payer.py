"""A payer, as a process that may be killed at any moment: it signs, keeps what it signed, sends it, and asks
again, with the same voucher, whatever it has no answer for.

    python -m tests.channel_soak.payer FOLDER

Several requests are under way at a time, and arrive in any order. Started again in the same folder, it goes
on from what it kept.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coincurve import PrivateKey

from payments.channel_script import Channel, Contract, parse_channel_id
from payments.money import Sat
from tests.channel_soak.journal import (
    Done,
    Entry,
    Finished,
    Granted,
    Journal,
    JournalWriter,
    Opened,
    Order,
    Orders,
    Refused,
    Signed,
    Wrong,
)

LANES = 4
SILENCE_S = 30
PATIENCE_S = 180
PAUSE_S = 0.05
CHUNK_BYTES = 1 << 20
API = "/api/v1"
OPENING = -1
PASSING = {
    "channels-elsewhere",
    "channel-suspended",
    "confirmations-needed",
    "channel-busy",
    "database-unavailable",
    "node-offline",
    "funding-not-found",
}
"""While the server starts, or the chain is reorganised."""
PAID_OFTEN = "retries-exhausted"
"""The server says so of what it was paid for, and sent as often as it has to."""


class Payer:
    def __init__(self, folder: Path) -> None:
        self.orders = Orders.load(folder)
        self.key = PrivateKey(bytes.fromhex(self.orders.payer_key))
        contract = Contract(
            self.key.public_key.format(),
            bytes.fromhex(self.orders.payee_key),
            self.orders.expiry_height,
            bytes.fromhex(self.orders.change_script),
            Sat(self.orders.close_fee_sat),
        )
        outpoint = parse_channel_id(self.orders.channel_id)
        self.channel = Channel(contract, outpoint, Sat(self.orders.capacity_sat))
        self.kept = Journal(folder)
        self.kept.read()
        self._journal = JournalWriter(folder)
        self._one_at_a_time = threading.Lock()
        self._left: Iterator[Order] = iter([])
        self._failed = False

    def run(self) -> bool:
        """Whether everything came."""
        if not self.kept.opened:
            Lane(self).open()
            self.note(Opened())
        # What was signed and not answered comes first, as it was signed.
        self._left = iter(
            sorted(
                (order for order in self.orders.orders if order.n not in self.kept.done),
                key=lambda order: (order.n not in self.kept.signed, order.n),
            )
        )
        lanes = [threading.Thread(target=self._lane) for _ in range(LANES)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        if not self._failed:
            self.note(Finished())
        return not self._failed

    def note(self, entry: Entry) -> None:
        with self._one_at_a_time:
            self._journal.note(entry)

    def _lane(self) -> None:
        lane = Lane(self)
        try:
            while (order := self._next()) is not None:
                lane.pay(order)
        except Exception as exc:
            self._failed = True
            self.note(Wrong(OPENING, f"{exc!r}"))

    def _next(self) -> Order | None:
        with self._one_at_a_time:
            order = next(self._left, None)
            if order is not None and order.n not in self.kept.signed:
                # Before it is sent: who forgets what they signed cannot tell a lie of the server's.
                self._journal.note(Signed(order.n, order.cumulative_sat))
            return order

    def payload(self, action: str, cumulative_sat: int) -> dict[str, str]:
        return {
            "action": action,
            "channelId": self.channel.id,
            "cumulativeAmount": str(cumulative_sat),
            "signature": self.channel.sign(self.key, cumulative_sat).hex(),
        }

    def authorization(self, payload: Mapping[str, str]) -> dict[str, str]:
        document = json.dumps({"challenge": self.orders.challenge, "payload": payload}).encode()
        return {"Authorization": "Payment " + base64.urlsafe_b64encode(document).decode().rstrip("=")}


class Lane:
    """One connection, made again when it breaks."""

    def __init__(self, payer: Payer) -> None:
        self.payer = payer
        self._connection: http.client.HTTPConnection | None = None

    def open(self) -> None:
        payer = self.payer
        more = {"payerKey": payer.key.public_key.format().hex(), "changeScript": payer.orders.change_script}
        headers = payer.authorization(payer.payload("open", 0) | more)
        self._until_done(OPENING, "POST", f"{API}/channels", headers, None)

    def pay(self, order: Order) -> None:
        headers = self.payer.authorization(self.payer.payload("voucher", order.cumulative_sat))
        if not order.chunks:
            self._until_done(order.n, "POST", f"{API}/channels", headers, None)
        else:
            path = f"{API}/offers/{order.offer_id}/files/{order.file_id}/content"
            last = min(order.size_bytes, (order.first + order.chunks) * CHUNK_BYTES) - 1
            headers["Range"] = f"bytes={order.first * CHUNK_BYTES}-{last}"
            self._until_done(order.n, "GET", path, headers, order.sha256)
        self.payer.note(Done(order.n))

    def _until_done(
        self, n: int, method: str, path: str, headers: Mapping[str, str], sha256: str | None
    ) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self._done(n, method, path, headers, sha256):
            if time.monotonic() > until:
                raise TimeoutError(f"order {n} is not answered for {PATIENCE_S} s")
            time.sleep(PAUSE_S)

    def _done(self, n: int, method: str, path: str, headers: Mapping[str, str], sha256: str | None) -> bool:
        """Whether it was answered; False: to be asked again."""
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    "127.0.0.1", self.payer.orders.port, timeout=SILENCE_S
                )
            self._connection.request(method, path, headers=dict(headers))
            answer = self._connection.getresponse()
            if answer.status in (200, 206) and n != OPENING:
                receipt = _receipt(answer.headers["Payment-Receipt"])
                self.payer.note(Granted(n, int(receipt["acceptedCumulative"]), int(receipt["spentMsat"])))
            body = answer.read()
        except (OSError, http.client.HTTPException):
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return False
        if answer.status in (200, 206):
            if sha256 is not None and hashlib.sha256(body).hexdigest() != sha256:
                self.payer.note(Wrong(n, f"{len(body)} bytes are not what was bought"))
            return True
        problem = str(json.loads(body)["type"]).removeprefix("/problems/")
        self.payer.note(Refused(n, problem))
        if problem == PAID_OFTEN:
            return True
        if problem not in PASSING:
            raise ValueError(f"order {n}: {answer.status} {body!r}")
        return False


def _receipt(header: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))


if __name__ == "__main__":
    sys.exit(0 if Payer(Path(sys.argv[1])).run() else 1)
