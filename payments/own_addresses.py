"""Addresses of the operator's wallet that it takes for itself: for deposits, change, and what closes pay."""

from collections.abc import Awaitable, Callable

from payments.addresses import AddressBook, PayoutDescriptor
from payments.descriptors import DescriptorStore
from payments.errors import AddressesNotDerived
from payments.ports import Store, Transaction
from payments.records import IssuedAddress
from payments.unassigned import Purpose, add_own_address


async def fresh_address(
    store: Store,
    descriptors: DescriptorStore,
    addresses: AddressBook,
    wallet: PayoutDescriptor,
    purpose: Purpose,
    *,
    unused: Callable[[Transaction, str], Awaitable[IssuedAddress | None]] | None = None,
) -> IssuedAddress:
    """One that nothing has used, kept and watched for ever from now on.

    `unused`: one that was kept before and never used, if there is one. Raises DescriptorInvalid,
    AddressesInDoubt, NodeUnavailable.
    """

    async def write(tx: Transaction) -> IssuedAddress:
        kept = None if unused is None else await unused(tx, wallet.id)
        if kept is not None:
            return kept
        issued = await descriptors.issue(tx, wallet.id, addresses)
        await add_own_address(tx, issued, purpose)
        return issued

    while True:
        try:
            return await store.write(write)
        except AddressesNotDerived as missing:
            await addresses.ensure(wallet, missing.index)
