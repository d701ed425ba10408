"""Payout descriptors in the database, and the addresses taken from them.

An index belongs to the descriptor, not to the account: two accounts with one wallet never share an address.
The text is sealed, since who holds it can follow a seller's whole wallet.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import exists, func, insert, select, union_all, update

from payments import restores, unassigned
from payments.addresses import AddressBook, PayoutDescriptor
from payments.errors import AddressesInDoubt, DescriptorInvalid
from payments.ports import Transaction
from payments.records import IssuedAddress
from payments.tables import descriptors, invoices, payouts, received_outputs, unassigned_outputs

ADDRESS_INDEX_MAX = 2**31 - 1
"""Unhardened child numbers end here (BIP32)."""
GAP_LIMIT_DEFAULT = 20
"""Unused addresses that wallets look at before they give up (BIP44)."""


@dataclass(frozen=True, slots=True)
class DescriptorUsage:
    """How far a descriptor is used; what a wallet's gap limit must bridge is `unused_streak`."""

    next_index: int
    highest_index_used: int | None
    """The highest index handed out; None before the first."""
    unused_streak: int
    """Addresses in a row, handed out or skipped, the newest first, that never received anything."""
    gap_limit: int = GAP_LIMIT_DEFAULT
    """How many of those the wallet bridges, as its seller says."""


class DescriptorStore:
    """`seal` and `unseal` take the plaintext or ciphertext and the descriptor's id."""

    def __init__(self, *, seal: Callable[[bytes, str], bytes], unseal: Callable[[bytes, str], bytes]) -> None:
        self._seal = seal
        self._unseal = unseal

    async def register(
        self, tx: Transaction, descriptor: PayoutDescriptor, *, start_index: int, now: int
    ) -> None:
        """Keep a descriptor; known already, only its next index may rise: an index never goes back."""
        known = await tx.scalar(
            select(descriptors.c.next_index).where(descriptors.c.id == descriptor.id).with_for_update()
        )
        if known is None:
            await tx.execute(
                insert(descriptors).values(
                    id=descriptor.id,
                    sealed_text=self._seal(descriptor.text.encode(), descriptor.id),
                    next_index=start_index,
                    created_at=now,
                )
            )
            await restores.register(tx, descriptor.id, start_index=start_index)
        elif start_index > known:
            await tx.execute(
                update(descriptors).where(descriptors.c.id == descriptor.id).values(next_index=start_index)
            )

    async def load(self, tx: Transaction, descriptor_id: str) -> PayoutDescriptor:
        """Raises DescriptorInvalid if there is none with this id."""
        sealed = await tx.scalar(select(descriptors.c.sealed_text).where(descriptors.c.id == descriptor_id))
        if sealed is None:
            raise DescriptorInvalid("there is no such payout descriptor: set it again")
        return PayoutDescriptor(id=descriptor_id, text=self._unseal(sealed, descriptor_id).decode())

    async def next_index(self, tx: Transaction, descriptor_id: str) -> int:
        return int(
            await tx.scalar(select(descriptors.c.next_index).where(descriptors.c.id == descriptor_id)) or 0
        )

    async def issue(self, tx: Transaction, descriptor_id: str, book: AddressBook) -> IssuedAddress:
        """Take the next address for one invoice or one payout, for ever.

        Skips any address that another ever had, through whatever descriptor, or that was ever paid.
        Raises AddressesNotDerived when the window in memory ends: derive more outside the transaction, then
        try again. Raises AddressesInDoubt.
        """
        index = await tx.scalar(
            select(descriptors.c.next_index).where(descriptors.c.id == descriptor_id).with_for_update()
        )
        if index is None:
            raise DescriptorInvalid("there is no such payout descriptor: set it again")
        if await restores.in_doubt(tx, descriptor_id):
            raise AddressesInDoubt(descriptor_id)
        while True:
            if index > ADDRESS_INDEX_MAX:
                raise DescriptorInvalid("every address of this descriptor is used: set another one")
            derived = book.at(descriptor_id, index)
            if not await _is_used(tx, derived.script_pubkey):
                break
            index += 1
        await tx.execute(
            update(descriptors).where(descriptors.c.id == descriptor_id).values(next_index=index + 1)
        )
        return IssuedAddress(
            descriptor_id=descriptor_id,
            index=index,
            address=derived.address,
            script_pubkey=derived.script_pubkey,
        )

    async def usage(self, tx: Transaction, descriptor_id: str) -> DescriptorUsage:
        """Addresses that a restore skipped count as handed out: a wallet's gap limit must bridge them too."""
        of_descriptor = invoices.c.descriptor_id == descriptor_id
        paid = exists().where(received_outputs.c.invoice_id == invoices.c.id)
        highest = await tx.scalar(select(func.max(invoices.c.address_index)).where(of_descriptor))
        newest_first = select(invoices.c.address_index).order_by(invoices.c.address_index.desc()).limit(1)
        highest_paid = await tx.scalar(newest_first.where(of_descriptor, paid))
        paid_indexes = (highest_paid, await unassigned.highest_used(tx, descriptor_id))
        highest_paid = max((index for index in paid_indexes if index is not None), default=None)
        streak = select(func.count()).select_from(invoices).where(of_descriptor)
        if highest_paid is not None:
            streak = streak.where(invoices.c.address_index > highest_paid)
        next_index = await self.next_index(tx, descriptor_id)
        skipped = await unassigned.count_skipped(
            tx, descriptor_id, above=-1 if highest_paid is None else highest_paid, below=next_index
        )
        return DescriptorUsage(
            next_index=next_index,
            highest_index_used=highest,
            unused_streak=int(await tx.scalar(streak) or 0) + skipped,
            gap_limit=await self.gap_limit(tx, descriptor_id),
        )

    async def unused_streak(self, tx: Transaction, descriptor_id: str, *, at_most: int) -> int:
        """As in `usage`, but without what a restore skipped, which nobody used up.

        Counted no further than `at_most`: its cost does not grow with what was sold.
        """
        newest = (
            select(invoices.c.address_index, exists().where(received_outputs.c.invoice_id == invoices.c.id))
            .where(invoices.c.descriptor_id == descriptor_id)
            .order_by(invoices.c.address_index.desc())
            .limit(at_most)
        )
        count = 0
        for _, paid in (await tx.execute(newest)).all():
            if paid:
                break
            count += 1
        return count

    async def gap_limit(self, tx: Transaction, descriptor_id: str) -> int:
        confirmed = await tx.scalar(select(descriptors.c.gap_limit).where(descriptors.c.id == descriptor_id))
        return GAP_LIMIT_DEFAULT if confirmed is None else int(confirmed)

    async def set_gap_limit(self, tx: Transaction, descriptor_id: str, gap_limit: int) -> None:
        await tx.execute(
            update(descriptors).where(descriptors.c.id == descriptor_id).values(gap_limit=gap_limit)
        )


async def _is_used(tx: Transaction, script_pubkey: bytes) -> bool:
    """An invoice ever had it, or a payout, or it was paid without one."""
    invoiced = select(invoices.c.script_pubkey).where(invoices.c.script_pubkey == script_pubkey)
    paid = select(unassigned_outputs.c.script_pubkey).where(
        unassigned_outputs.c.script_pubkey == script_pubkey
    )
    paid_out = select(payouts.c.script_pubkey).where(payouts.c.script_pubkey == script_pubkey)
    return await tx.scalar(union_all(invoiced, paid, paid_out).limit(1)) is not None
