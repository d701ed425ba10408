"""The service's own tables: accounts, files, parcels, offers, grants, events. Money's: `payments.tables`.

Ids are 26 characters of base32, times Unix seconds. Secrets are hashed, or sealed under the master key.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    true,
)

from payments.tables import metadata as payments_metadata

metadata = MetaData(naming_convention=payments_metadata.naming_convention)

accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("bytes_max", BigInteger),  # None: the server's default
    Column("descriptor_id", Text),  # of the payout descriptor in force
    Column("pending_descriptor_id", Text),
    Column("pending_until", BigInteger),
    Column("password_hash", Text),  # argon2id, in its own encoding; None: signs in with a token only
    Column("settlement", Text, nullable=False, server_default="direct"),  # or hosted: of new invoices
)

# How a seller with hosted sales is paid out.
payout_plans = Table(
    "payout_plans",
    metadata,
    Column("account_id", Text, ForeignKey("accounts.id"), primary_key=True),
    Column("address", Text),  # None: the next address of the seller's wallet
    Column("script_pubkey", LargeBinary),  # of `address`
    Column("pending_address", Text),
    Column("pending_script_pubkey", LargeBinary),
    Column("pending_until", BigInteger),  # None: nothing is pending; an empty address then means the wallet
    Column("threshold_sat", BigInteger),  # pay out by itself from this balance on
    Column("every", Text),  # day, week, month; None: never by itself
    Column("next_at", BigInteger),
    Index(None, "next_at"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("secret_hash", LargeBinary, nullable=False, unique=True),  # of what the cookie holds
    Column("token_id", Text, ForeignKey("tokens.id")),  # signed in with it: revoking it ends the session
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Index(None, "account_id"),
    Index(None, "expires_at"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("token_hash", LargeBinary, nullable=False, unique=True),
    Column("label", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Index(None, "account_id"),
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("touched_at", BigInteger, nullable=False),  # the last part, for the sweep
    Column("completed_at", BigInteger),
    Column("root", LargeBinary),
    Column("digests", LargeBinary),  # of all chunks, 32 bytes each, once complete
    Column("damaged_at", BigInteger),  # when the stored bytes were first found to be others, or gone
    Index(None, "account_id"),
    Index(None, "damaged_at"),
    Index(None, "touched_at"),
)

file_parts = Table(
    "file_parts",
    metadata,
    Column("file_id", Text, ForeignKey("files.id"), primary_key=True),
    Column("part_no", Integer, primary_key=True),
    Column("digests", LargeBinary, nullable=False),  # of its chunks, 32 bytes each
)

parcels = Table(
    "parcels",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("meterable", Boolean, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("files_count", Integer, nullable=False),
    Column("sealed_at", BigInteger),
    Column("metadata", LargeBinary),
    Column("sealed_release_secret", LargeBinary),
    Column("deleted_at", BigInteger),  # by the seller; the bytes stay as long as a buyer has a right to them
    Column("damaged", Boolean, nullable=False, server_default=false()),  # one of its files is
    Index(None, "account_id", "created_at"),
)

parcel_files = Table(
    "parcel_files",
    metadata,
    Column("parcel_id", Text, ForeignKey("parcels.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("file_id", Text, ForeignKey("files.id"), nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    Index(None, "file_id"),
)

offers = Table(
    "offers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.id"), nullable=False),
    Column("parcel_id", Text, ForeignKey("parcels.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Of the whole parcel. Where it is sold per chunk alone, more than there is: what forgets to look fails.
    Column("price_msat", BigInteger, nullable=False),
    Column("sold_whole", Boolean, nullable=False, server_default=true()),
    Column("metered_msat", BigInteger),  # per chunk, through a payment channel; None: not sold so
    Column("bytes_at", Integer, nullable=False),
    Column("key_at", Integer, nullable=False),
    Column("expires_at", BigInteger),
    Column("max_downloads", BigInteger),
    Column("closed_at", BigInteger),
    Column("taken_down_at", BigInteger),
    Column("taken_down_reason", Text),
    Index(None, "account_id", "created_at"),
    Index(None, "parcel_id"),
)

grants = Table(
    "grants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("invoice_id", Text, nullable=False, unique=True),
    Column("offer_id", Text, ForeignKey("offers.id"), nullable=False),
    Column("parcel_id", Text, ForeignKey("parcels.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # What the invoice's standing allowed when it last changed. Tokens say who; these say whether.
    Column("bytes_allowed", Boolean, nullable=False),
    Column("key_allowed", Boolean, nullable=False),
    Column("retained_until", BigInteger, nullable=False),
    Column("bytes_served", BigInteger, nullable=False),
    Index(None, "parcel_id", "retained_until"),
    Index(None, "offer_id"),
)

offer_views = Table(
    "offer_views",
    metadata,
    Column("offer_id", Text, ForeignKey("offers.id"), primary_key=True),
    Column("day", Text, primary_key=True),  # YYYY-MM-DD, UTC
    Column("views", BigInteger, nullable=False),
    Index(None, "day"),
)

reports = Table(
    "reports",
    metadata,
    Column("id", Text, primary_key=True),
    Column("offer_id", Text, ForeignKey("offers.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("contact", Text, nullable=False),
    Column("handled_at", BigInteger),
    Index(None, "offer_id"),
    Index(None, "created_at"),
)

events = Table(
    "events",
    metadata,
    # BIGINT does not autoincrement on SQLite.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("topic", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("json", Text, nullable=False),
    Index(None, "subject"),
    Index(None, "at"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("status", Integer, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "created_at"),
)

master_key_backups = Table(
    "master_key_backups",
    metadata,
    Column("fingerprint", Text, primary_key=True),  # tells keys apart, and nothing else about them
    Column("backed_up_at", BigInteger, nullable=False),
)
