"""What can go wrong in the service, one class per thing a caller would do differently.

`bitcache.api.problems` says which HTTP problem each becomes. The message is what the other side reads: it
says what to change, and holds no secret.
"""


class BitcacheError(Exception):
    """Base of every error of this package."""


# --- the operator's business --------------------------------------------------------------------------------


class ConfigInvalid(BitcacheError):
    """The configuration cannot be used; the message names the key and what to give instead."""


class MasterKeyUnusable(BitcacheError):
    """The master key file is missing, damaged or readable by others."""


class AlreadyInitialised(BitcacheError):
    """The data folder already holds a server: nothing was overwritten."""


class DatabaseOutdated(BitcacheError):
    """The database is of a newer version than this program."""


class DatabaseMissing(BitcacheError):
    """The database is blank and there are blobs: it is not theirs, and by it all would be swept away."""


class DatabaseUnavailable(BitcacheError):
    """The database does not answer now: away, starting, or its disk refuses. The same again may succeed."""

    def __init__(self) -> None:
        super().__init__(
            "The server's database does not answer at the moment. What was acknowledged is safe; what was "
            "just asked may or may not have been done: ask the same again in a few seconds."
        )


class DatabaseDamaged(DatabaseUnavailable):
    """The database's file is not what SQLite wrote. What is intact in it can still be read."""

    def __init__(self) -> None:
        BitcacheError.__init__(
            self,
            "The server's database is damaged. Its operator must stop it, and restore it from a backup: "
            "`bitcache doctor` says where it is damaged.",
        )


class BackupRefused(BitcacheError):
    """No backup can be made there, or of that; an earlier one is as it was. The message says what to do."""


class RestoreRefused(BitcacheError):
    """The backup cannot be put back there, or not with this key. Nothing was written."""


class WrongNetwork(BitcacheError):
    """The node follows another chain than the configuration says: nothing it reports may be believed."""


class ListenRefused(BitcacheError):
    """The address to listen on is taken, or not this machine's."""


class SealBroken(BitcacheError):
    """A sealed value does not open: the row was altered, or the master key is another one."""

    def __init__(self, table: str, row_id: str) -> None:
        super().__init__(f"{table} {row_id}: sealed under another master key, or altered")
        self.table = table
        self.row_id = row_id


class FeerateUnknown(BitcacheError):
    """The node has seen too little to estimate a feerate, and none is fixed."""

    def __init__(self) -> None:
        super().__init__(
            "The node cannot say yet what the network asks for a transaction: set [hosted] `feerate_sat_vb`, "
            "run `bitcache payouts build --feerate`, or wait until the node has seen more of it."
        )


# --- requests -----------------------------------------------------------------------------------------------


class RequestInvalid(BitcacheError):
    """The request cannot be understood: a header, a query parameter, or JSON that is none."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ValueRefused(RequestInvalid):
    """The request is well formed, but a value in it is not acceptable; `field` says which."""


class BodyTooLarge(BitcacheError):
    """The body is longer than this request may have. It was not read."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The body is larger than the {limit_bytes} bytes allowed here. Send less at a time."
        )
        self.limit_bytes = limit_bytes


class BodyTooSlow(BitcacheError):
    """The body stopped coming."""


class TooManyRequests(BitcacheError):
    """Slow down: the same request is welcome again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerBusy(BitcacheError):
    """There is no room just now, for nobody in particular: try again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class IdempotencyKeyReused(BitcacheError):
    """The Idempotency-Key was used for another request within the last day."""


class NotFound(BitcacheError):
    """No such thing, or it is another's: the two look alike on purpose."""

    def __init__(self, kind: str, row_id: str) -> None:
        super().__init__(f"There is no {kind} {row_id} here. Check the id and the account you use.")
        self.kind = kind
        self.row_id = row_id


# --- accounts -----------------------------------------------------------------------------------------------


class TokenMissing(BitcacheError):
    """The request needs a seller's token."""


class TokenInvalid(BitcacheError):
    """The token is unknown, revoked or malformed."""


class FormRefused(BitcacheError):
    """The form is too old, or not one of ours."""

    def __init__(self) -> None:
        super().__init__("This form is too old, or came from another site. Reload the page and try again.")


class RegistrationClosed(BitcacheError):
    """This server opens no accounts by itself."""


class InviteInvalid(BitcacheError):
    """Registration needs an invitation code, and this is none."""


class NameTaken(BitcacheError):
    """Another account has this name."""


# --- files, parcels, offers ---------------------------------------------------------------------------------


class AccountFull(BitcacheError):
    """The account's byte cap would be exceeded."""


class ServerFull(BitcacheError):
    """The server's byte cap or disk has no room for a file of this size."""


class PartOutOfRange(BitcacheError):
    """The file has no part of this number."""


class PartLengthWrong(BitcacheError):
    """The body does not have the length that this part of the file has."""


class PartDigestsWrong(BitcacheError):
    """The announced digests are not those of the bytes that came. Nothing was stored."""


class PartsMissing(BitcacheError):
    """The file cannot be completed yet; the message lists the parts to send."""


