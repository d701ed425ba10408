"""What can go wrong on the seller's or buyer's side. One class per thing a caller would do differently.

Messages may quote a server or a seller: sanitise them before printing.
"""

from bitcache.api.wire import WorkView


class ClientError(Exception):
    """Root of the tree."""


# What the user gave us.


class LinkInvalid(ClientError):
    """A link or receipt that cannot be used; the message says what is wrong with it."""


class SourceRefused(ClientError):
    """Something to upload is not a plain readable file, or changed while it was read."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class NotSignedIn(ClientError):
    """A seller's command without an access token."""


class AlreadyRunning(ClientError):
    """Another process works on the same upload or download."""


# The server, or the way to it.


class ServerUnreachable(ClientError):
    """No answer after all retries. What was done so far is kept: run the same command again."""


class ServerProblem(ClientError):
    """The server said no (RFC 9457). `name` ends the problem's type, `detail` is the server's words."""

    def __init__(
        self,
        name: str,
        status: int,
        detail: str,
        *,
        retry_after_s: int | None = None,
        work: WorkView | None = None,
    ) -> None:
        super().__init__(f"{detail or 'The server refused'} ({name}, HTTP {status})")
        self.name = name
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.work = work


class ServerAnswerWrong(ClientError):
    """The server broke the protocol: a redirect, too many or too few bytes, another shape than promised."""


# A server, or a seller, that is not honest. Nothing wrong was written under a final name.


class ParcelAltered(ClientError):
    """What the server offers is not what the sealed description says. `kind` names the difference.

    Kinds: file-count, file-size, file-root, description-changed, network, price, offer.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{detail} Do not pay; tell the seller. ({kind})")
        self.kind = kind
        self.detail = detail


class FileAltered(ClientError):
    """What the server gave for one file is not what the seller uploaded.

    `kind` is the class name of the storage error that proves it, which is the cause.
    """

    def __init__(self, path: str, cause: Exception) -> None:
        self.kind = type(cause).__name__
        super().__init__(f"{path}: {cause} ({self.kind})")
        self.path = path


# Paying.


class PaymentPending(ClientError):
    """The payment is not there or not deep enough yet. Run the command again with the receipt."""


class PaymentWithdrawn(ClientError):
    """The chain took the payment back. What was downloaded is kept; the receipt works again later."""


class TakenDown(ClientError):
    """The operator took the files down: nothing more comes, and what was paid is owed."""

    def __init__(self, received_sat: int) -> None:
        owed = (
            f"The seller owes you the {received_sat:,} sat that came: keep the receipt, and show it to them."
            if received_sat
            else "Do not pay."
        )
        super().__init__(f"The operator of the server has taken these files down. {owed}")
        self.received_sat = received_sat


class InvoiceExpired(ClientError):
    """Nothing was paid in time. Ask for a new invoice."""


class WalletRefused(ClientError):
    """The wallet did not pay; the message says why and what to do."""


# Paying per chunk.


class ChannelUnknown(ClientError):
    """This computer has no such channel."""

    def __init__(self, channel_id: str) -> None:
        super().__init__(
            f"This computer has no channel {channel_id}. `bitcache channel list` shows those it has; "
            "`bitcache channel recover` brings one here with its backup line."
        )


class DepositUnproven(ClientError):
    """A deposit under a contract out of a backup line, of which no signature of ours was found."""

    def __init__(self, channel_id: str) -> None:
        super().__init__(
            f"Nothing proves where the change of the deposit {channel_id} goes, since nothing, or all of it, "
            "was signed away. Pay from it on the computer that opened it, or take it back after its expiry "
            "with `bitcache channel refund` and its backup line."
        )


class ChannelMissing(ClientError):
    """No open channel of this server has enough left; the message says how to open one."""


class CloseQuoteRefused(ClientError):
    """The server asks for more at a close than it was promised. Nothing was signed."""


class PriceRose(ClientError):
    """A chunk costs more than what was agreed to. Nothing was signed at the new price."""

    def __init__(self, *, agreed_msat: int, asked_msat: int) -> None:
        super().__init__(
            f"A chunk costs {asked_msat:,} msat now, and {agreed_msat:,} msat when you agreed. What came is "
            "kept: to go on, run the same command without --yes, which shows the new price, or say with "
            "--max-spend how much it may cost."
        )


class ChunksWithheld(ClientError):
    """Chunks that were paid for did not come, and no more are paid for before they have."""


class SpendingLimitReached(ClientError):
    """`--max-spend` allows no further chunk. What came is kept."""


class DepositUnconfirmed(ClientError):
    """The channel can pay no more before its deposit is deeper in the chain."""


# The local disk.


class TargetExists(ClientError):
    """A file of this name is there already, and nothing is overwritten unasked."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} exists already. Choose another place with -o, or overwrite with --force.")
        self.path = path


class TargetUnsafe(ClientError):
    """A part of the way to the target is a symbolic link, not a folder, or not to be written to."""


class SpaceMissing(ClientError):
    """The disk has no room for the download."""

    def __init__(self, *, needed_bytes: int, free_bytes: int, folder: str) -> None:
        super().__init__(
            f"{folder} has {free_bytes} bytes free and the download needs {needed_bytes}. Free some space or "
            "choose another disk with -o, then run the same command again."
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
