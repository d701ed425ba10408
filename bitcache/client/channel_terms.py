"""What a payer looks at before there is money in a channel. Pure: nothing the server says is believed here.

The terms are read out of the server's challenge, which is what it will be held to; what is shown beside it
must say the same.
"""

from dataclasses import dataclass

from bitcache.api.wire_channels import ChallengeView, ChannelTermsView
from bitcache.client.errors import ServerAnswerWrong
from bitcache.payment_scheme import METHOD
from bitcache.session_auth import INTENT, terms_of
from payments.channel import LIFE_BLOCKS_MIN, ChannelTerms, check_terms_as_payer, deposit_for_fees_under
from payments.channel_close import CLOSE_VBYTES
from payments.channel_errors import ChannelTermsRefused
from payments.channel_keys import NONCE_BYTES
from payments.money import Sat
from payments.payout import fee_of
from payments.segwit_address import PREFIXES

CLOSE_FEERATE_SAT_VB_MAX = 1_000
FUNDING_VBYTES = 153
"""One P2WPKH input, the channel's output, change to P2WPKH: together with the close about 323 vB."""
FEE_SHARE_PERCENT = 10
BLOCKS_PER_DAY = 144


@dataclass(frozen=True)
class OfferedTerms:
    terms: ChannelTerms
    challenge: ChallengeView
    tip_height: int
    feerate_sat_kvb: int
    unconfirmed_sat: int
    """How much such a channel pays before its deposit has a confirmation."""


@dataclass(frozen=True)
class Figures:
    """What a channel costs, honestly."""

    deposit_sat: Sat
    funding_fee_sat: Sat
    """About: the payer's wallet chooses."""
    close_fee_sat: Sat
    fee_percent: int
    """Of the deposit, rounded up."""
    low_fee_deposit_sat: Sat
    """From here on fees are under FEE_SHARE_PERCENT."""
    spendable_sat: Sat
    refund_height: int
    refund_days: int
    """From now; about."""


def read_terms(view: ChannelTermsView) -> OfferedTerms:
    """Raises ChannelTermsRefused, ServerAnswerWrong."""
    challenge = view.challenge
    try:
        terms = terms_of(challenge.request)
    except (ValueError, RecursionError) as exc:
        raise ServerAnswerWrong(f"The server's channel terms cannot be read ({exc}).") from exc
    shown = (view.network, view.payee_key, view.expiry_height, view.close_fee_sat, view.deposit_min_sat)
    bound = (
        terms.network,
        terms.payee_key.hex(),
        terms.expiry_height,
        terms.close_fee_sat,
        terms.deposit_min_sat,
    )
    if (challenge.method, challenge.intent) != (METHOD, INTENT) or shown != bound:
        raise ChannelTermsRefused("The server shows other channel terms than those it is held to.")
    offered = OfferedTerms(
        terms=terms,
        challenge=challenge,
        tip_height=view.tip_height,
        feerate_sat_kvb=view.feerate_sat_kvb,
        unconfirmed_sat=view.exposure.unconfirmed_sat,
    )
    _check(offered)
    return offered


def check_network(offered: OfferedTerms, change_address: str) -> None:
    """Raises ChannelTermsRefused if the address is of another chain than the server."""
    prefix = change_address.lower().rpartition("1")[0]
    # What has no such prefix at all is refused in other words, as no segwit address.
    if prefix in PREFIXES.values() and prefix != PREFIXES[offered.terms.network]:
        raise ChannelTermsRefused(
            f"This server is on {offered.terms.network}, and the address for the change is not: one there "
            f"begins with {PREFIXES[offered.terms.network]}1. Nothing was paid."
        )


def figures(offered: OfferedTerms, deposit_sat: Sat) -> Figures:
    """Raises ChannelTermsRefused for a deposit that the terms make useless."""
    terms = offered.terms
    if deposit_sat < terms.deposit_min_sat:
        raise ChannelTermsRefused(
            f"The least deposit of this server is {terms.deposit_min_sat:,} sat: fees would eat less."
        )
    if 2 * terms.close_fee_sat > deposit_sat:
        raise ChannelTermsRefused(
            f"The server sets aside {terms.close_fee_sat:,} sat for closing, more than half of the deposit. "
            "Deposit more, or wait until feerates are lower."
        )
    funding_fee_sat = fee_of(FUNDING_VBYTES, offered.feerate_sat_kvb)
    fees_sat = funding_fee_sat + terms.close_fee_sat
    return Figures(
        deposit_sat=deposit_sat,
        funding_fee_sat=funding_fee_sat,
        close_fee_sat=terms.close_fee_sat,
        fee_percent=-(-fees_sat * 100 // deposit_sat),
        low_fee_deposit_sat=low_fee_deposit_sat(offered),
        spendable_sat=Sat(deposit_sat - terms.close_fee_sat),
        refund_height=terms.expiry_height,
        refund_days=days(terms.expiry_height - offered.tip_height),
    )


def low_fee_deposit_sat(offered: OfferedTerms) -> Sat:
    """The least deposit of which fees take less than FEE_SHARE_PERCENT."""
    return deposit_for_fees_under(
        FEE_SHARE_PERCENT,
        funding_fee_sat=fee_of(FUNDING_VBYTES, offered.feerate_sat_kvb),
        close_fee_sat=offered.terms.close_fee_sat,
    )


def days(blocks: int) -> int:
    """About; rounded up."""
    return -(-max(0, blocks) // BLOCKS_PER_DAY)


def _check(offered: OfferedTerms) -> None:
    terms = offered.terms
    if terms.network not in PREFIXES:
        raise ChannelTermsRefused(f"The server is on {terms.network!r}, a chain this client does not know.")
    # Without a node of our own the server's height is the one we have; what it comes to in days is shown.
    check_terms_as_payer(terms, network=terms.network, tip_height=offered.tip_height)
    if terms.expiry_height - offered.tip_height < LIFE_BLOCKS_MIN:
        raise ChannelTermsRefused("The channel would end so soon that it could hardly pay for anything.")
    if len(terms.nonce) != NONCE_BYTES or terms.close_fee_sat < 0 or offered.feerate_sat_kvb <= 0:
        raise ServerAnswerWrong("The server's channel terms cannot be meant: a number in them is none.")
    if terms.close_fee_sat > CLOSE_VBYTES * CLOSE_FEERATE_SAT_VB_MAX:
        raise ChannelTermsRefused(
            f"The server wants {terms.close_fee_sat:,} sat set aside for closing: no feerate explains that."
        )