class FileIncomplete(BitcacheError):
    """A parcel can only hold complete files."""


class FileDamaged(BitcacheError):
    """The stored bytes of a file are not what they were."""

    retry_after_s = 3600

    def __init__(self, file_id: str) -> None:
        super().__init__(
            f"The server has lost bytes of file {file_id}. Its operator is told, and may have a backup. What "
            "was paid stays paid: try again later."
        )


class FileInUse(BitcacheError):
    """A parcel holds the file: delete the parcel instead."""


class ParcelSealed(BitcacheError):
    """The parcel is sealed and never changes again."""


class ParcelNotSealed(BitcacheError):
    """An offer needs a sealed parcel."""


class MetadataTooLarge(BitcacheError):
    """The sealed metadata is over 4 MiB."""


class OfferGone(BitcacheError):
    """The offer was, but its parcel's bytes have been removed."""


class OfferNotOpen(BitcacheError):
    """The offer is closed, and stays so."""


# --- buying -------------------------------------------------------------------------------------------------


class OfferUnavailable(BitcacheError):
    """The offer gives no new invoices: closed, expired or sold out; `state` is the word the offer shows."""

    def __init__(self, offer_id: str, state: str) -> None:
        words = {
            "closed": "was closed by the seller",
            "expired": "has expired",
            "sold_out": "is sold out",
            "damaged": "is not for sale while its files are damaged on the server",
        }
        super().__init__(
            f"This offer {words.get(state, 'is not open')}. Ask the seller for a new link; "
            "what you already paid for stays yours, with your receipt."
        )
        self.offer_id = offer_id
        self.state = state


class TakenDown(BitcacheError):
    """The operator had to take the parcel down. Nothing of it is sold or served; what was paid is owed."""

    def __init__(self, offer_id: str) -> None:
        super().__init__(
            "The operator has taken these files down. If you paid, the seller owes you the money back."
        )
        self.offer_id = offer_id


class NodeOffline(BitcacheError):
    """The bitcoin node cannot see payments now: nothing was created, and nothing must be paid."""

    def __init__(self) -> None:
        super().__init__(
            "The server's bitcoin node cannot see payments at the moment. Do not pay now; try again in a "
            "minute. What was already paid is safe."
        )


class TooManyOpenInvoices(BitcacheError):
    """One client's cap of unpaid invoices is reached."""

    def __init__(self, limit: int, *, retry_after_s: int) -> None:
        super().__init__(
            f"There are already {limit} unpaid invoices from your address. Pay one of them, or wait until "
            "they expire."
        )
        self.limit = limit
        self.retry_after_s = retry_after_s


class WorkRequired(BitcacheError):
    """An address has to be earned: solve `challenge` and ask again with the solution (`bitcache.work`)."""

    def __init__(self, challenge: bytes, *, bits: int, expires_at: int) -> None:
        super().__init__(
            "Many invoices are unpaid just now, so the next address has to be earned: solve the challenge in "
            "`work` and send the request again with the solution. `bitcache get` and the offer's page (with "
            "JavaScript) do it by themselves; or try again later."
        )
        self.challenge = challenge
        self.bits = bits
        self.expires_at = expires_at


class MeteredOnly(BitcacheError):
    """The offer is sold per chunk alone: no invoice pays for it."""

    def __init__(self, offer_id: str) -> None:
        super().__init__(
            "This offer is sold per chunk alone: pay through a channel, as `bitcache get` does after "
            "`bitcache channel open`."
        )
        self.offer_id = offer_id


class SellerNotPayable(BitcacheError):
    """The seller has named no wallet yet, so there is nobody to pay."""

    def __init__(self) -> None:
        super().__init__(
            "The seller has not set a payout wallet yet. Ask the seller to run: bitcache payout set"
        )


class HostedSalesOff(BitcacheError):
    """The operator has named no wallet for hosted sales."""

    def __init__(self) -> None:
        super().__init__(
            "This server offers no hosted sales. Buyers pay your own wallet: `settlement` is `direct`."
        )


# --- payouts ------------------------------------------------------------------------------------------------


class PayoutNodeOffline(NodeOffline):
    """The bitcoin node cannot say now whether the money is still there: nothing is paid out."""

    def __init__(self) -> None:
        BitcacheError.__init__(
            self,
            "The server's bitcoin node cannot see the chain at the moment, so nothing is paid out. Your "
            "balance is safe: try again in a minute.",
        )


class NotPayable(BitcacheError):
    """This payout cannot be asked for, or not now; the message says what to do."""


class BalanceNegative(NotPayable):
    """The chain took money back that was paid out already."""

    def __init__(self, balance_sat: int) -> None:
        super().__init__(
            f"Your balance is {-balance_sat:,} sat below zero: the chain took back money that was already "
            "paid out. Your next hosted sales make it good; then you can ask for payouts again."
        )
        self.balance_sat = balance_sat


class PayoutTargetMissing(NotPayable):
    """The seller has named no address, and no wallet."""

    def __init__(self) -> None:
        super().__init__(
            "There is nowhere to pay out to. Name an address with `bitcache payout address` "
            "(`payout_address`), or a wallet with `bitcache payout set` (`payout_descriptor`)."
        )


