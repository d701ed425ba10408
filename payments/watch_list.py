"""What the watcher looks for, in memory: every invoice's scriptPubKey, and what the payments to them spend.

A million scripts take about 140 MB.
"""

from collections.abc import Iterable, Iterator

from payments import chain_facts, unassigned
from payments.block import ParsedBlock, outpoint_bytes
from payments.chain_facts import PaidOutput, PayingTransaction
from payments.outputs import OutPoint
from payments.ports import Transaction
from payments.transaction import TransactionOutput

CONFLICT_DEPTH = 288
"""Payments deeper than this are not watched for double spends: no reorg of two days was ever seen."""


class WatchList:
    """`scripts` and `outpoints` are what `scan_block` takes. Entries are only ever added."""

    def __init__(self) -> None:
        self.scripts: dict[bytes, str | None] = {}
        """scriptPubKey -> invoice id; None for one that only a lost database may have handed out."""
        self.outpoints: dict[bytes, set[str]] = {}
        """Outpoint, 36 bytes -> txids of the payments that spend it."""
        self._payers: set[str] = set()

    async def load(self, tx: Transaction) -> None:
        """Add everything in the database that can still matter."""
        tip = await chain_facts.tip(tx)
        from_height = (tip.height if tip else 0) - CONFLICT_DEPTH
        async for some in chain_facts.watched_scripts(tx):
            self.scripts.update(some)
        self.watch_unassigned(await unassigned.watched_scripts(tx))
        for outpoint, payers in (await chain_facts.watched_inputs(tx, from_height=from_height)).items():
            for txid in payers:
                self._add_spend(outpoint, txid)

    async def load_new(self, tx: Transaction) -> None:
        """Add the invoices that another process made, before a block is scanned: nobody told us of them."""
        self.scripts |= await chain_facts.open_scripts(tx)

    async def load_among(self, tx: Transaction, script_pubkeys: Iterable[bytes]) -> None:
        """As `load_new`, those with one of these scripts only: however many are open, it costs the same."""
        unknown = [script for script in script_pubkeys if self.scripts.get(script) is None]
        self.scripts |= await chain_facts.invoices_paid_by(tx, unknown)

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

    def _add_spend(self, outpoint: OutPoint, txid: str) -> None:
        self.outpoints.setdefault(outpoint_bytes(outpoint), set()).add(txid)
        self._payers.add(txid)
