"""Money out, as the operator's admins bring it about.

What is refused because of the state that things are in is an answer; what ends otherwise is blamed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from bitcache import payout_desk
from bitcache.errors import NotFound, NothingOwed, RefundDecided
from bitcache.ids import new_id
from bitcache.payout_runner import STATES
from bitcache.reconciling import TROUBLE
from payments import batch_store, books, foreign_spends, ledger, payout_store
from payments.batch_store import Batch
from payments.errors import PayoutNotFound, PsbtAltered, SpendNotFound
from payments.money import Sat
from payments.payable import payable_sat
from payments.payout import BatchState, Kind, Payout, State
from payments.ports import Transaction
from payments.tables import payout_batches
from regtest.errors import RpcRefused
from tests.payout_soak.altering import altered
from tests.payout_soak.front_desk import FrontDesk
from tests.payout_soak.house import House
from tests.payout_soak.people import Seller
from tests.payout_soak.steps import Altered, Signer, Task

T = TypeVar("T")

REFUSED = (*STATES, NotFound, NothingOwed, PayoutNotFound, RefundDecided, SpendNotFound)
"""Answers that a state of things may bring."""


class Office:
    """The operator's admins: each has a process's services of their own on the server's database."""

    def __init__(self, house: House, front: FrontDesk, sellers: Sequence[Seller]) -> None:
        self._house = house
        self._front = front
        self._sellers = sellers
        self.foreign: set[str] = set()
        """Transactions of the operator that are no payouts: they may wait in the mempool."""
        self.refused = 0
        self.deaths = 0
        """Of admins."""

    async def payouts(self, *states: State) -> list[Payout]:
        return await self._read(lambda tx: payout_store.payouts_in(tx, *states))

    async def batches(self, *states: BatchState) -> list[Batch]:
        """Oldest first."""
        found = await self._read(lambda tx: batch_store.batches(tx, payout_batches.c.state.in_(states)))
        return sorted(found, key=lambda batch: (batch.created_at, batch.id))

    async def balance_sat(self, account: str) -> int:
        return await self._read(lambda tx: books.balance(tx, account)) // 1_000

    async def withdraw(self, percent: int) -> str:
        payable = await self._read(lambda tx: payable_sat(tx, ledger.operator(), depth=self._house.depth))
        address = await self._house.new_address()
        amount_sat = Sat(payable * percent // 100)
        asking = partial(payout_desk.withdraw, self._services(0), new_id(), address, amount_sat)
        (told,) = await self._each([asking])
        if isinstance(told, Payout):
            body = {"amount_sat": told.amount_sat, "address": told.address}
            self._front.note(told.id, told.kind, told.account, body)
        return f"{percent} % of {payable:,} sat: {_words([told])}"

    async def decide(self, payout: Payout, *, approves: bool, by: str, contradicted: bool) -> str:
        deciding = [partial(self._decide, 0, payout, approves, by)]
        if contradicted:
            deciding.append(partial(self._decide, 1, payout, not approves, by))
        return _words(await self._each(deciding))

    async def build(self, feerate_sat_vb: int, *, twice: bool) -> str:
        return _words(
            await self._each([partial(self._build, admin, feerate_sat_vb) for admin in range(1 + twice)])
        )

    async def bump(self, batch: Batch, more_sat_vb: int, *, twice: bool) -> str:
        """Signed and sent at once, as the node's wallet does it."""
        feerate = batch.newest.feerate_sat_kvb + 1_000 * more_sat_vb
        bumping = [
            partial(payout_desk.bump, self._services(admin), batch.id, feerate) for admin in range(1 + twice)
        ]
        return f"{feerate / 1_000:g} sat/vB: {_words(await self._each(bumping))}"

    async def abandon(self, batch: Batch) -> str:
        return _words(await self._each([partial(self._services(0).batches.abandon, batch.id)]))

    async def sign(self, batch: Batch, signer: Signer, *, twice: bool) -> str:
        """And give it to the network, as far as the node is there."""
        signing = [partial(self._sign, admin, batch.id, signer) for admin in range(1 + twice)]
        return _words(await self._each(signing))

    async def die_at(self, task: Task, batch: Batch | None, moment: int) -> str:
        """A command of the operator, which is killed at this moment of it."""
        words, stdin = ["build", "--feerate", "2", "--yes"], ""
        if task is not Task.BUILD:
            if batch is None:
                return "no batch"
            words = [task.value, batch.id]
        if task is Task.BUMP and batch is not None:
            words += ["--feerate", f"{batch.newest.feerate_sat_kvb / 1_000 + 2:g}"]
        if task is Task.IMPORT and batch is not None:
            (exported,) = await self._each([partial(self._services(0).batches.export, batch.id)])
            if not isinstance(exported, str):
                return _words([exported])
            stdin = (await self._house.keys.rpc("walletprocesspsbt", exported))["psbt"]
        self._house.server.doom(moment, whom="admin")
        code, said = await self._house.server.admin("payouts", *words, stdin=stdin)
        self._house.server.spare("admin")
        if code not in (0, 1, -9) or "Traceback" in said:
            self._house.blame(f"`payouts {' '.join(words)}` ended with code {code}: {said}")
        self.deaths += code == -9
        return "it died" if code == -9 else f"code {code}: {' '.join(said.split())[:200]}"

    async def try_altered(self, batch: Batch, how: Altered) -> str:
        """Import a transaction that is validly signed, and another one."""
        coins = await self._house.keys.rpc("listunspent")
        spent = {(one.txid, one.vout) for one in batch.inputs}
        others = [(one["txid"], one["vout"]) for one in coins if (one["txid"], one["vout"]) not in spent]
        other = altered(
            batch.newest.unsigned,
            how,
            change_script=batch.change_script_pubkey,
            extra=others[0] if others else None,
        )
        if other is None:
            return "nothing to alter"
        bare = await self._house.world.outside.rpc("converttopsbt", other.hex())
        signed = await self._house.keys.rpc("walletprocesspsbt", bare)
        try:
            await self._services(0).batches.import_signed(batch.id, signed["psbt"])
        except REFUSED as refused:
            kind = "as altered" if isinstance(refused, PsbtAltered) else "otherwise"
            return f"refused {kind}: {refused}"
        self._house.blame(f"batch {batch.id} was taken with another {how}")
        return "taken"

    async def deposit_address(self) -> str:
        """One of the operator's wallet, for money of their own."""
        (issued,) = await self._each([partial(payout_desk.deposit_address, self._services(0))])
        return str(getattr(issued, "address", ""))

    async def explain(self, txid: str, account: str) -> str:
        """This account bears what the transaction took."""
        now = self._house.now()

        async def explained(tx: Transaction) -> object:
            return await foreign_spends.explain(tx, txid, {account: None}, now=now)

        return _words(await self._each([lambda: self._write(0, explained)]))

    async def reconcile(self) -> str:
        """Every satoshi is explained, or lies in a spend that nobody has explained yet."""
        before = await self.unexplained()
        try:
            report = await self._services(0).reconciling.look()
        except TROUBLE as trouble:
            return f"not now: {trouble}"
        if report is None:
            return "there were no hosted sales"
        known = {txid for txid, _ in before} | self.foreign
        lines = [one for one in report.lines if not one.explained and one.subject not in known]
        if lines or (not report.explained and not report.lines):
            self._house.blame(f"reconcile leaves {report.difference_sat:,} sat: {lines}")
        return f"{report.node_sat:,} sat, {report.difference_sat:,} unexplained, {len(before)} spends are"

    async def unexplained(self) -> list[tuple[str, int]]:
        """(txid, sats) of what left the wallet and nobody has said whose it was."""
        found: dict[str, int] = {}
        query = "SELECT reference, debit, amount_msat FROM transfers WHERE ? IN (debit, credit)"
        for txid, debit, amount_msat in self._house.rows(query, ledger.unexplained()):
            sign = 1 if debit == ledger.unexplained() else -1
            found[str(txid)] = found.get(str(txid), 0) + sign * int(str(amount_msat)) // 1_000
        return [(txid, amount_sat) for txid, amount_sat in sorted(found.items()) if amount_sat]

    def _services(self, admin: int) -> Any:
        return self._house.admins[admin].services

    async def _read(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        found: T = await self._services(0).database.read(fn)
        return found

    async def _write(self, admin: int, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        done: T = await self._services(admin).database.write(fn)
        return done

    async def _each(self, tasks: Sequence[Callable[[], Awaitable[object]]]) -> list[object]:
        """All at once; what each came to, an error that is an answer among them."""
        told = await asyncio.gather(*(task() for task in tasks), return_exceptions=True)
        for one in told:
            if isinstance(one, BaseException):
                if not isinstance(one, REFUSED):
                    raise one
                self.refused += 1
        return list(told)

    async def _decide(self, admin: int, payout: Payout, approves: bool, by: str) -> object:
        services = self._services(admin)
        seller = next((one for one in self._sellers if one.id == payout.seller_id), None)
        if by == "seller" and payout.kind is Kind.REFUND and seller is not None:
            return await self._front.decide_refund(payout, seller, approves=approves)
        if approves:
            return [one.payout for one in await payout_desk.approve(services, [payout.id])]
        return (await payout_desk.decline(services, payout.id, reason="because")).payout

    async def _build(self, admin: int, feerate_sat_vb: int) -> str | None:
        services = self._services(admin)
        planned = await payout_desk.plan(services, feerate_sat_vb * 1_000)
        return None if planned is None else await payout_desk.keep(services, planned)

    async def _sign(self, admin: int, batch_id: str, signer: Signer) -> object:
        services = self._services(admin)
        if signer is Signer.WALLET:
            return _sent(await payout_desk.sign(services, batch_id))
        exported = await services.batches.export(batch_id)
        signed = await self._house.keys.rpc("walletprocesspsbt", exported)
        if not signed["complete"]:
            return "its coins are gone: they cannot be signed for"
        raw = (
            signed.get("hex") or (await self._house.world.outside.rpc("finalizepsbt", signed["psbt"]))["hex"]
        )
        if signer is Signer.ELSEWHERE:
            return await self._send_outside(raw)
        text = signed["psbt"] if signer is Signer.PSBT else raw
        return _sent(await payout_desk.import_signed(services, batch_id, text))

    async def _send_outside(self, raw: str) -> str:
        try:
            return f"sent as {await self._house.world.outside.rpc('sendrawtransaction', raw)}"
        except RpcRefused as refused:
            return f"not sent: {refused}"


def _sent(sent: payout_desk.Sent) -> str:
    return f"version {sent.version.n}" + (f", which the node refuses: {sent.refusal}" if sent.refusal else "")


def _words(told: Sequence[object]) -> str:
    words = []
    for one in told:
        match one:
            case Payout():
                words.append(f"{one.kind} {one.id} of {one.amount_sat:,} sat is {one.state}")
            case payout_desk.Sent():
                words.append(_sent(one))
            case Exception():
                words.append(f"refused: {one}")
            case _:
                words.append(str(one))
    return " | ".join(words)
