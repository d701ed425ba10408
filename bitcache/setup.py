"""A new data folder: a commented configuration, a master key, a database; a channel seed if asked for."""

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bitcache.channel_seed import write_channel_seed
from bitcache.config import CONFIG_FILE_NAME, DATABASE_FILE_NAME, Config, Network
from bitcache.config_file import parse
from bitcache.db.engine import Database
from bitcache.db.migrate import is_blank, upgrade
from bitcache.errors import AlreadyInitialised, DatabaseMissing
from bitcache.master_key import create_private, write_master_key

CHANNELS_OFF, CHANNELS_ON = "\n# enabled = false\n", "\nenabled = true\n"
RPC_PORTS: dict[Network, int] = {"mainnet": 8332, "testnet4": 48332, "signet": 38332, "regtest": 18443}

TEMPLATE = """\
# Bitcache. What is commented out is the default. Every key can also be set by a variable of the environment:
# BITCACHE_LISTEN, BITCACHE_NODE_RPC_URL, ...; secrets also by a file: BITCACHE_NODE_RPC_PASSWORD_FILE=...

# The chain your node follows: "mainnet", "signet", "testnet4" or "regtest". Checked against the node.
network = "{network}"

# Where the server listens. Put a reverse proxy with a certificate in front for others to reach it.
# listen = "127.0.0.1:8421"
# What links begin with. Browsers decrypt only on https or localhost.
# public_url = "http://localhost:8421"
# Proxies whose X-Forwarded-For is believed, such as ["127.0.0.1", "10.0.0.0/8"].
# trusted_proxies = []

# SQLite in this folder; or "postgresql+asyncpg://user@host/name".
# database_url = ""
# Where ciphertext is kept; relative to this folder, or absolute.
# blobs_folder = "blobs"
# The internal location of a trusted nginx that sends files from there, such as "/bitcache-blobs".
# accel_redirect_prefix = ""
# Seals secrets in the database. Back it up apart from the database: without it no release secret opens.
# master_key_file = "master.key"

# Who may open an account: "closed" (you alone, with `bitcache account create`), "invite" or "open".
# registration = "closed"
# invite_codes = []

# Limits, in bytes; an upload that nobody touched for so many seconds is removed.
# account_bytes_max = 107374182400
# total_bytes_max = 1099511627776
# disk_reserve_bytes = 1073741824
# upload_expiry_s = 604800

# The least price of an offer that is not free, and how long an invoice holds its price.
# price_floor_sat = 1000
# price_hold_s = 900
# For how many days a buyer may download what was paid, whatever the seller does.
# paid_retention_days = 90
# open_invoices_per_seller_max = 1000
# open_invoices_per_client_max = 10
# A seller's change of wallet waits so long; the first wallet counts at once.
# payout_change_delay_s = 86400
# May sellers let buyers download ciphertext before the payment is in a block?
# prefetch_allowed = true
# The most that unconfirmed payments whose key was given may add up to; 0 for never.
# zero_conf_key_cap_sat = 10000
# grant_token_lifetime_s = 900

# Lines of the log: "text", or "json" for one object each.
# log_format = "text"
# The least that is logged: "info" (every request too), "warning" or "error".
# log_level = "info"

# Shown to buyers.
# regtest_wallet_url = ""
# operator_name = ""
# operator_terms = ""
# operator_contact = ""

[node]
# Your own bitcoin node. It needs -rest=1 and -zmqpubsequence=tcp://127.0.0.1:28332; no wallet, no -txindex.
rpc_url = "http://127.0.0.1:{rpc_port}"
rpc_cookie_file = "{cookie_file}"
# Instead of the cookie file:
# rpc_user = ""
# rpc_password = ""
# Where the node publishes -zmqpubsequence. Without it payments are found by polling, a little later.
# zmq_sequence_url = "tcp://127.0.0.1:28332"
# poll_interval_s = 2

[limits]
# What one client (an address; IPv6: a /64) may do, and all together. docs/OPERATING.md, "Limits and caps".
# accounts_per_hour = 10
# accounts_per_hour_in_total = 200
# sign_ins_per_quarter = 30
# sign_ins_by_name_per_quarter = 150
# password_checks_at_once = 2
# password_checks_waiting = 20
# reports_per_hour = 10
# reports_per_hour_in_total = 300
# reports_kept_max = 10000
# channel_contracts_per_minute = 20
# claims_per_minute = 300
# invoices_per_minute = 120
# Beyond these buyers' programs are asked for a proof of work, of so many bits: nobody is refused.
# invoices_per_minute_in_total = 600
# work_bits_min = 18
# work_bits_max = 26
# files_per_hour = 20000
# file_bytes_per_hour = 214748364800
# parts_at_once = 12
# parts_at_once_per_seller = 6
# streams = 11000
# streams_per_client = 200
# seller_streams = 2000
# seller_streams_per_seller = 20
# connections = 12000
# connections_per_client = 1000
# head_s = 15
# idle_s = 75

[hosted]
# Buyers pay a wallet of yours, sellers are credited and paid out. docs/OPERATING.md, "Hosted sales".
# The public descriptor or extended key of an account of its own; empty: no hosted sales.
# descriptor = ""
# gap_limit = 1000
# Your part of each hosted sale.
# fee_percent = "0"
# fee_sat = 0
# Confirmations from which money is paid out.
# depth = 6
# payout_min_sat = 10000
# A wallet of the node that signs payouts, loaded only for that; empty: sign elsewhere, with a PSBT.
# wallet = ""
# wallet_passphrase = ""
# Hours between batches of payouts; 0: only `bitcache payouts build`.
# batch_every_h = 0
# What payouts pay the network, sat/vB; 0: the node's estimate for so many blocks. Never above the maximum.
# feerate_sat_vb = 0
# feerate_blocks = 6
# feerate_max_sat_vb = 100
# fee_share_percent_max = 10
# bump_after_blocks = 0
# Refunds: "ask" (seller or operator approves) or "auto"; never paid sooner than so many seconds later.
# refund_policy = "ask"
# refund_delay_s = 86400

[channels]
# Buyers pay chunk by chunk through payment channels. docs/OPERATING.md, "Metered transfers". Needs [hosted].
# enabled = false
# The keys of all channels follow from it: `bitcache channels seed` makes it. Back it up.
# seed_file = "channel.seed"
# life_blocks = 2016
# deposit_min_sat = 2000
# What a close pays the network, sat/vB; 0: the node's estimate. Above the maximum only in the last 72 blocks.
# close_feerate_sat_vb = 0
# close_feerate_max_sat_vb = 100
# What a channel may have paid before a block has its deposit, all such together, at 1 and at 3 blocks.
# unconfirmed_sat = 500
# unconfirmed_total_sat = 10000
# one_confirmation_sat = 100000
# three_confirmations_sat = 1000000
# contracts_max = 20000
"""


