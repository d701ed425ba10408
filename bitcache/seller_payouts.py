"""A seller's hosted balance, and the payouts asked of it.

A payout names no address: it goes to the target in force, which is frozen in it. The amount is set aside in
the transaction that makes it, so of two requests for the whole balance one wins. The seller's own payouts
need nobody's approval.
"""

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from sqlalchemy import select

from bitcache import events, payout_targets
from bitcache.config import Config
from bitcache.errors import (
    BalanceNegative,
    IdempotencyKeyReused,
    NotFound,
    PayoutAbovePayable,
    PayoutBelowDust,
    PayoutBelowMinimum,
    PayoutNodeOffline,
    PayoutTargetMissing,
)
from bitcache.ids import id_text
from bitcache.node_state import node_state
from bitcache.payout_targets import Target
from bitcache.payout_wallet import TOPIC, PayoutTold, wallet
from payments import books, ledger, payable, payout_requests, payout_store
from payments.addresses import AddressBook
from payments.descriptors import DescriptorStore
from payments.errors import AddressesNotDerived, PayoutsStopped
from payments.money import NOTHING_SAT, Sat, sat_rounded_down
from payments.payout import Kind, Payout, State
from payments.payout_transaction import dust_sat
from payments.ports import Clock, Store, Transaction
from payments.tables import payouts

ATTEMPTS_MAX = 5
STOPPED = (
    "Payouts are stopped until the operator has looked into the wallet. Your balance is not touched: ask the "
    "operator when they go on."
)
"""What exactly is wrong is the operator's business."""

T = TypeVar("T")


