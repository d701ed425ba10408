"""What /metrics shows: a few numbers an operator would act on. No ids, no addresses, and no amounts but what
waits to be paid out, what is in channels, and one that ought to be zero."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bitcache.channel_operations import NO_CHANNELS, ChannelFigures
from bitcache.payout_figures import PayoutFigures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry per server, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bitcache_http_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "bitcache_http_request_seconds",
            "Time to the end of the answer",
            ["route"],
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60),
            registry=self.registry,
        )
        self.bytes_received = Counter(
            "bitcache_upload_bytes", "Ciphertext stored by uploads", registry=self.registry
        )
        self.database_online = Gauge(
            "bitcache_database_online", "1 when the database answers", registry=self.registry
        )
        self.node_online = Gauge(
            "bitcache_node_online", "1 when the node can judge payments", registry=self.registry
        )
        self.tip_height = Gauge(
            "bitcache_tip_height", "Height of the last block scanned", registry=self.registry
        )
        self.free_bytes = Gauge(
            "bitcache_free_bytes", "Bytes that uploads may still take on the disk", registry=self.registry
        )

        self.damaged_files = Gauge(
            "bitcache_damaged_files", "Files whose stored bytes were found damaged", registry=self.registry
        )
        self.reconciled_at = Gauge(
            "bitcache_reconciled_at_seconds",
            "When ledger and wallet were last compared; 0 for never",
            registry=self.registry,
        )
        self.reconciliation_explained = Gauge(
            "bitcache_reconciliation_explained",
            "1 when every satoshi was explained then",
            registry=self.registry,
        )
        self.reconciliation_difference_sat = Gauge(
            "bitcache_reconciliation_difference_sat",
            "Sats that were not explained then",
            registry=self.registry,
        )

        self.payouts_waiting = Gauge(
            "bitcache_payouts_waiting", "Payouts that are in no batch yet", registry=self.registry
        )
        self.payouts_waiting_sat = Gauge(
            "bitcache_payouts_waiting_sat", "Sats of these together", registry=self.registry
        )
        self.payouts_oldest_wait = Gauge(
            "bitcache_payouts_oldest_wait_seconds",
            "How long the oldest of these waits for an approval or a batch",
            registry=self.registry,
        )
        self.batches_unsigned = Gauge(
            "bitcache_payout_batches_unsigned", "Batches that nobody has signed yet", registry=self.registry
        )
        self.batches_unconfirmed = Gauge(
            "bitcache_payout_batches_unconfirmed",
            "Batches that are signed and in no block",
            registry=self.registry,
        )
        self.batch_unconfirmed_wait = Gauge(
            "bitcache_payout_batch_unconfirmed_seconds",
            "How long ago the oldest of these was signed",
            registry=self.registry,
        )
        self.payouts_stopped = Gauge(
            "bitcache_payouts_stopped", "1 while nothing at all may be paid out", registry=self.registry
        )

        self.channels = Gauge(
            "bitcache_channels", "Payment channels that are not closed", ["state"], registry=self.registry
        )
        self.channels_here = Gauge(
            "bitcache_channels_here", "1 when this process has the channels", registry=self.registry
        )
        self.channels_spent_sat = Gauge(
            "bitcache_channels_spent_sat",
            "Sats that buyers have spent in channels that no block has closed",
            registry=self.registry,
        )
        self.channels_unconfirmed_sat = Gauge(
            "bitcache_channels_unconfirmed_sat",
            "Sats signed in channels whose deposit is in no block: what double spends could cost",
            registry=self.registry,
        )
        self.channels_troubled = Gauge(
            "bitcache_channels_troubled",
            "Channels that are to be closed, and something is in the way",
            registry=self.registry,
        )
        self.channel_close_blocks_left = Gauge(
            "bitcache_channel_close_blocks_left",
            "Blocks until the first channel that is to be closed expires; +Inf for none",
            registry=self.registry,
        )
        self.show_channels(NO_CHANNELS, here=False)

    def show_channels(self, figures: ChannelFigures, *, here: bool) -> None:
        """`here`: this process has them."""
        self.channels_here.set(here)
        self.channels.labels("funded").set(figures.funded)
        self.channels.labels("open").set(figures.open)
        self.channels.labels("closing").set(figures.closing)
        self.channels_spent_sat.set(figures.spent_msat // 1_000)
        self.channels_unconfirmed_sat.set(figures.unconfirmed_sat)
        self.channels_troubled.set(figures.troubled)
        left = figures.blocks_left_min
        self.channel_close_blocks_left.set(math.inf if left is None else left)

    def show_payouts(self, figures: PayoutFigures) -> None:
        self.payouts_waiting.set(figures.waiting)
        self.payouts_waiting_sat.set(figures.waiting_sat)
        self.payouts_oldest_wait.set(figures.oldest_wait_s)
        self.batches_unsigned.set(figures.batches_unsigned)
        self.batches_unconfirmed.set(figures.batches_unconfirmed)
        self.batch_unconfirmed_wait.set(figures.unconfirmed_s)
        self.payouts_stopped.set(figures.stopped)

    def page(self) -> bytes:
        return generate_latest(self.registry)