class PayoutBelowDust(NotPayable):
    """The network would not relay so small an output."""

    field = "amount_sat"

    def __init__(self, least_sat: int) -> None:
        super().__init__(
            f"The network relays no output below {least_sat:,} sat to your address: ask for more."
        )
        self.least_sat = least_sat


class PayoutBelowMinimum(NotPayable):
    """The operator pays out no such small amounts."""

    field = "amount_sat"

    def __init__(self, least_sat: int, *, payable_sat: int) -> None:
        super().__init__(
            f"The least payout here is {least_sat:,} sat, and {payable_sat:,} sat can be paid out now."
        )
        self.least_sat = least_sat
        self.payable_sat = payable_sat


class PayoutAbovePayable(NotPayable):
    """More than can be paid out now."""

    field = "amount_sat"

    def __init__(self, payable_sat: int) -> None:
        super().__init__(
            f"{payable_sat:,} sat can be paid out now: ask for no more. What is still confirming, or is set "
            "aside for other payouts, is shown with your balance."
        )
        self.payable_sat = payable_sat


# --- claims and grants --------------------------------------------------------------------------------------


class ClaimRefused(BitcacheError):
    """The claim secret is not the invoice's. Says no more, so that guessing teaches nothing."""

    def __init__(self) -> None:
        super().__init__(
            "This claim secret does not belong to this invoice. Use the receipt you kept when you paid."
        )


class NothingOwed(BitcacheError):
    """No money of the invoice can be asked back, or not now; the message says why."""


class RefundAddressInvalid(BitcacheError):
    """Nothing can be paid to this address; the message says why."""

    field = "address"


class RefundAddressFinal(BitcacheError):
    """Another address was named first: whoever learns of the receipt later cannot turn the money away."""

    field = "address"

    def __init__(self, address: str) -> None:
        super().__init__(
            f"This invoice is refunded to {address}, which was named first: that is final. Ask again with "
            "that address."
        )
        self.address = address


class RefundDecided(BitcacheError):
    """Somebody else has decided on the refund; the message says who."""


class GrantTokenInvalid(BitcacheError):
    """The token is forged, damaged or expired. Claim again for a fresh one."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The grant token {reason}. Claim again with the receipt to get a fresh one.")


class GrantForeign(BitcacheError):
    """The token is good, but for another offer."""

    def __init__(self) -> None:
        super().__init__("This grant token belongs to another offer. Claim with the receipt of this one.")


class GrantMissing(BitcacheError):
    """The bytes are not paid for (yet)."""

    def __init__(self, offer_id: str, invoice_id: str | None = None) -> None:
        super().__init__("These files are not paid for, or the payment is not confirmed deep enough yet.")
        self.offer_id = offer_id
        self.invoice_id = invoice_id


class GrantSuspended(BitcacheError):
    """The chain took the payment back after it had unlocked the files, or our node lost sight of it."""

    def __init__(self, invoice_id: str | None = None) -> None:
        super().__init__(
            "The payment that unlocked these files is not in the chain any more. The download goes on by "
            "itself when it is confirmed again."
        )
        self.invoice_id = invoice_id


class GrantExhausted(BitcacheError):
    """A limit of the grant is reached: bytes in total, or connections at once."""

    def __init__(self, reason: str, *, retry_after_s: int) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


# --- content ------------------------------------------------------------------------------------------------


class FileNotInOffer(BitcacheError):
    """The offer's parcel has no such file."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"The offer has no file {file_id[:26]!a}. Read the offer for the ids of its files.")


class RangeUnsatisfiable(BitcacheError):
    """No byte of the asked range exists. Answered 416 with the size."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"The file has {size_bytes} bytes; ask for a range that starts before its end.")
        self.size_bytes = size_bytes


class RangeNotChunks(BitcacheError):
    """Bytes that are paid per chunk are asked for chunk by chunk. Answered 416 with the size."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(
            "What is paid per chunk is asked for in whole chunks: one range of 1 to 8 MiB that begins at a "
            "multiple of 1 MiB and ends at one, or at the file's end. Nothing was charged."
        )
        self.size_bytes = size_bytes


class NotMetered(BitcacheError):
    """The offer is not sold per chunk."""

    def __init__(self) -> None:
        super().__init__("This offer is not sold per chunk: ask for an invoice. Nothing was charged.")


class ProofRefused(BitcacheError):
    """Nothing proves that whoever asks has the key; whether the key has channels is not told."""


class ChannelBusy(BitcacheError):
    """Too many downloads run on one channel; nothing was charged."""

    def __init__(self, connections_max: int, *, retry_after_s: int) -> None:
        super().__init__(
            f"This channel already has {connections_max} downloads running. Wait until one of them ends. "
            "Nothing was charged."
        )
        self.retry_after_s = retry_after_s


# --- earnings -----------------------------------------------------------------------------------------------


class PeriodInvalid(BitcacheError):
    """`since`, `until` or `tz` cannot be used; the message says what to give instead."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