class SellerPayouts:
    """Holds no state."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        descriptors: DescriptorStore,
        addresses: AddressBook,
        clock: Clock,
    ) -> None:
        self._config = config
        self._store = store
        self._descriptors = descriptors
        self._addresses = addresses
        self._clock = clock

    @property
    def depth(self) -> int:
        return self._config.hosted.depth

    async def request(
        self,
        tx: Transaction,
        account_id: str,
        *,
        payout_id: str,
        amount_sat: int | None,
        least_sat: int | None = None,
        now: int,
    ) -> Payout:
        """Set so many sats aside for a payout to the target in force; None: all that is payable.

        The same id again is the same payout, wherever the target is by then. `least_sat`: no payout below it,
        besides the operator's minimum. Raises IdempotencyKeyReused if it was for another amount, what
        `why_stopped` gives, NotPayable, PayoutRefused, AddressesInDoubt; and AddressesNotDerived, which
        `with_addresses` deals with.
        """
        known = await payout_store.find_payout(tx, payout_id)
        if known is not None:
            if amount_sat not in (None, known.amount_sat):
                raise IdempotencyKeyReused(
                    f"This Idempotency-Key was used for a payout of {known.amount_sat:,} sat. Use a new key "
                    "for a new payout."
                )
            return known
        trouble = await self.why_stopped(tx, now=now)
        if trouble is not None:
            raise trouble
        target = (await payout_targets.targets(tx, account_id, now=now)).current
        amount = await self._amount(tx, account_id, target, amount_sat, least_sat or 0)
        address, script_pubkey = await self._address(tx, account_id, target, now)
        payout = Payout(
            id=payout_id,
            kind=Kind.SELLER,
            seller_id=account_id,
            invoice_id=None,
            account=ledger.seller(account_id),
            amount_sat=amount,
            address=address,
            script_pubkey=script_pubkey,
            state=State.APPROVED,
            requested_at=now,
            ready_at=now,
        )
        made = await payout_requests.request(tx, payout, depth=self.depth, now=now)
        await _tell(tx, made, now)
        return made

    async def cancel(self, tx: Transaction, account_id: str, payout_id: str, *, now: int) -> Payout:
        """Give the amount back to the balance. Raises NotFound, PayoutConflict once it is in a batch."""
        payout = await find_own(tx, account_id, payout_id)
        if payout.state is State.CANCELLED:
            return payout
        cancelled = await payout_requests.cancel(tx, payout_id, now=now)
        await _tell(tx, cancelled, now)
        return cancelled

    async def with_addresses(self, make: Callable[[Transaction], Awaitable[T]]) -> T:
        """`make` in a write transaction, tried again once the addresses it lacks are derived."""
        return await self.deriving(partial(self._store.write, make))

    async def deriving(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """`attempt`, tried again once the addresses it lacks are derived: no transaction waits for the node.

        Raises NodeUnavailable, and what `attempt` raises.
        """
        for _ in range(ATTEMPTS_MAX):
            try:
                return await attempt()
            except AddressesNotDerived as exc:
                load = partial(self._descriptors.load, descriptor_id=exc.descriptor_id)
                await self._addresses.ensure(await self._store.read(load), exc.index)
        raise PayoutNodeOffline  # others took every address that was derived meanwhile

    async def why_stopped(self, tx: Transaction, *, now: int) -> PayoutsStopped | PayoutNodeOffline | None:
        """Why nobody is paid out now; None: nothing stops payouts."""
        if await payable.stopped(tx) is not None:
            return PayoutsStopped(STOPPED)
        if not (await node_state(tx, now)).online:
            return PayoutNodeOffline()
        return None

    async def _amount(
        self,
        tx: Transaction,
        account_id: str,
        target: Target | None,
        asked_sat: int | None,
        least_sat: int,
    ) -> Sat:
        """What a payout would be of. Raises NotPayable."""
        account = ledger.seller(account_id)
        balance_sat = sat_rounded_down(await books.balance(tx, account))
        if balance_sat < 0:
            raise BalanceNegative(balance_sat)
        if target is None:
            raise PayoutTargetMissing
        payable_sat = max(NOTHING_SAT, await payable.payable_sat(tx, account, depth=self.depth))
        amount_sat = payable_sat if asked_sat is None else Sat(asked_sat)
        dust = dust_sat(target.script_pubkey) if target.script_pubkey is not None else NOTHING_SAT
        if asked_sat is not None and amount_sat < dust:
            raise PayoutBelowDust(dust)
        minimum_sat = max(self._config.hosted.payout_min_sat, least_sat)
        if amount_sat < minimum_sat:
            raise PayoutBelowMinimum(minimum_sat, payable_sat=payable_sat)
        if amount_sat > payable_sat:
            raise PayoutAbovePayable(payable_sat)
        return amount_sat

    async def _address(
        self, tx: Transaction, account_id: str, target: Target | None, now: int
    ) -> tuple[str, bytes]:
        assert target is not None, "without a target there is no amount"
        if target.address is not None and target.script_pubkey is not None:
            return target.address, target.script_pubkey
        own = await wallet(tx, account_id, now=now)
        assert own is not None, "else there is no target"
        given_back = await self._given_back(tx, account_id, own.descriptor_id)
        if given_back is not None:
            return given_back
        issued = await self._descriptors.issue(tx, own.descriptor_id, self._addresses)
        return issued.address, issued.script_pubkey

    async def _given_back(
        self, tx: Transaction, account_id: str, descriptor_id: str
    ) -> tuple[str, bytes] | None:
        """The wallet's newest address, if the payout that took it was cancelled and nothing was paid to it.

        Else asking and cancelling would use up the addresses that the wallet looks at.
        """
        index = await self._descriptors.next_index(tx, descriptor_id) - 1
        if index < 0:
            return None
        newest = self._addresses.at(descriptor_id, index)
        of_script = select(payouts.c.seller_id, payouts.c.state).where(
            payouts.c.script_pubkey == newest.script_pubkey
        )
        rows = (await tx.execute(of_script)).all()
        if not rows or any((row.seller_id, row.state) != (account_id, State.CANCELLED) for row in rows):
            return None
        if await payable.is_ours(tx, newest.script_pubkey):
            return None
        return newest.address, newest.script_pubkey


async def find_own(tx: Transaction, account_id: str, payout_id: str) -> Payout:
    """Raises NotFound, for another's payout and for a refund too."""
    payout = await payout_store.find_payout(tx, payout_id)
    if payout is None or payout.seller_id != account_id or payout.kind is not Kind.SELLER:
        raise NotFound("payout", payout_id)
    return payout


def payout_id_of(account_id: str, idempotency_key: str) -> str:
    """A request that is repeated is for the same payout, though the kept answer may be lost. Pure."""
    text = f"payout\0{account_id}\0{idempotency_key}"
    return id_text(hashlib.sha256(text.encode()).digest()[:16])


async def _tell(tx: Transaction, payout: Payout, now: int) -> None:
    assert payout.seller_id is not None, "of a seller"
    told = PayoutTold(payout_id=payout.id, state=payout.state.value)
    await events.append(tx, topic=TOPIC, subject=payout.seller_id, payload=told, now=now)