async def initialise(folder: Path, *, network: Network, channels: bool = False) -> None:
    """Make `folder` a server's data folder; nothing is ever overwritten. `channels`: with a channel seed.

    Raises AlreadyInitialised, DatabaseMissing.
    """
    config = _write_files(folder, network, channels=channels)
    database = Database(config.database)
    try:
        await prepare_database(config, database)
    finally:
        await database.close()


@asynccontextmanager
async def open_database(config: Config) -> AsyncIterator[Database]:
    """The server's database with its tables up to date, whether the server runs or not."""
    database = Database(config.database)
    try:
        await prepare_database(config, database)
        yield database
    finally:
        await database.close()


async def prepare_database(config: Config, database: Database) -> None:
    """Make or migrate the tables. Raises DatabaseOutdated, DatabaseMissing.

    To a blank database every blob is one that nobody owns: better no start than a sweep.
    """
    if await is_blank(database) and _holds_blobs(config.blobs):
        raise DatabaseMissing(
            f"The database {database.url!r} is empty, but {config.blobs} holds blobs: they belong to another "
            "database. Correct `database_url`, or restore the database from your backup. To begin anew, move "
            "the blobs away."
        )
    await upgrade(database)


def config_text(network: Network, *, channels: bool = False) -> str:
    """A commented configuration for `network`."""
    chain_folder = "" if network == "mainnet" else f"{network}/"
    text = TEMPLATE.format(
        network=network, rpc_port=RPC_PORTS[network], cookie_file=f"~/.bitcoin/{chain_folder}.cookie"
    )
    return text.replace(CHANNELS_OFF, CHANNELS_ON) if channels else text


def _write_files(folder: Path, network: Network, *, channels: bool) -> Config:
    """Everything but the tables, readable by the owner alone; the configuration as it was written."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = config_text(network, channels=channels)
    settings = parse(tomllib.loads(text), data_folder=folder)
    config_path, database_path = folder / CONFIG_FILE_NAME, folder / DATABASE_FILE_NAME
    for existing in (config_path, settings.master_key, settings.channel_seed, database_path):
        if existing.exists():
            raise AlreadyInitialised(
                f"{existing} is there already; nothing was changed. Choose another folder, or run "
                f"`bitcache serve --data {folder}`."
            )
    create_private(config_path, text.encode())
    create_private(database_path, b"")
    write_master_key(settings.master_key)
    if channels:
        write_channel_seed(settings.channel_seed)
    return settings


def _holds_blobs(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))
