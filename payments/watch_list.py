"""What the watcher looks for, in memory: the scriptPubKey of every invoice and of every channel's contract,
what the payments to them spend, the coins of the operator's wallet, and the deposits of channels.

A million scripts take about 140 MB.
"""

from collections.abc import Iterable, Iterator

from payments import chain_facts, channel_store, coins, payable, unassigned
from payments.block import ParsedBlock, outpoint_bytes
from payments.chain_facts import PaidOutput, PayingTransaction
from payments.outputs import OutPoint
from payments.ports import Transaction
from payments.transaction import TransactionOutput

CONFLICT_DEPTH = 288
"""Payments deeper than this are not watched for double spends: no reorg of two days was ever seen."""


class WatchList:
    """`scripts` and `outpoints` are what `scan_block` takes. Entries are only ever added.

    `channels`: whether contracts and deposits of payment channels are looked for.
    """

    def __init__(self, *, channels: bool = False) -> None:
        self.scripts: dict[bytes, str | None] = {}
        """scriptPubKey -> invoice id; None for one that only a lost database may have handed out, and for a
        contract's."""
        self.outpoints: dict[bytes, set[str]] = {}
        """Outpoint, 36 bytes -> txids of the payments that spend it."""
        self._payers: set[str] = set()
        self._coins: set[bytes] = set()
        """Outpoints of the operator's wallet and of channels; in `outpoints` too, whether a payment spends
        them or not."""
        self._new_outputs: set[OutPoint] = set()
        """In blocks that were scanned and not recorded yet: coins, or a seller's own."""
        self.hosted = False
        """Whether there is, or ever was, a wallet of the operator's."""
        self._channels = channels
        self.contracts_seq = 0
        """Up to which contracts, and deposits to them, are watched."""

    async def load(self, tx: Transaction) -> None:
        """Add everything in the database that can still matter."""
        from_height = await chain_facts.tip_height(tx) - CONFLICT_DEPTH
        async for some in chain_facts.watched_scripts(tx):
            self.scripts.update(some)
        self.watch_unassigned(await unassigned.watched_scripts(tx))
        for outpoint, payers in (await chain_facts.watched_inputs(tx, from_height=from_height)).items():
            for txid in payers:
                self._add_spend(outpoint, txid)
        for outpoint in await coins.watched(tx, spent_above=from_height):
            self._add_coin(outpoint)
        if self._channels:
            for outpoint in await channel_store.watched_outpoints(tx, spent_above=from_height):
                self._add_coin(outpoint)
            scripts, self.contracts_seq = await channel_store.scripts_after(tx, 0)
            self.watch_unassigned(scripts)
        self.hosted = bool(await payable.hosted_descriptors(tx))

    async def load_new(self, tx: Transaction) -> None:
        """Add what another process handed out, before a block is scanned: nobody told us of it."""
        self.scripts |= await chain_facts.open_scripts(tx)
        self.watch_unassigned(await unassigned.own_scripts(tx))
        if self._channels:
            await self._load_contracts(tx)
        self.hosted = bool(await payable.hosted_descriptors(tx))

    async def load_among(self, tx: Transaction, script_pubkeys: Iterable[bytes]) -> None:
        """As `load_new`, those with one of these scripts only: however many are open, it costs the same."""
        unknown = [script for script in script_pubkeys if self.scripts.get(script) is None]
        self.scripts |= await chain_facts.invoices_paid_by(tx, unknown)
        if self._channels:
            self.watch_unassigned(await channel_store.scripts_among(tx, unknown))

    def watch_unassigned(self, scripts: Iterable[bytes]) -> None:
        """Add scripts that no invoice has, as far as we know."""
        for script_pubkey in scripts:
            self.scripts.setdefault(script_pubkey, None)

    def add(self, payments: Iterable[PayingTransaction]) -> None:
        for payment in payments:
            self._payers.add(payment.txid)
            for previous in payment.inputs:
                self._add_spend(previous, payment.txid)

    def pays(self, txid: str) -> bool:
        """Whether this transaction is one of the payments."""
        return txid in self._payers

    def rivals_of(self, payments: Iterable[PayingTransaction]) -> set[str]:
        """Txids of other payments that spend an input of these."""
        payments = tuple(payments)
        spent = {outpoint_bytes(previous) for payment in payments for previous in payment.inputs}
        payers = set().union(*(self.outpoints.get(outpoint, set()) for outpoint in spent))
        return payers - {payment.txid for payment in payments}

    def payments_in(self, block: ParsedBlock) -> Iterator[PayingTransaction]:
        for transaction in block.transactions:
            outputs = self.outputs_among(transaction.outputs)
            if outputs:
                yield PayingTransaction(
                    txid=transaction.txid,
                    raw=transaction.raw,
                    inputs=transaction.inputs,
                    outputs=outputs,
                    coinbase=transaction.coinbase,
                )

    def note_outputs(self, block: ParsedBlock) -> set[bytes]:
        """Watch what this block pays us: the next one may spend it before we know whose wallet it is in.

        The outpoints, 36 bytes each.
        """
        noted: set[bytes] = set()
        for payment in self.payments_in(block):
            for output in payment.outputs:
                outpoint = OutPoint(payment.txid, output.vout)
                self._new_outputs.add(outpoint)
                self._add_coin(outpoint)
                noted.add(outpoint_bytes(outpoint))
        return noted

    async def keep_coins(self, tx: Transaction) -> None:
        """Once they are recorded, go on watching those in the operator's wallet, and deposits of channels."""
        noted, self._new_outputs = self._new_outputs, set()
        if not noted:
            return
        kept = set(await coins.among(tx, noted))
        if self._channels:
            kept |= await channel_store.outpoints_among(tx, noted)
        for outpoint in noted - kept:
            key = outpoint_bytes(outpoint)
            self._coins.discard(key)
            if not self.outpoints.get(key):
                self.outpoints.pop(key, None)

    def spends_in(self, block: ParsedBlock) -> Iterator[PayingTransaction]:
        """Transactions that spend coins of the operator's wallet, or deposits: payouts, closes, anything."""
        for transaction in block.transactions:
            if any(outpoint_bytes(previous) in self._coins for previous in transaction.inputs):
                yield PayingTransaction(
                    txid=transaction.txid,
                    raw=transaction.raw,
                    inputs=transaction.inputs,
                    outputs=self.outputs_among(transaction.outputs),
                    coinbase=transaction.coinbase,
                )

    def outputs_among(self, outputs: Iterable[TransactionOutput]) -> tuple[PaidOutput, ...]:
        """Those that pay us."""
        return tuple(
            PaidOutput(
                output.vout, output.amount_sat, output.script_pubkey, self.scripts[output.script_pubkey]
            )
            for output in outputs
            if output.script_pubkey in self.scripts
        )

    def robbed_by(self, block: ParsedBlock) -> Iterator[str]:
        """Txids of payments of which another transaction in this block spends an input."""
        for transaction in block.transactions:
            for previous in transaction.inputs:
                yield from self.outpoints.get(outpoint_bytes(previous), set()) - {transaction.txid}

    async def _load_contracts(self, tx: Transaction) -> None:
        """Contracts that were announced since, and deposits that another process has recorded."""
        scripts, self.contracts_seq = await channel_store.scripts_after(tx, self.contracts_seq)
        self.watch_unassigned(scripts)
        deposits = await channel_store.deposits_to(tx, scripts)
        for outpoint in deposits:
            self._add_coin(outpoint)
        unknown = {outpoint.txid for outpoint in deposits} - self._payers
        for txid, inputs in (await chain_facts.inputs_of(tx, unknown)).items():
            for previous in inputs:
                self._add_spend(previous, txid)

    def _add_coin(self, outpoint: OutPoint) -> None:
        key = outpoint_bytes(outpoint)
        self._coins.add(key)
        self.outpoints.setdefault(key, set())

    def _add_spend(self, outpoint: OutPoint, txid: str) -> None:
        self.outpoints.setdefault(outpoint_bytes(outpoint), set()).add(txid)
        self._payers.add(txid)
