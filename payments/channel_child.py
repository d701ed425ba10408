"""Child pays for parent: where a node takes no replacement of a close, its own output pays for it.

The child spends the payee's output of the close alone and gives the rest back to the operator's wallet, which
has to sign. It is of version 3, as its parent is (BIP431). What it costs is the operator's: said before it is
sent, so that payouts never stop over it.
"""

from functools import partial

from bitcoin.core import (
    CMutableTransaction,
    CMutableTxIn,
    CMutableTxOut,
    COutPoint,
    lx,
)
from bitcoin.core.script import CScript
from sqlalchemy import insert, select

from payments import channel_close_store, ledger
from payments.addresses import AddressBook, PayoutDescriptor
from payments.bitcoind import Bitcoind
from payments.bitcoind_coins import DescriptorRange
from payments.bitcoind_psbt import PsbtNode
from payments.bitcoind_wallet import PayoutWallet
from payments.channel_close_plan import INCREMENTAL_SAT_KVB
from payments.channel_close_store import Close, Version
from payments.channel_errors import BumpRefused
from payments.channel_script import SEQUENCE, VERSION
from payments.descriptors import DescriptorStore
from payments.errors import PsbtAltered
from payments.money import Sat
from payments.own_addresses import fresh_address
from payments.payout import fee_of
from payments.payout_transaction import differences, dust_sat, txid_of
from payments.ports import Store, Transaction
from payments.tables import spend_explanations, unassigned_addresses
from payments.unassigned import Purpose

CHILD_VBYTES_MAX = 1_000
"""Of a version 3 transaction with an unconfirmed parent (BIP431)."""


class CloseChild:
    """Holds no state. `signer`: of the operator's wallet; None: there is none, and `pay` refuses."""

    def __init__(
        self,
        *,
        node: Bitcoind,
        store: Store,
        descriptors: DescriptorStore,
        addresses: AddressBook,
        signer: PayoutWallet | None,
    ) -> None:
        self._psbts = PsbtNode(node)
        self._store = store
        self._descriptors = descriptors
        self._addresses = addresses
        self._signer = signer

    async def pay(
        self,
        close: Close,
        parent: Version,
        *,
        parent_vbytes: int,
        feerate_sat_kvb: int,
        wallet: PayoutDescriptor,
    ) -> bytes:
        """The signed child, kept and followed, with which `parent` and it pay this feerate together.

        Raises BumpRefused, what `PsbtNode` and `PayoutWallet` raise, NodeUnavailable.
        """
        if self._signer is None:
            raise BumpRefused(
                "our node takes no replacement, and there is no wallet to pay for it otherwise: set [hosted] "
                "`wallet`"
            )
        if parent.payee_vout is None:
            raise BumpRefused(
                "our node takes no replacement, and the close has no output left that could pay"
            )
        change = await fresh_address(self._store, self._descriptors, self._addresses, wallet, Purpose.CHANGE)
        origins = await self._store.read(
            partial(self._origins, scripts=[close.payee_script_pubkey, change.script_pubkey])
        )
        sized = _unsigned(parent, change.script_pubkey, Sat(0))
        vbytes = await self._psbts.vsize_vbytes(await self._psbts.psbt_of(sized, origins))
        assert vbytes <= CHILD_VBYTES_MAX
        own_sat = fee_of(vbytes, INCREMENTAL_SAT_KVB)
        wanted_sat = max(own_sat, fee_of(parent_vbytes + vbytes, feerate_sat_kvb) - parent.fee_sat)
        fee_sat = min(wanted_sat, parent.payee_sat - dust_sat(change.script_pubkey))
        if fee_sat < own_sat:
            raise BumpRefused(
                "our node takes no replacement, and the close's output is too small to pay for it"
            )
        unsigned = _unsigned(parent, change.script_pubkey, Sat(parent.payee_sat - fee_sat))
        psbt = await self._psbts.psbt_of(unsigned, origins)
        raw = await self._psbts.finalize(await self._signer.sign(psbt))
        if found := differences(unsigned, raw):
            raise PsbtAltered(found)
        await self._store.write(partial(self._keep, parent_txid=parent.txid, raw=raw))
        return raw

    async def _origins(self, tx: Transaction, *, scripts: list[bytes]) -> list[DescriptorRange]:
        chosen = select(unassigned_addresses).where(unassigned_addresses.c.script_pubkey.in_(scripts))
        return [
            DescriptorRange(
                (await self._descriptors.load(tx, row.descriptor_id)).text,
                row.address_index,
                row.address_index,
            )
            for row in (await tx.execute(chosen)).all()
        ]

    async def _keep(self, tx: Transaction, *, parent_txid: str, raw: bytes) -> None:
        txid = txid_of(raw)
        await channel_close_store.set_child(tx, parent_txid, txid)
        await channel_close_store.follow(tx, raw)
        said = select(spend_explanations.c.txid).where(spend_explanations.c.txid == txid)
        if (await tx.execute(said)).first() is None:
            # None: all that it takes out of the wallet.
            await tx.execute(
                insert(spend_explanations).values(txid=txid, account=ledger.operator(), amount_sat=None)
            )


def _unsigned(parent: Version, change_script_pubkey: bytes, change_sat: Sat) -> bytes:
    assert parent.payee_vout is not None
    transaction = CMutableTransaction(
        [CMutableTxIn(COutPoint(lx(parent.txid), parent.payee_vout), nSequence=SEQUENCE)],
        [CMutableTxOut(change_sat, CScript(change_script_pubkey))],
        0,
        VERSION,
    )
    return bytes(transaction.serialize())
