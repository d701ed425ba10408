"""What can go wrong with money, one class per thing a caller would do differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from payments.outputs import OutPoint

LISTED_MAX = 10
"""A message names so many things, and counts the rest."""


class PaymentsError(Exception):
    """Base of every error of this package."""


class AmountInvalid(PaymentsError):
    """An amount that cannot exist or cannot be paid on chain."""


class NodeUnavailable(PaymentsError):
    """Our bitcoin node does not answer, is warming up, or is not fit to judge payments. Try again later."""


class NodeRefused(PaymentsError):
    """The node understood the call and refused it."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"the node refused {method}: {message} ({code})")
        self.method = method
        self.code = code
        self.message = message


class NodeMisconfigured(PaymentsError):
    """The node runs, but not as the service needs it; the message says which setting to change."""


class DescriptorInvalid(PaymentsError):
    """A payout descriptor or extended key that cannot be used; the message says what to give instead."""


class AddressesNotDerived(PaymentsError):
    """The derived window ends before the next address: derive more outside the transaction, retry."""

    def __init__(self, descriptor_id: str, index: int) -> None:
        super().__init__(f"address {index} of descriptor {descriptor_id} is not derived yet")
        self.descriptor_id = descriptor_id
        self.index = index


class AddressesInDoubt(PaymentsError):
    """After a restore: which addresses of the descriptor were handed out is not known yet."""

    def __init__(self, descriptor_id: str) -> None:
        super().__init__(f"the used addresses of descriptor {descriptor_id} are still searched for")
        self.descriptor_id = descriptor_id


class StartIndexUsed(PaymentsError):
    """Addresses from there on are known to be used."""

    def __init__(self, first_unused: int) -> None:
        super().__init__(f"the addresses below {first_unused} are used: give that index or a higher one")
        self.first_unused = first_unused


class StartIndexTooHigh(PaymentsError):
    """So many addresses are never skipped: each is derived, and watched for ever."""

    def __init__(self, highest: int) -> None:
        super().__init__(f"{highest} is the highest index that can be chosen now: look for a digit too many")
        self.highest = highest


class InvoiceNotFound(PaymentsError):
    """No invoice has this id."""


class InvoiceNotRenewable(PaymentsError):
    """The invoice needs no new term, or can get none; the message says which."""


class LedgerImbalance(PaymentsError):
    """The books contradict themselves. A bug: nothing is written."""


class BlockUnavailable(PaymentsError):
    """The node has no such block, or has pruned it."""

    def __init__(self, block_hash: str, reason: str) -> None:
        super().__init__(f"the node cannot give block {block_hash}: {reason}")
        self.block_hash = block_hash
        self.reason = reason


class PeersHaveNotBlock(PaymentsError):
    """No peer gave our node a block that it had pruned."""

    def __init__(self, height: int) -> None:
        super().__init__(
            f"no peer gave the node block {height}: connect it to one that keeps the whole chain "
            "(`addnode HOST add`), then try again"
        )
        self.height = height


class BlockMalformed(PaymentsError):
    """These bytes are not a block."""


class TransactionMalformed(PaymentsError):
    """These bytes are not a transaction."""


class CoinsSpent(PaymentsError):
    """Outputs that a transaction was to spend are not, or no longer, unspent in the node's chain."""

    def __init__(self, outpoints: Sequence[OutPoint]) -> None:
        super().__init__(
            f"the node knows no unspent output {_listed(outpoints)}: it was spent, or its block was undone; "
            "build the transaction again from other coins"
        )
        self.outpoints = tuple(outpoints)


class PreviousTransactionMissing(PaymentsError):
    """The node cannot prove the amounts of these coins: it has pruned the blocks that made them."""

    def __init__(self, outpoints: Sequence[OutPoint]) -> None:
        super().__init__(
            f"the node cannot give the transaction that made {_listed(outpoints)}, and signers want to see "
            "it: spend other coins, use a segwit wallet, or a node that keeps its blocks (`prune=0`)"
        )
        self.outpoints = tuple(outpoints)


