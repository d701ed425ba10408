"""What /metrics shows: a few numbers an operator would act on. No ids, no addresses, no amounts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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

    def page(self) -> bytes:
        return generate_latest(self.registry)
