"""The map from what went wrong to what the other side reads: RFC 9457 problems, `type` /problems/<name>.

Every error of the three packages that a request can meet is here, once. What is not here is a bug or our own
trouble: status 500, without a word of what it was; the log has it under the request's id.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from aiohttp import web

from bitcache import errors, payment_auth, payment_scheme, session_auth
from bitcache.api.wire import ProblemView, WorkView
from payments import channel_errors
from payments import errors as payments_errors
from storage import base64url
from storage import errors as storage_errors

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "/problems/"
NODE_RETRY_AFTER_S = 10


@dataclass(frozen=True, slots=True)
class Problem:
    name: str
    status: int
    title: str


PROBLEMS: Mapping[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem("bad-request", 400, "The request cannot be understood"),
        Problem("token-missing", 401, "A token is needed"),
        Problem("token-invalid", 401, "The token is not valid"),
        Problem("credential-invalid", 401, "The payment credential is not valid"),
        Problem("payment-required", 402, "Not paid for yet"),
        Problem("voucher-signature-invalid", 402, "The signature does not fit"),
        Problem("voucher-over-deposit", 402, "More than the channel holds"),
        Problem("voucher-dust-change", 402, "It leaves too little change"),
        Problem("voucher-short", 402, "The voucher does not cover that"),
        Problem("voucher-stale", 402, "A higher voucher was given before"),
        Problem("form-expired", 403, "The page is too old"),
        Problem("registration-closed", 403, "No new accounts"),
        Problem("invite-invalid", 403, "An invitation is needed"),
        Problem("claim-refused", 403, "Wrong claim secret"),
        Problem("grant-suspended", 403, "The payment left the chain"),
        Problem("grant-foreign", 403, "The grant is for another offer"),
        Problem("proof-refused", 403, "The proof does not fit"),
        Problem("channel-suspended", 403, "The deposit left the chain"),
        Problem("not-found", 404, "Not found"),
        Problem("channel-not-found", 404, "No such channel"),
        Problem("funding-not-found", 404, "No such deposit"),
        Problem("method-not-allowed", 405, "This method is not for this address"),
        Problem("too-slow", 408, "The request stopped coming"),
        Problem("name-taken", 409, "The name is taken"),
        Problem("idempotency-key-reused", 409, "The key was used for another request"),
        Problem("part-conflict", 409, "Other bytes are stored"),
        Problem("file-incomplete", 409, "A file is not complete"),
        Problem("file-in-use", 409, "A parcel holds the file"),
        Problem("parcel-sealed", 409, "The parcel is sealed"),
        Problem("parcel-not-sealed", 409, "The parcel is not sealed"),
        Problem("offer-not-open", 409, "The offer is not open"),
        Problem("seller-not-payable", 409, "The seller has no wallet set"),
        Problem("hosted-sales-off", 409, "No hosted sales here"),
        Problem("balance-negative", 409, "The balance is below zero"),
        Problem("payout-target-missing", 409, "Nowhere to pay out to"),
        Problem("payout-above-payable", 409, "More than can be paid out now"),
        Problem("payout-final", 409, "The payout cannot be changed any more"),
        Problem("payouts-stopped", 409, "Nothing is paid out now"),
        Problem("invoice-not-renewable", 409, "The price cannot be renewed"),
        Problem("nothing-owed", 409, "Nothing to give back now"),
        Problem("refund-address-final", 409, "Another address was named first"),
        Problem("refund-decided", 409, "The refund is decided already"),
        Problem("channels-off", 409, "No payment channels here"),
        Problem("not-metered", 409, "Not sold per chunk"),
        Problem("confirmations-needed", 409, "The deposit is not deep enough"),
        Problem("unconfirmed-cap-reached", 409, "Too much is unconfirmed"),
        Problem("metered-only", 409, "Sold per chunk alone"),
        Problem("offer-unavailable", 410, "The offer takes no new payments"),
        Problem("offer-gone", 410, "The files are gone"),
        Problem("channel-terms-stale", 410, "The channel terms are too old"),
        Problem("expiry-too-near", 410, "The channel expires soon"),
        Problem("channel-closed", 410, "The channel is closed"),
        Problem("too-large", 413, "Too large"),
        Problem("account-full", 413, "The account is full"),
        Problem("metadata-too-large", 413, "The description is too large"),
        Problem("range-unsatisfiable", 416, "No such range"),
        Problem("range-not-chunks", 416, "Not a range of whole chunks"),
        Problem("invalid-value", 422, "A value is not acceptable"),
        Problem("part-size-wrong", 422, "The part has another size"),
        Problem("part-digest-mismatch", 422, "The bytes are not those announced"),
        Problem("part-out-of-range", 422, "No such part"),
        Problem("parts-missing", 422, "Parts are missing"),
        Problem("root-mismatch", 422, "The root is another one"),
        Problem("descriptor-invalid", 422, "The payout descriptor cannot be used"),
        Problem("payout-below-dust", 422, "Too little for the network"),
        Problem("payout-below-minimum", 422, "Below the least payout"),
        Problem("payout-refused", 422, "Nothing can be paid out so"),
        Problem("refund-address-invalid", 422, "Nothing can be paid to the address"),
        Problem("network-foreign", 422, "Another network"),
        Problem("payer-key-invalid", 422, "Not a public key"),
        Problem("change-script-refused", 422, "Not a segwit script"),
        Problem("outpoint-malformed", 422, "Not an outpoint"),
        Problem("deposit-too-small", 422, "The deposit is too small"),
        Problem("close-refused", 422, "The channel is not closed so"),
        Problem("channel-refund-refused", 422, "Not a refund of the channel"),
        Problem("proof-of-work-required", 428, "An address has to be earned"),
        Problem("too-many-requests", 429, "Too many requests"),
        Problem("too-many-invoices", 429, "Too many unpaid invoices"),
        Problem("grant-exhausted", 429, "A limit of the grant is reached"),
        Problem("retries-exhausted", 429, "Sent several times already"),
        Problem("channel-busy", 429, "Too many downloads at a time"),
        Problem("head-too-large", 431, "The head of the request is too large"),
        Problem("taken-down", 451, "Taken down"),
        Problem("internal-error", 500, "Something went wrong here"),
        Problem("file-damaged", 503, "The server has not got the file whole"),
        Problem("server-busy", 503, "The server is busy"),
        Problem("database-unavailable", 503, "The database is away"),
        Problem("storage-unavailable", 503, "The disk does not work"),
        Problem("node-offline", 503, "The bitcoin node is away"),
        Problem("channels-elsewhere", 503, "Another process has the channels"),
        Problem("payment-unconfirmed", 503, "Paid, not confirmed yet"),
        Problem("disk-full", 507, "The disk is full"),
        Problem("server-full", 507, "The server is full"),
    )
}

PROBLEM_OF_ERROR: Mapping[type[Exception], str] = {
    errors.RequestInvalid: "bad-request",
    errors.ValueRefused: "invalid-value",
    errors.DatabaseUnavailable: "database-unavailable",
    errors.BodyTooLarge: "too-large",
    errors.BodyTooSlow: "too-slow",
    errors.TooManyRequests: "too-many-requests",
    errors.ServerBusy: "server-busy",
    errors.IdempotencyKeyReused: "idempotency-key-reused",
    errors.NotFound: "not-found",
    errors.TokenMissing: "token-missing",
    errors.TokenInvalid: "token-invalid",
    errors.FormRefused: "form-expired",
    errors.RegistrationClosed: "registration-closed",
    errors.InviteInvalid: "invite-invalid",
    errors.NameTaken: "name-taken",
    errors.AccountFull: "account-full",
    errors.ServerFull: "server-full",
    errors.PartOutOfRange: "part-out-of-range",
    errors.PartLengthWrong: "part-size-wrong",
    errors.PartDigestsWrong: "part-digest-mismatch",
    errors.PartsMissing: "parts-missing",
    errors.FileIncomplete: "file-incomplete",
    errors.FileInUse: "file-in-use",
    errors.FileDamaged: "file-damaged",
    errors.ParcelSealed: "parcel-sealed",
    errors.ParcelNotSealed: "parcel-not-sealed",
    errors.MetadataTooLarge: "metadata-too-large",
    errors.OfferGone: "offer-gone",
    errors.OfferNotOpen: "offer-not-open",
    errors.OfferUnavailable: "offer-unavailable",
    errors.TakenDown: "taken-down",
    errors.NodeOffline: "node-offline",
    errors.TooManyOpenInvoices: "too-many-invoices",
    errors.WorkRequired: "proof-of-work-required",
    errors.SellerNotPayable: "seller-not-payable",
    errors.MeteredOnly: "metered-only",
    errors.HostedSalesOff: "hosted-sales-off",
    errors.BalanceNegative: "balance-negative",
    errors.PayoutTargetMissing: "payout-target-missing",
    errors.PayoutBelowDust: "payout-below-dust",
    errors.PayoutBelowMinimum: "payout-below-minimum",
    errors.PayoutAbovePayable: "payout-above-payable",
    errors.ClaimRefused: "claim-refused",
    errors.NothingOwed: "nothing-owed",
    errors.RefundAddressInvalid: "refund-address-invalid",
    errors.RefundAddressFinal: "refund-address-final",
    errors.RefundDecided: "refund-decided",
    errors.GrantTokenInvalid: "token-invalid",
    errors.GrantForeign: "grant-foreign",
    errors.GrantMissing: "payment-required",
    payment_scheme.PaymentDemanded: "payment-required",
    payment_auth.PaymentUnconfirmed: "payment-unconfirmed",
    payment_scheme.CredentialInvalid: "credential-invalid",
    errors.GrantSuspended: "grant-suspended",
    errors.GrantExhausted: "grant-exhausted",
    errors.FileNotInOffer: "not-found",
    errors.RangeUnsatisfiable: "range-unsatisfiable",
    errors.PeriodInvalid: "invalid-value",
    errors.NotMetered: "not-metered",
    errors.RangeNotChunks: "range-not-chunks",
    errors.ChannelBusy: "channel-busy",
    errors.ProofRefused: "proof-refused",
    channel_errors.ChannelsOff: "channels-off",
    channel_errors.ChannelsElsewhere: "channels-elsewhere",
    channel_errors.ChannelTermsStale: "channel-terms-stale",
    channel_errors.NetworkForeign: "network-foreign",
    channel_errors.PayerKeyInvalid: "payer-key-invalid",
    channel_errors.ChangeScriptRefused: "change-script-refused",
    channel_errors.OutpointMalformed: "outpoint-malformed",
    channel_errors.FundingNotFound: "funding-not-found",
    channel_errors.DepositTooSmall: "deposit-too-small",
    channel_errors.ExpiryTooNear: "expiry-too-near",
    channel_errors.ChannelNotFound: "channel-not-found",
    channel_errors.ChannelClosed: "channel-closed",
    channel_errors.ChannelSuspended: "channel-suspended",
    channel_errors.ConfirmationsNeeded: "confirmations-needed",
    channel_errors.UnconfirmedCapReached: "unconfirmed-cap-reached",
    channel_errors.SignatureInvalid: "voucher-signature-invalid",
    channel_errors.VoucherOverDeposit: "voucher-over-deposit",
    channel_errors.VoucherDustChange: "voucher-dust-change",
    channel_errors.VoucherShort: "voucher-short",
    channel_errors.VoucherStale: "voucher-stale",
    channel_errors.RetriesExhausted: "retries-exhausted",
    channel_errors.CloseRefused: "close-refused",
    channel_errors.RefundRefused: "channel-refund-refused",
    payments_errors.DescriptorInvalid: "descriptor-invalid",
    payments_errors.PolicyInvalid: "invalid-value",
    payments_errors.InvoiceNotFound: "not-found",
    payments_errors.InvoiceNotRenewable: "invoice-not-renewable",
    payments_errors.PayoutNotFound: "not-found",
    payments_errors.PayoutConflict: "payout-final",
    payments_errors.PayoutRefused: "payout-refused",
    payments_errors.PayoutsStopped: "payouts-stopped",
    payments_errors.AddressesInDoubt: "node-offline",
    payments_errors.NodeUnavailable: "node-offline",
    payments_errors.NodeMisconfigured: "node-offline",
    storage_errors.FileIdInvalid: "not-found",
    storage_errors.PartSizeWrong: "part-size-wrong",
    storage_errors.PartConflict: "part-conflict",
    storage_errors.DigestsInvalid: "invalid-value",
    storage_errors.RootMismatch: "root-mismatch",
    storage_errors.SizeImpossible: "invalid-value",
    storage_errors.DiskFull: "disk-full",
    storage_errors.StoreUnavailable: "storage-unavailable",
}

# What the node says of itself is for the operator: it may name hosts and files.
OPERATORS_BUSINESS = (
    payments_errors.NodeUnavailable,
    payments_errors.NodeMisconfigured,
    payments_errors.AddressesInDoubt,
)
WORDS_WITHOUT_ERROR = {
    "not-found": "There is nothing at this address. Check the path; an id is 26 characters of a-z and 2-7.",
    "head-too-large": "Send fewer and shorter headers: 32 KiB in all, 16 KiB each, 64 of them.",
    "method-not-allowed": "This address takes other methods: those in the Allow header.",
}


def problem_of(error: Exception) -> Problem | None:
    """The problem an error becomes; None for what nobody foresaw."""
    if isinstance(error, session_auth.SessionRefused):
        error = error.cause
    for kind in type(error).__mro__:
        name = PROBLEM_OF_ERROR.get(kind)
        if name is not None:
            return PROBLEMS[name]
    return None


def problem_view(problem: Problem, error: Exception | None) -> ProblemView:
    """The body. Errors that say more carry it as attributes."""
    if isinstance(error, session_auth.SessionRefused):
        error = error.cause
    return ProblemView(
        type=TYPE_PREFIX + problem.name,
        title=problem.title,
        status=problem.status,
        detail=_detail(problem, error),
        field=getattr(error, "field", None),
        invoice_id=getattr(error, "invoice_id", None),
        retry_after_s=_retry_after_s(problem, error),
        work=_work(error),
        required_sat=getattr(error, "required_sat", None),
        accepted_sat=getattr(error, "accepted_sat", None),
        spent_msat=getattr(error, "spent_msat", None),
        max_sat=getattr(error, "max_sat", None),
    )


def problem_response(problem: Problem, error: Exception | None = None) -> web.Response:
    """The whole answer, with the headers its status asks for."""
    view = problem_view(problem, error)
    headers = {"Cache-Control": "no-store"}
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="bitcache"'
    if view.retry_after_s is not None:
        headers["Retry-After"] = str(view.retry_after_s)
    if isinstance(error, errors.RangeUnsatisfiable | errors.RangeNotChunks):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    response = web.Response(
        status=problem.status,
        body=msgspec.json.encode(view),
        content_type=CONTENT_TYPE,
        headers=headers,
    )
    for challenge in getattr(error, "www_authenticate", ()):
        response.headers.add("WWW-Authenticate", challenge)
    return response


def _detail(problem: Problem, error: Exception | None) -> str:
    if isinstance(error, OPERATORS_BUSINESS):
        return (
            "The server's bitcoin node does not answer at the moment. Try again in a minute; do not pay now."
        )
    if isinstance(error, storage_errors.DiskFull):
        return (
            "The server's disk is full. Nothing is lost, but nothing new was kept: tell the operator, and "
            "send this again later."
        )
    return str(error) if error is not None else WORDS_WITHOUT_ERROR.get(problem.name, f"{problem.title}.")


def _work(error: Exception | None) -> WorkView | None:
    if not isinstance(error, errors.WorkRequired):
        return None
    return WorkView(challenge=base64url.encode(error.challenge), bits=error.bits, expires_at=error.expires_at)


def _retry_after_s(problem: Problem, error: Exception | None) -> int | None:
    asked: int | None = getattr(error, "retry_after_s", None)
    if asked is None and problem.status in {429, 503}:
        return NODE_RETRY_AFTER_S
    return asked
