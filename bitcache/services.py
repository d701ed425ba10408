"""What the handlers and loops work with, put together in one place."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from bitcache import work
from bitcache.access import Access
from bitcache.api.events_stream import InvoiceStreams
from bitcache.api.payment_gate import PaymentGate
from bitcache.api.seller_streams import SellerStreams
from bitcache.channel_bookkeeping import ChannelBookkeeping
from bitcache.channels import Channels, open_channels
from bitcache.claims import Claims
from bitcache.config import Config
from bitcache.contents import Contents
from bitcache.db.engine import Database
from bitcache.events import EventFeed
from bitcache.grants import GrantBook
from bitcache.hosted_wallet import HostedWallet
from bitcache.master_key import read_master_key
from bitcache.metrics import Metrics
from bitcache.offers import Offers
from bitcache.on_sale import OfferQuotes
from bitcache.part_buffers import PartBuffers
from bitcache.passwords import Passwords
from bitcache.payout_plans import PayoutPlans
from bitcache.payout_runner import PayoutRunner
from bitcache.purchases import Purchases
from bitcache.rate_limits import Limits, Monotonic
from bitcache.reconciling import Reconciling
from bitcache.refunds import Refunds
from bitcache.sealing import Sealer
from bitcache.seller_payouts import SellerPayouts
from bitcache.sweep import Sweep
from bitcache.uploads import Uploads
from bitcache.views import OfferViews
from bitcache.work import Work
from payments.address_search import AddressSearch
from payments.addresses import AddressBook
from payments.bitcoind import Bitcoind
from payments.bitcoind_wallet import PayoutWallet
from payments.descriptors import DescriptorStore
from payments.payout_batches import PayoutBatches
from payments.payout_follow import PayoutFollower
from payments.ports import Clock, Transaction
from payments.reconciler import Reconciler
from payments.registry import InvoiceRegistry
from payments.tables import descriptors
from payments.watcher import Watcher
from storage.local import LocalBlobStore
from storage.ports import BlobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a request or a loop may need. Made by `open_services`."""

    config: Config
    clock: Clock
    database: Database
    blobs: BlobStore
    sealer: Sealer
    node: Bitcoind
    addresses: AddressBook
    descriptors: DescriptorStore
    hosted: HostedWallet
    batches: PayoutBatches
    signer: PayoutWallet | None
    """The node's wallet that signs batches; None: they are signed elsewhere."""
    payout_runner: PayoutRunner
    reconciling: Reconciling
    seller_payouts: SellerPayouts
    payout_plans: PayoutPlans
    feed: EventFeed
    access: Access
    registry: InvoiceRegistry
    watcher: Watcher
    purchases: Purchases
    uploads: Uploads
    sweep: Sweep
    offers: Offers
    limits: Limits
    monotonic: Monotonic
    passwords: Passwords
    part_buffers: PartBuffers
    grants: GrantBook
    claims: Claims
    refunds: Refunds
    channel_bookkeeping: ChannelBookkeeping | None
    """None: nothing is sold per chunk."""
    channels: Channels | None
    """None: this server has no payment channels, or this process does without."""
    gate: PaymentGate
    contents: Contents
    streams: InvoiceStreams
    seller_streams: SellerStreams
    views: OfferViews
    metrics: Metrics
    stopping: asyncio.Event
    """Set when the server shuts down: long answers, such as event streams, end."""


def now() -> int:
    """Unix seconds."""
    return int(time.time())