class PsbtInvalid(PaymentsError):
    """What was given is no PSBT, or none that can be used; the message says what to give instead."""


class PsbtIncomplete(PaymentsError):
    """Signatures are missing."""

    def __init__(self, inputs: Sequence[int]) -> None:
        super().__init__(
            f"signatures are missing for input {_listed(inputs)} (counted from 0): sign the PSBT with the "
            "wallet that has these keys, with all of its signers, and give it again"
        )
        self.inputs = tuple(inputs)


class WalletNotFound(PaymentsError):
    """The node has no wallet of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the node has no wallet {name!r}: create or restore it there (`createwallet`, `restorewallet`), "
            "or correct its name"
        )
        self.name = name


class WalletNotLoaded(PaymentsError):
    """The node has the wallet and cannot open it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the node cannot open the wallet {name!r}: {reason}")
        self.name = name
        self.reason = reason


class WalletLocked(PaymentsError):
    """The wallet is encrypted, and there is no passphrase, or a wrong one."""

    def __init__(self, name: str, *, passphrase_wrong: bool) -> None:
        what = "the passphrase given for it is wrong" if passphrase_wrong else "no passphrase is given for it"
        super().__init__(f"the wallet {name!r} is encrypted, and {what}: correct it, then sign again")
        self.name = name
        self.passphrase_wrong = passphrase_wrong


class WalletCannotSign(PaymentsError):
    """The wallet lacks keys for some or all inputs."""

    def __init__(self, name: str, inputs: Sequence[int]) -> None:
        super().__init__(
            f"the wallet {name!r} cannot sign input {_listed(inputs)} (counted from 0): it does not have "
            "these keys. Name the wallet whose descriptor receives the money, or sign the PSBT elsewhere"
        )
        self.name = name
        self.inputs = tuple(inputs)


class PolicyInvalid(PaymentsError):
    """A confirmation policy no offer may have; the message says what to choose instead."""


def _listed(things: Sequence[object]) -> str:
    words = ", ".join(str(thing) for thing in things[:LISTED_MAX])
    return words if len(things) <= LISTED_MAX else f"{words} and {len(things) - LISTED_MAX} more"


class PayoutRefused(PaymentsError):
    """A payout that cannot be asked for as it is; the message says what to change."""


class PayoutNotFound(PaymentsError):
    """No payout, or no batch, has this id."""


class PayoutConflict(PaymentsError):
    """What is asked does not go with where the payout or its batch is now; the message says where that is."""


class SpendNotFound(PaymentsError):
    """No transaction of this id took anything out of the operator's wallet, as the books know it."""

    def __init__(self, txid: str) -> None:
        super().__init__(
            f"no transaction {txid} in a block took money out of the wallet without a payout: "
            "`bitcache reconcile` lists those that did"
        )
        self.txid = txid


class ExplanationRefused(PaymentsError):
    """An account that cannot bear what a transaction took; the message says which can."""


class ReconciliationFailed(PaymentsError):
    """Node and books could not be compared now; the message says why, and what to do."""


class PayoutsStopped(PaymentsError):
    """Nothing is paid out now; the message says why, and what the operator must do."""


class PsbtAltered(PaymentsError):
    """A signed transaction that is not what was asked for."""

    def __init__(self, differences: tuple[str, ...]) -> None:
        super().__init__(
            "the signed transaction is not the one that was asked for: "
            + "; ".join(differences)
            + ". Nothing was sent: sign the exported PSBT as it is"
        )
        self.differences = differences


SIGNING_TROUBLE = (
    CoinsSpent,
    PreviousTransactionMissing,
    PsbtAltered,
    PsbtIncomplete,
    PsbtInvalid,
    WalletCannotSign,
    WalletLocked,
    WalletNotFound,
    WalletNotLoaded,
)
"""What keeps a transaction of the operator's wallet from being made or signed, and the operator can mend."""
