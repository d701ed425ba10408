"""Why a payment channel refuses something: one class per thing the other side would do differently."""

from payments.errors import PaymentsError
from payments.money import Msat, Sat


class ChannelError(PaymentsError):
    """Base of every refusal of a channel."""


class ChannelTermsStale(ChannelError):
    """The channel terms are too old to open a channel on: ask for new ones."""

    def __init__(self) -> None:
        super().__init__("These channel terms are too old. Ask for new ones, and fund the address they give.")


class NetworkForeign(ChannelError):
    """The channel terms are for another chain."""

    def __init__(self, named: str, network: str) -> None:
        super().__init__(f"This server is on {network}, not on {named}: nothing paid there counts here.")


class PayerKeyInvalid(ChannelError):
    """Not a compressed public key of secp256k1."""

    def __init__(self) -> None:
        super().__init__(
            "The payer's key must be a compressed public key of secp256k1: 33 bytes, in hex, not ours."
        )


class ChangeScriptRefused(ChannelError):
    """Not a segwit scriptPubKey: others have a higher dust limit than the channel leaves room for."""

    def __init__(self, words: str | None = None) -> None:
        super().__init__(
            words
            or "What is left of a channel goes back to a segwit address only (P2WPKH, P2WSH or P2TR: bc1...)."
        )


class ExpiryImpossible(ChannelError):
    """The expiry is no block height that a script can wait for."""

    def __init__(self, expiry_height: int) -> None:
        super().__init__(f"A channel cannot expire at {expiry_height}: that is no block height.")


class ChannelTermsRefused(ChannelError):
    """A payer's client does not fund a channel on such terms; the message says which of them is wrong."""


class OutpointMalformed(ChannelError):
    """Not `<txid>:<vout>` in the one way of writing it: two spellings would be two channels on one coin."""

    def __init__(self) -> None:
        super().__init__(
            "A channel's id is its outpoint: 64 lower-case hex digits, a colon, the output's number without "
            "leading zeros."
        )


class FundingNotFound(ChannelError):
    """The node sees no unspent output there that pays to these terms; it may not have arrived yet."""

    def __init__(self, channel_id: str) -> None:
        super().__init__(f"Our node sees no unspent output {channel_id} that pays these terms (yet).")


class DepositTooSmall(ChannelError):
    def __init__(self, capacity_sat: Sat, *, min_sat: Sat) -> None:
        super().__init__(
            f"The deposit of {capacity_sat:,} sat is below the least of {min_sat:,} sat: fees would eat it. "
            "It can be refunded by its owner after the channel's expiry."
        )


class ExpiryTooNear(ChannelError):
    """Nothing is opened or paid so near to the height from which the payer may take the deposit back."""

    def __init__(self, expiry_height: int) -> None:
        super().__init__(
            f"The channel expires at block {expiry_height}, which is too near: open another one."
        )


class ChannelNotFound(ChannelError):
    def __init__(self, channel_id: str) -> None:
        super().__init__(
            f"There is no channel {channel_id} here: it was not opened yet, or the id is not whole."
        )


class ChannelClosed(ChannelError):
    """It is closing, closed, refunded or lost: it pays for nothing any more."""

    def __init__(self, channel_id: str) -> None:
        super().__init__(f"Channel {channel_id} is closed, or closing. Open another one.")


class ChannelSuspended(ChannelError):
    """Its funding left the chain, or is not as deep as before: wait until a block has it again."""

    def __init__(self, channel_id: str) -> None:
        super().__init__(
            f"The deposit of channel {channel_id} is not in the chain as it was. Nothing is charged until a "
            "block has it again; nothing is lost."
        )


class ConfirmationsNeeded(ChannelError):
    """The cumulative amount is more than is accepted at this depth of the funding."""

    def __init__(self, *, confirmations: int, max_sat: Sat) -> None:
        super().__init__(
            f"At {confirmations} confirmations this channel pays up to {max_sat:,} sat. Wait for a block."
        )
        self.confirmations = confirmations
        self.max_sat = max_sat


class UnconfirmedCapReached(ChannelError):
    """All channels without a confirmation together have paid as much as the operator risks."""

    def __init__(self) -> None:
        super().__init__("Channels without a confirmation cannot pay more just now. Wait for a block.")


class SignatureInvalid(ChannelError):
    """Malformed, with a high S, by another key, or over another amount: nothing more is told."""

    def __init__(self) -> None:
        super().__init__(
            "The voucher's signature does not fit its channel and amount: 64 bytes, compact, low S, by the "
            "payer's key."
        )


class VoucherOverDeposit(ChannelError):
    def __init__(self, *, max_sat: Sat) -> None:
        super().__init__(f"This channel can pay {max_sat:,} sat in all: the deposit less the close fee.")
        self.max_sat = max_sat


class VoucherDustChange(ChannelError):
    """It would leave the payer change that no node relays."""

    def __init__(self, *, max_sat: Sat, whole_sat: Sat) -> None:
        super().__init__(
            f"So much leaves change too small for the network: pay at most {max_sat:,} sat, or {whole_sat:,} "
            "sat, which is all."
        )
        self.max_sat = max_sat
        self.whole_sat = whole_sat


class VoucherShort(ChannelError):
    """It does not cover what was asked for."""

    def __init__(self, *, required_sat: Sat, accepted_sat: Sat, spent_msat: Msat) -> None:
        super().__init__(f"That costs more than the voucher covers: sign {required_sat:,} sat in all.")
        self.required_sat = required_sat
        self.accepted_sat = accepted_sat
        self.spent_msat = spent_msat


class VoucherStale(VoucherShort):
    """As VoucherShort, and a higher voucher was accepted before."""


class RetriesExhausted(ChannelError):
    """A chunk that was paid for was sent again as often as it is for nothing."""

    def __init__(self, *, retry_after_s: int) -> None:
        super().__init__("This was paid for and sent several times over. Keep the copy you have, or wait.")
        self.retry_after_s = retry_after_s


class ChannelsElsewhere(ChannelError):
    """Another process has this database's channels, or had them moments ago."""

    def __init__(self) -> None:
        super().__init__(
            "Another process of this server looks after its channels. Ask again in some seconds."
        )


class ChannelsOff(ChannelError):
    def __init__(self) -> None:
        super().__init__("This server has no payment channels.")


class CloseRefused(ChannelError):
    """The payer's terms for a close are none of ours; the message says what to change."""


class CloseUneconomic(ChannelError):
    """Closing would cost more than the channel brings."""

    def __init__(self, *, brings_sat: Sat, fee_sat: Sat) -> None:
        super().__init__(
            f"A close brings {brings_sat:,} sat and costs {fee_sat:,} sat of network fee: it waits for a "
            "lower feerate."
        )
        self.brings_sat = brings_sat
        self.fee_sat = fee_sat


class CloseNotFound(ChannelError):
    def __init__(self, close_id: str) -> None:
        super().__init__(
            f"No close {close_id} is under way: `bitcache channels show CHANNEL` names those of a channel."
        )


class BumpRefused(ChannelError):
    """A close cannot pay the network more, or our node does not let it; the message says why."""


class RefundTooSmall(ChannelError):
    """The fee of the refund would be more than the deposit."""


class RefundRefused(ChannelError):
    """Not a refund of this channel, or the node will not have it (yet); the message says why."""


class BackupLineInvalid(ChannelError):
    """Not the backup line of a channel; the message says what is wrong, and never repeats a key."""


class AddressInvalid(ChannelError):
    """Not a segwit address of this network; the message says what to give instead."""


class ChannelSeedUnusable(PaymentsError):
    """The file with the channel seed is missing, of another size, or open to others."""
