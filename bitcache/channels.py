"""What a server with payment channels has beside the others, put together in one place."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from bitcache.channel_bookkeeping import TOPIC
from bitcache.channel_desk import ChannelDesk
from bitcache.channel_seed import read_channel_seed
from bitcache.config import Config
from bitcache.db.engine import Database
from bitcache.events import Event
from bitcache.grants import OFFER_TOPIC
from bitcache.hosted_wallet import HostedWallet
from bitcache.metered import MeteredSales
from bitcache.payment_scheme import CHALLENGE_KEY_PURPOSE
from bitcache.rate_limits import Limits, Monotonic
from bitcache.sealing import Sealer
from bitcache.session_auth import SessionChallenger
from payments.addresses import AddressBook
from payments.bitcoind import Bitcoind
from payments.bitcoind_wallet import PayoutWallet
from payments.channel_close_plan import ClosePolicy
from payments.channel_closer import ChannelCloser
from payments.channel_opening import ChannelOpening
from payments.channel_registry import ChannelRegistry
from payments.descriptors import DescriptorStore
from payments.money import Sat
from payments.ports import Clock
from payments.watcher import Watcher

BUMP_AFTER_BLOCKS = 3
"""Where the operator has not said after how many payouts pay more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """None of it exists where nothing is sold per chunk."""

    registry: ChannelRegistry
    opening: ChannelOpening
    desk: ChannelDesk
    sales: MeteredSales
    closer: ChannelCloser

    def hear(self, event: Event) -> None:
        """For the feed of events: what happened to a channel or an offer is looked at soon."""
        if event.topic == TOPIC:
            self.registry.hear(event.subject)
        elif event.topic == OFFER_TOPIC:
            self.sales.forget(event.subject)


def open_channels(
    *,
    config: Config,
    store: Database,
    node: Bitcoind,
    watcher: Watcher,
    hosted: HostedWallet,
    descriptors: DescriptorStore,
    addresses: AddressBook,
    signer: PayoutWallet | None,
    sealer: Sealer,
    limits: Limits,
    clock: Clock,
    monotonic: Monotonic,
) -> Channels:
    """Nothing is contacted, no loop runs. Raises ChannelSeedUnusable."""
    settings = config.channels
    policy = _close_policy(config)
    registry = ChannelRegistry(
        store=store, at_once=store.write_at_once, exposure=settings.exposure, clock=clock
    )
    opening = ChannelOpening(
        node=node,
        store=store,
        watcher=watcher,
        seed=read_channel_seed(config.channel_seed),
        network=config.network,
        life_blocks=settings.life_blocks,
        deposit_min_sat=Sat(settings.deposit_min_sat),
        contracts_max=settings.contracts_max,
        policy=policy,
        clock=clock,
    )
    desk = ChannelDesk(
        config=config,
        store=store,
        node=node,
        registry=registry,
        opening=opening,
        challenger=SessionChallenger(
            key=sealer.mac_key(CHALLENGE_KEY_PURPOSE), realm=urlsplit(config.public_url).netloc
        ),
        limits=limits,
        clock=clock,
    )
    sales = MeteredSales(
        config=config, store=store, desk=desk, sealer=sealer, clock=clock, monotonic=monotonic
    )
    closer = ChannelCloser(
        node=node,
        store=store,
        registry=registry,
        payee=opening.payee,
        wallet=hosted.open,
        descriptors=descriptors,
        addresses=addresses,
        signer=signer,
        policy=policy,
        clock=clock,
    )
    return Channels(registry=registry, opening=opening, desk=desk, sales=sales, closer=closer)


def _close_policy(config: Config) -> ClosePolicy:
    return ClosePolicy(
        feerate_sat_kvb=config.channels.close_feerate_sat_vb * 1_000,
        feerate_max_sat_kvb=config.channels.close_feerate_max_sat_vb * 1_000,
        bump_after_blocks=config.hosted.bump_after_blocks or BUMP_AFTER_BLOCKS,
    )
