"""The operator's wallet that hosted sales are paid to: what the configuration names, as our node reads it.

It is asked of the node once in each process. Wallets of former configurations keep their coins and their
watched addresses; only new invoices and change go to the one that is named now.
"""

import asyncio
from functools import partial

from sqlalchemy import update

from bitcache.config import Config
from bitcache.errors import HostedSalesOff
from payments.addresses import DescriptorNode, PayoutDescriptor, normalise_descriptor
from payments.descriptors import DescriptorStore
from payments.ports import Clock, Store, Transaction
from payments.tables import descriptors


class HostedWallet:
    """`known` is None until `open` has asked the node."""

    def __init__(
        self,
        *,
        config: Config,
        node: DescriptorNode,
        store: Store,
        descriptors: DescriptorStore,
        clock: Clock,
    ) -> None:
        self._config = config
        self._node = node
        self._store = store
        self._descriptors = descriptors
        self._clock = clock
        self._opening = asyncio.Lock()
        self.known: PayoutDescriptor | None = None

    @property
    def enabled(self) -> bool:
        """Whether sellers may choose hosted sales here."""
        return bool(self._config.hosted.descriptor)

    async def open(self) -> PayoutDescriptor:
        """The wallet, registered in the database.

        Raises HostedSalesOff, NodeUnavailable, and DescriptorInvalid for a configuration that must change.
        """
        if not self.enabled:
            raise HostedSalesOff
        async with self._opening:
            if self.known is None:
                text, network = self._config.hosted.descriptor, self._config.network
                descriptor = await normalise_descriptor(self._node, text, network)
                await self._store.write(partial(self._register, descriptor=descriptor))
                self.known = descriptor
            return self.known

    async def _register(self, tx: Transaction, *, descriptor: PayoutDescriptor) -> None:
        await self._descriptors.register(tx, descriptor, start_index=0, now=self._clock())
        await tx.execute(
            update(descriptors)
            .where(descriptors.c.id == descriptor.id)
            .values(hosted=True, gap_limit=self._config.hosted.gap_limit)
        )
