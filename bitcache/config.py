"""What can be configured, with its defaults: the keys of `bitcache.toml`. `bitcache.config_file` reads it."""

import functools
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from bitcache.errors import ConfigInvalid
from bitcache.log import LogFormat, LogLevel
from payments.channel_exposure import Exposure
from payments.money import Sat
from payments.payout import PayoutPolicy

CONFIG_FILE_NAME = "bitcache.toml"
DATABASE_FILE_NAME = "bitcache.db"
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

GIB = 1 << 30
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Network = Literal["regtest", "signet", "testnet4", "mainnet"]


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach the operator's own bitcoin node."""

    rpc_url: str = "http://127.0.0.1:8332"
    """the node's RPC and REST. `init` writes the port of the chosen network"""
    rpc_cookie_file: str | None = None
    """the file with the node's password of the day. `init` writes the usual place"""
    rpc_user: str | None = None
    """with `rpc_password`, in place of the cookie file. One of the two ways, never both: take out the line
    `rpc_cookie_file` that `init` wrote"""
    rpc_password: str | None = None
    """the password of `rpc_user`"""
    zmq_sequence_url: str | None = None
    """the same address as the node's `zmqpubsequence`; without it payments are found by polling alone"""
    poll_interval_s: Annotated[int, Meta(ge=1, le=15)] = 2
    """seconds between polls of the node, 1 to 15"""

    @property
    def cookie_path(self) -> Path | None:
        return Path(self.rpc_cookie_file).expanduser() if self.rpc_cookie_file else None


class LimitsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often and how much one client, and all of them together, may ask for.

    A client is an address in front of the trusted proxies, of IPv6 a /64. What a limit refuses is answered
    429 or 503 with Retry-After.
    """

    accounts_per_hour: Positive = 10
    """accounts that one client opens in an hour"""
    accounts_per_hour_in_total: Positive = 200
    """and all clients together"""
    sign_ins_per_quarter: Positive = 30
    """attempts to sign in, from one client in 15 minutes; a browser that was signed in before has as many of
    its own"""
    sign_ins_by_name_per_quarter: Positive = 150
    """attempts to sign in with one name in 15 minutes, from whatever clients"""
    password_checks_at_once: Positive = 2
    """passwords hashed at the same time, 64 MiB and one processor each"""
    password_checks_waiting: Positive = 20
    """passwords that wait for their turn; browsers that were signed in before have as many places of their
    own"""
    reports_per_hour: Positive = 10
    """reports of offers from one client in an hour"""
    reports_per_hour_in_total: Positive = 300
    """and from all clients together"""
    reports_kept_max: Positive = 10_000
    """reports that are kept; those handled go after 90 days, or sooner when there are so many"""
    invoices_per_minute: Positive = 120
    """requests for an invoice from one client in a minute"""
    invoices_per_minute_in_total: Positive = 600
    """new invoices in a minute, over all sellers, before buyers' programs are asked for a proof of work"""
    work_bits_min: Annotated[int, Meta(ge=0, le=30)] = 18
    """the least proof of work, in leading zero bits of a SHA-256; each bit doubles it"""
    work_bits_max: Annotated[int, Meta(ge=0, le=30)] = 26
    """the most; 0 never asks for any, and lets anybody use up sellers' addresses"""
    channel_contracts_per_minute: Positive = 20
    """addresses for deposits to channels that one client is told in a minute"""
    claims_per_minute: Positive = 300
    """claims from one client in a minute"""
    files_per_hour: Positive = 20_000
    """files that one seller announces in an hour; a parcel has up to 10,000"""
    file_bytes_per_hour: Positive = 200 * GIB
    """bytes that one seller announces in an hour"""
    parts_at_once: Positive = 12
    """parts of uploads received at the same time, 8 MiB of memory each; others wait"""
    parts_at_once_per_seller: Positive = 6
    """and of one seller"""
    streams: Positive = 11_000
    """event streams of payments open at the same time, some 15 kB of memory each"""
    streams_per_client: Positive = 200
    """and of one client; who is refused polls"""
    seller_streams: Positive = 2_000
    """event streams of sellers' pages open at the same time"""
    seller_streams_per_seller: Positive = 20
    """and of one seller"""
    connections: Positive = 12_000
    """connections open at the same time. When they are all taken, the one longest without a request goes"""
    connections_per_client: Positive = 1_000
    """and from one address that is no trusted proxy (IPv6: one /64; a /48 may have four times as many)"""
    head_s: Positive = 15
    """seconds in which a new connection must send the whole head of its first request"""
    idle_s: Positive = 75
    """seconds that a connection stays open without a request, and that the head of a further one may take"""


class HostedConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hosted sales: buyers pay the operator's wallet, sellers are credited and paid out."""

    descriptor: str = ""
    """the wallet that hosted sales are paid to: its public descriptor or extended key, an account of its own;
    empty: no hosted sales"""
    gap_limit: Annotated[int, Meta(ge=20, le=1_000_000)] = 1_000
    """unused addresses in a row that this wallet bridges: set it in the wallet, too"""
    fee_percent: Annotated[str, Meta(pattern=r"^(100|[0-9]{1,2}(\.[0-9]{1,4})?)$")] = "0"
    """the operator's part of each hosted sale, in percent, such as `"2.5"`"""
    fee_sat: Count = 0
    """and so many sats of each hosted sale"""
    depth: Annotated[int, Meta(ge=1, le=100)] = 6
    """confirmations from which received money is paid out, and from which a payout is done"""
    payout_min_sat: Annotated[int, Meta(ge=1_000)] = 10_000
    """the least payout a seller may ask for"""
    wallet: str = ""
    """a wallet of the node with the keys of `descriptor`, loaded only while it signs payouts; empty: they are
    signed elsewhere (`bitcache payouts export`, `bitcache payouts import`)"""
    wallet_passphrase: str = ""
    """of that wallet, where it is encrypted"""
    batch_every_h: Count = 0
    """hours between batches of payouts that are built by themselves; 0: only by `bitcache payouts build`"""
    feerate_sat_vb: Count = 0
    """what payouts pay the network, sat/vB; 0: the node's estimate"""
    feerate_blocks: Annotated[int, Meta(ge=1, le=1_008)] = 6
    """blocks within which a payout should be mined, for that estimate"""
    feerate_max_sat_vb: Positive = 100
    """payouts never pay the network more, sat/vB"""
    fee_share_percent_max: Annotated[int, Meta(ge=1, le=100)] = 10
    """a payout of which more than this would go to the network waits for a lower feerate"""
    bump_after_blocks: Count = 0
    """a batch signed by `wallet` that is not mined within so many blocks is sent again with a higher feerate;
    0: only by `bitcache payouts bump`"""
    refund_policy: Literal["ask", "auto"] = "ask"
    """`ask`: the seller or the operator approves refunds; `auto`: they need no approval"""
    refund_delay_s: Count = 86_400
    """a refund is not paid sooner after its address was named"""

    @property
    def payout_policy(self) -> PayoutPolicy:
        return PayoutPolicy(
            depth=self.depth,
            feerate_max_sat_kvb=self.feerate_max_sat_vb * 1_000,
            fee_share_percent_max=self.fee_share_percent_max,
        )

    @property
    def fee_ppm(self) -> int:
        whole, _, rest = self.fee_percent.partition(".")
        return int(whole) * 10_000 + int(rest.ljust(4, "0"))


class ChannelsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metered transfers: buyers pay chunk by chunk through payment channels. Needs hosted sales."""

    enabled: bool = False
    """whether buyers may open channels here, and sellers sell per chunk"""
    seed_file: str = "channel.seed"
    """32 bytes, from which the keys of all channels follow; relative or absolute. `bitcache channels seed`
    makes it: back it up"""
    life_blocks: Annotated[int, Meta(ge=288, le=52_560)] = 2_016
    """blocks from the terms of a channel to its expiry, when its buyer may take back what is left"""
    deposit_min_sat: Annotated[int, Meta(ge=1_000)] = 2_000
    """the least deposit; never less than 2 times what is set aside for its close"""
    close_feerate_sat_vb: Count = 0
    """for which feerate channels set aside the network fee of their close, sat/vB; 0: the node's estimate"""
    close_feerate_max_sat_vb: Positive = 100
    """closes pay the network no more, sat/vB, but in a channel's last 72 blocks: then up to all it brings"""
    unconfirmed_sat: Count = 500
    """what a channel may have paid in all before a block has its deposit; 0: nothing"""
    unconfirmed_total_sat: Count = 10_000
    """and all such channels together, with what double spends took within a day"""
    one_confirmation_sat: Count = 100_000
    """what a channel may have paid in all at 1 confirmation"""
    three_confirmations_sat: Count = 1_000_000
    """and at 3; from 6 there is no limit"""
    contracts_max: Positive = 20_000
    """addresses for deposits that are watched without a deposit; the oldest goes"""

    @property
    def exposure(self) -> Exposure:
        return Exposure(
            unconfirmed_sat=Sat(self.unconfirmed_sat),
            unconfirmed_total_sat=Sat(self.unconfirmed_total_sat),
            one_sat=Sat(self.one_confirmation_sat),
            three_sat=Sat(self.three_confirmations_sat),
        )


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator decides. Defaults are for one machine, SQLite and a local folder.

    What stands below a field is its line in docs/OPERATING.md (`python -m tests.config_table`).
    """

    data_folder: Path
    network: Network = "mainnet"
    """the chain: `mainnet`, `signet`, `testnet4`, `regtest`. A node on another chain ends the server with an
    error"""
    node: NodeConfig = NodeConfig()
    limits: LimitsConfig = LimitsConfig()
    hosted: HostedConfig = HostedConfig()
    channels: ChannelsConfig = ChannelsConfig()

    listen: str = "127.0.0.1:8421"
    """address and port of the HTTP server"""
    public_url: str = "http://localhost:8421"
    """what links and receipts begin with; no slash at the end. Change it and old links still name the old
    address"""
    trusted_proxies: tuple[str, ...] = ()
    """addresses or networks whose `X-Forwarded-For` is believed"""
    database_url: str = ""
    """empty: SQLite in the data folder; or `postgresql+asyncpg://user@host/name`"""
    blobs_folder: str = "blobs"
    """where ciphertext lies; relative to the data folder, or absolute"""
    accel_redirect_prefix: str = ""
    """the internal location of the trusted nginx proxy that sends files from `blobs_folder`, such as
    `/bitcache-blobs`; empty: this server sends them itself"""
    master_key_file: str = "master.key"
    """32 bytes that seal secrets in the database; relative or absolute"""

    registration: Literal["closed", "invite", "open"] = "closed"
    """who opens accounts: `closed` (you), `invite` (who has a code), `open` (anybody)"""
    invite_codes: tuple[str, ...] = ()
    """the codes, for `invite`"""
    account_bytes_max: Count = 100 * GIB
    """bytes one account may store"""
    total_bytes_max: Count = 1024 * GIB
    """bytes all accounts may store together"""
    disk_reserve_bytes: Count = 1 * GIB
    """free space that uploads leave untouched"""
    upload_expiry_s: Positive = 7 * 86_400
    """an unfinished upload that nobody touched for so long goes"""

    price_floor_sat: Count = 1_000
    """least price of an offer that is not free"""
    price_hold_s: Annotated[int, Meta(ge=5, le=86_400)] = 900
    """how long an invoice holds its price, 5 to 86,400"""
    paid_retention_days: Annotated[int, Meta(ge=1, le=36_500)] = 90
    """how long a buyer may download after paying, shown before paying"""
    open_invoices_per_seller_max: Positive = 1_000
    """unpaid invoices of one seller at a time, before buyers' programs are asked for the hardest proof of
    work"""
    open_invoices_per_client_max: Positive = 10
    """unpaid invoices of one client address (IPv6: one /64) at a time"""
    payout_change_delay_s: Count = 86_400
    """a change of a seller's wallet, or of where hosted earnings are paid out to, waits so long; the first
    counts at once, and so does the next wallet while no address of the present one was handed out and nothing
    was sold hosted"""
    prefetch_allowed: bool = True
    """whether sellers may send ciphertext before a payment is confirmed"""
    zero_conf_key_cap_sat: Count = 10_000
    """the most that unconfirmed payments whose key was already given may add up to, over all sellers; 0 for
    never"""
    grant_token_lifetime_s: Annotated[int, Meta(ge=60, le=86_400)] = 900
    """life of a download token, 60 to 86,400; clients renew it by themselves"""

    log_format: LogFormat = "text"
    """lines of the log: readable `text`, or one `json` object each"""
    log_level: LogLevel = "info"
    """the least that is logged: `info` (every request too), `warning` or `error`"""

    regtest_wallet_url: str = ""
    """on regtest alone: a page that pays with worthless coins; the payment page links to it"""

    operator_name: str = ""
    """shown at the foot of every page"""
    operator_terms: str = ""
    """your terms, at the foot of every page: words, or an address (`https://...`), which becomes a link"""
    operator_contact: str = ""
    """how to reach you, at the foot of every page: words, or an address (`https://...`, `mailto:...`)"""

    @property
    def listen_host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def listen_port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def metered_sales(self) -> bool:
        """Whether sellers may sell per chunk: the operator is paid, and owes it to them."""
        return self.channels.enabled and bool(self.hosted.descriptor)

    @property
    def database(self) -> str:
        """The database URL, by default SQLite in the data folder."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_folder / DATABASE_FILE_NAME}"

    @property
    def blobs(self) -> Path:
        return self.data_folder / self.blobs_folder

    @property
    def master_key(self) -> Path:
        return self.data_folder / self.master_key_file

    @property
    def channel_seed(self) -> Path:
        return self.data_folder / self.channels.seed_file

    @property
    def proxies(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        return _networks(self.trusted_proxies)


SECTIONS: Mapping[str, type[Struct]] = {
    "node": NodeConfig,
    "limits": LimitsConfig,
    "hosted": HostedConfig,
    "channels": ChannelsConfig,
}
"""Tables of the file, such as [node]."""


def browsers_decrypt_at(public_url: str) -> bool:
    """Whether pages of this address may use cryptography: on https, and on this machine itself."""
    url = urlsplit(public_url)
    return url.scheme == "https" or url.hostname in LOCAL_HOSTS


def warnings(config: Config) -> list[str]:
    """What an operator should hear at start-up, though the server can run."""
    found = []
    if not browsers_decrypt_at(config.public_url):
        found.append(
            f"public_url is {config.public_url}: browsers decrypt only on https or localhost. "
            "Put a reverse proxy with a certificate in front and set public_url to its https address."
        )
    if (cookie := missing_cookie_file(config)) is not None:
        found.append(
            f"the node's cookie file {cookie} is not there, or not for this user: start the node, or correct "
            "`rpc_cookie_file` under [node]."
        )
    return found


def check_channels(config: Config) -> None:
    """Raises ConfigInvalid: closes of channels pay the wallet of hosted sales, and there has to be one.

    At start-up alone: `bitcache init --channels` makes a data folder without it.
    """
    if config.channels.enabled and not config.hosted.descriptor:
        raise ConfigInvalid(
            "[channels]: `enabled` needs hosted sales, since closes of channels pay your wallet: set "
            "`descriptor` under [hosted], or `enabled = false`."
        )


def missing_cookie_file(config: Config) -> Path | None:
    """The cookie file, if the server is to use one and cannot see it; a node writes it when it starts."""
    cookie = config.node.cookie_path
    return None if cookie is None or os.path.exists(cookie) else cookie


@functools.lru_cache(maxsize=16)
def _networks(addresses: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Every request asks."""
    return tuple(ipaddress.ip_network(address, strict=False) for address in addresses)


def known_keys() -> tuple[str, ...]:
    """Every key; those of a section have its name in front, such as `node_rpc_url`."""
    top = (key for key in Config.__struct_fields__ if key not in {*SECTIONS, "data_folder"})
    below = (f"{name}_{key}" for name, section in SECTIONS.items() for key in section.__struct_fields__)
    return (*top, *below)


def section_of(key: str) -> tuple[str, str]:
    """The section a key of `known_keys` belongs to, empty for none, and its name there."""
    for section in SECTIONS:
        if key.startswith(f"{section}_"):
            return section, key.removeprefix(f"{section}_")
    return "", key