@asynccontextmanager
async def open_services(
    config: Config,
    *,
    clock: Clock = now,
    monotonic: Monotonic = time.monotonic,
    with_channels: bool = True,
) -> AsyncIterator[Services]:
    """The services; `monotonic` is the clock of their limits. Without channels no channel seed is read.

    Nothing is contacted, no loop runs, no table is made. Raises MasterKeyUnusable, ChannelSeedUnusable.
    """
    sealer = Sealer(read_master_key(config.master_key))
    async with AsyncExitStack() as closing:
        database = Database(config.database)
        closing.push_async_callback(database.close)
        blobs = LocalBlobStore(
            config.blobs,
            reserve_bytes=config.disk_reserve_bytes,
            group_readable=bool(config.accel_redirect_prefix),
        )
        closing.push_async_callback(blobs.close)
        node = _node(config)
        closing.push_async_callback(node.close)
        feed = EventFeed(database)
        database.after_events = feed.hear
        addresses = AddressBook(node)
        descriptor_store = _descriptor_store(sealer)
        access = Access(config, clock)
        limits = Limits.of(config.limits, monotonic)
        registry = _registry(config, access)
        policy = config.hosted.payout_policy
        refunds = Refunds(
            config=config, store=database, registry=registry, access=access, node=node, clock=clock
        )
        follower = PayoutFollower(policy, on_payouts=refunds.tell)
        bookkeeping = None
        if config.metered_sales:
            bookkeeping = ChannelBookkeeping(store=database, depth=policy.depth, clock=clock)
        followed_channels = None if bookkeeping is None else bookkeeping.follower
        search = AddressSearch(
            node,
            database,
            registry,
            descriptors=descriptor_store,
            addresses=addresses,
            clock=clock,
            payouts=follower,
            channels=followed_channels,
        )
        watcher = Watcher(
            node,
            database,
            registry,
            network=config.network,
            clock=clock,
            search=search,
            payouts=follower,
            channels=followed_channels,
        )
        batches = PayoutBatches(
            node=node,
            store=database,
            descriptors=descriptor_store,
            addresses=addresses,
            policy=policy,
            clock=clock,
        )
        hosted = HostedWallet(
            config=config, node=node, store=database, descriptors=descriptor_store, clock=clock
        )
        signer = _signer(config, node)
        seller_payouts = SellerPayouts(
            config=config,
            store=database,
            descriptors=descriptor_store,
            addresses=addresses,
            clock=clock,
        )
        payout_plans = PayoutPlans(config=config, store=database, desk=seller_payouts, clock=clock)
        payout_runner = PayoutRunner(
            config=config,
            node=node,
            store=database,
            hosted=hosted,
            batches=batches,
            signer=signer,
            pay_due=payout_plans.pay_due,
            clock=clock,
            monotonic=monotonic,
        )
        purchases = Purchases(
            config=config,
            store=database,
            registry=registry,
            access=access,
            descriptors=descriptor_store,
            hosted=hosted,
            addresses=addresses,
            watcher=watcher,
            limits=limits,
            work=Work(sealer.mac_key(work.MAC_PURPOSE)),
            clock=clock,
        )
        grants = GrantBook(
            store=database,
            key=sealer.mac_key("grant-token"),
            token_lifetime_s=config.grant_token_lifetime_s,
            feed_looked_at=lambda: feed.looked_at,
            clock=clock,
        )
        feed.listen(grants.on_event)
        claims = Claims(
            store=database, registry=registry, access=access, book=grants, sealer=sealer, clock=clock
        )
        closing.push_async_callback(grants.flush)
        views = OfferViews(store=database, clock=clock)
        closing.push_async_callback(views.poll_once)
        channels = None
        if with_channels and config.metered_sales:
            channels = open_channels(
                config=config,
                store=database,
                node=node,
                watcher=watcher,
                hosted=hosted,
                descriptors=descriptor_store,
                addresses=addresses,
                signer=signer,
                sealer=sealer,
                limits=limits,
                clock=clock,
                monotonic=monotonic,
            )
            feed.listen(channels.hear)
        stopping = asyncio.Event()
        yield Services(
            config=config,
            clock=clock,
            database=database,
            blobs=blobs,
            sealer=sealer,
            node=node,
            addresses=addresses,
            descriptors=descriptor_store,
            hosted=hosted,
            batches=batches,
            signer=signer,
            payout_runner=payout_runner,
            reconciling=Reconciling(
                reconciler=Reconciler(node=node, store=database, descriptors=descriptor_store),
                store=database,
                clock=clock,
            ),
            seller_payouts=seller_payouts,
            payout_plans=payout_plans,
            feed=feed,
            access=access,
            registry=registry,
            watcher=watcher,
            purchases=purchases,
            grants=grants,
            claims=claims,
            refunds=refunds,
            channel_bookkeeping=bookkeeping,
            channels=channels,
            gate=PaymentGate(
                config=config,
                store=database,
                registry=registry,
                purchases=purchases,
                claims=claims,
                book=grants,
                feed=feed,
                sealer=sealer,
                channels=channels,
                clock=clock,
            ),
            contents=Contents(database),
            streams=InvoiceStreams(
                store=database,
                feed=feed,
                purchases=purchases,
                clock=clock,
                stopping=stopping,
                count_max=config.limits.streams,
                per_client_max=config.limits.streams_per_client,
            ),
            seller_streams=SellerStreams(
                store=database,
                feed=feed,
                clock=clock,
                stopping=stopping,
                count_max=config.limits.seller_streams,
                per_seller_max=config.limits.seller_streams_per_seller,
            ),
            views=views,
            uploads=Uploads(config=config, store=database, blobs=blobs, clock=clock),
            part_buffers=PartBuffers(
                count=config.limits.parts_at_once, per_account=config.limits.parts_at_once_per_seller
            ),
            sweep=Sweep(config=config, store=database, blobs=blobs, clock=clock),
            offers=Offers(config=config, sold=registry.sold),
            limits=limits,
            monotonic=monotonic,
            passwords=Passwords(
                at_once_max=config.limits.password_checks_at_once,
                waiting_max=config.limits.password_checks_waiting,
            ),
            metrics=Metrics(),
            stopping=stopping,
        )


def _node(config: Config) -> Bitcoind:
    return Bitcoind(
        config.node.rpc_url,
        cookie_file=config.node.cookie_path,
        user=config.node.rpc_user,
        password=config.node.rpc_password,
    )


def _signer(config: Config, node: Bitcoind) -> PayoutWallet | None:
    hosted = config.hosted
    if not hosted.wallet:
        return None
    return PayoutWallet(node, hosted.wallet, passphrase=hosted.wallet_passphrase or None)


def _descriptor_store(sealer: Sealer) -> DescriptorStore:
    return DescriptorStore(
        seal=lambda text, row_id: sealer.seal(text, table=descriptors.name, row_id=row_id),
        unseal=lambda sealed, row_id: sealer.open(sealed, table=descriptors.name, row_id=row_id),
    )


def _registry(config: Config, access: Access) -> InvoiceRegistry:
    async def sold(tx: Transaction, offer_id: str) -> int:
        return await registry.sold(tx, offer_id)

    registry = InvoiceRegistry(on_change=access.on_change, quote=OfferQuotes(config, sold=sold))
    return registry
