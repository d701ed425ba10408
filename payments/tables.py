"""The tables of this package. Amounts are integers (sat on chain, msat in the ledger), times Unix seconds.

Transaction ids are kept as the hex text of the node's RPC. No foreign key leaves this package.
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
    UniqueConstraint,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

descriptors = Table(
    "descriptors",
    metadata,
    Column("id", Text, primary_key=True),  # of the normalised text, whatever account set it
    Column("sealed_text", LargeBinary, nullable=False),
    Column("next_index", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("gap_limit", Integer),  # unused addresses in a row that the wallet bridges; None: nobody said
    Column("hosted", Boolean, nullable=False, server_default=false()),  # the operator's, for hosted sales
)

invoices = Table(
    "invoices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("reference", Text, nullable=False, unique=True),
    Column("subject", Text, nullable=False),
    Column("seller_id", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("mode", Text, nullable=False),
    Column("bytes_at", Integer, nullable=False),
    Column("key_at", Integer, nullable=False),
    Column("tolerance_sat", BigInteger, nullable=False),
    Column("tolerance_ppm", BigInteger, nullable=False),
    Column("frozen", Text, nullable=False),
    Column("claim_hash", LargeBinary, nullable=False),
    Column("cancelled", Boolean, nullable=False),
    Column("revoked", Boolean, nullable=False, server_default=false()),
    Column("refunded", Boolean, nullable=False, server_default=false()),
    Column("fee_ppm", BigInteger, nullable=False, server_default="0"),
    Column("fee_sat", BigInteger, nullable=False, server_default="0"),
    Column("descriptor_id", Text, ForeignKey("descriptors.id")),
    Column("address_index", BigInteger),
    Column("address", Text),
    # Unique over all invoices for ever: no address is handed out twice, whoever's descriptor it came from.
    Column("script_pubkey", LargeBinary, unique=True),
    Column("released_at", BigInteger),
    # The last standing, for lists; `standing` in payments.invoice can always compute it again.
    Column("status", Text, nullable=False),
    Column("standing", Text, nullable=False),
    # The next moment at which time alone changes the standing: a deadline, or missing money that lapses.
    Column("review_at", BigInteger),
    Column("attention", Text),  # what its seller must see to, by the last standing
    Column("attended", Text),  # what of it the seller has seen to
    UniqueConstraint("subject", "claim_hash"),
    UniqueConstraint("descriptor_id", "address_index"),
    Index(None, "seller_id", "created_at"),
    Index(None, "seller_id", "attention"),
    Index(None, "seller_id", "status"),
    Index(None, "subject", "status"),
    Index(None, "status", "released_at"),
    Index(None, "review_at"),
)

invoice_terms = Table(
    "invoice_terms",
    metadata,
    Column("invoice_id", Text, ForeignKey("invoices.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("amount_sat", BigInteger, nullable=False),
    Column("valid_until", BigInteger, nullable=False),
    Column("offered_at", BigInteger, nullable=False),  # 0 for the first
)

received_outputs = Table(
    "received_outputs",
    metadata,
    Column("txid", Text, primary_key=True),
    Column("vout", BigInteger, primary_key=True),
    Column("invoice_id", Text, ForeignKey("invoices.id"), nullable=False),
    Column("amount_sat", BigInteger, nullable=False),
    Column("first_seen_at", BigInteger, nullable=False),
    Index(None, "invoice_id"),
)

restores = Table(
    "restores",
    metadata,
    Column("id", Integer, primary_key=True),  # one row: the latest
    Column("restored_at", BigInteger, nullable=False),
    Column("taken_at", BigInteger, nullable=False),  # the backup
    Column("from_height", BigInteger),  # of the last block the backup knew; None: searched no more, or never
    Column("payouts_resumed_at", BigInteger),  # until then nothing is paid out: it may have been already
)

# After a restore: addresses of each descriptor may have been handed out that the database does not remember.
address_searches = Table(
    "address_searches",
    metadata,
    Column("descriptor_id", Text, ForeignKey("descriptors.id"), primary_key=True),
    Column("from_index", BigInteger, nullable=False),  # the first index of which nothing is known
    Column("from_height", BigInteger),  # searched are the blocks above; None: the operator must decide
    Column("decided_index", BigInteger),  # where to go on, by the operator, whatever the blocks say
    Column("ended_at", BigInteger),  # until then the descriptor gives no address
    Index(None, "ended_at"),
)

# Addresses without an invoice: which a lost database may have handed out, or the operator's own. Watched for
# ever, as those of invoices are; an invoice that takes such an address later has it for itself.
unassigned_addresses = Table(
    "unassigned_addresses",
    metadata,
    Column("script_pubkey", LargeBinary, primary_key=True),
    Column("descriptor_id", Text, ForeignKey("descriptors.id"), nullable=False),
    Column("address_index", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
    Column("purpose", Text),  # change, deposit; None: nobody remembers
    Index(None, "descriptor_id", "address_index"),
)

unassigned_outputs = Table(
    "unassigned_outputs",
    metadata,
    Column("txid", Text, primary_key=True),
    Column("vout", BigInteger, primary_key=True),
    Column("script_pubkey", LargeBinary, ForeignKey("unassigned_addresses.script_pubkey"), nullable=False),
    Column("amount_sat", BigInteger, nullable=False),
    Column("first_seen_at", BigInteger, nullable=False),
    Index(None, "script_pubkey"),
)

# Those that pay us, our own payouts, and whatever else spends the coins of the hosted wallet.
paying_transactions = Table(
    "paying_transactions",
    metadata,
    Column("txid", Text, primary_key=True),
    Column("raw", LargeBinary, nullable=False),  # offered to the node again when it forgets the transaction
    Column("coinbase", Boolean, nullable=False),
    Column("presence", Text, nullable=False),
    Column("height", BigInteger),  # of its block
    Column("conflict_height", BigInteger),  # of the block whose transaction took its inputs
    Column("reorged", Boolean, nullable=False),
    Column("prefetch_fit", Boolean, nullable=False),
    Index(None, "presence"),
    Index(None, "height"),
    Index(None, "conflict_height"),
)

paying_inputs = Table(
    "paying_inputs",
    metadata,
    Column("txid", Text, ForeignKey("paying_transactions.txid"), primary_key=True),
    Column("previous_txid", Text, primary_key=True),
    Column("previous_vout", BigInteger, primary_key=True),
    Index(None, "previous_txid", "previous_vout"),
)

blocks = Table(
    "blocks",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("height", BigInteger, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("connected_at", BigInteger, nullable=False),
    Index(None, "height"),
)

outages = Table(
    "outages",
    metadata,
    Column("started_at", BigInteger, primary_key=True),
    Column("ended_at", BigInteger, nullable=False),
)

watcher_state = Table(
    "watcher_state",
    metadata,
    Column("id", Integer, primary_key=True),  # one row
    Column("beat_at", BigInteger, nullable=False),  # the watcher ran
    Column("online_at", BigInteger, nullable=False),  # and saw the whole chain and mempool
    Column("trouble", Text),  # why it did not, in words for the operator
)

transfers = Table(
    "transfers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("debit", Text, nullable=False),
    Column("credit", Text, nullable=False),
    Column("amount_msat", BigInteger, nullable=False),
    Column("code", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "reference"),
    Index(None, "debit", "created_at"),
    Index(None, "credit", "created_at"),
    Index(None, "created_at"),
)

# Credits minus debits of each account, written with every transfer; an account at zero has no row.
balances = Table(
    "balances",
    metadata,
    Column("account", Text, primary_key=True),
    Column("amount_msat", BigInteger, nullable=False),
)

payouts = Table(
    "payouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # seller, refund, operator
    Column("seller_id", Text),  # whose balance, or whose sale is refunded; None: the operator's own
    Column("invoice_id", Text, ForeignKey("invoices.id")),  # refunds
    Column("account", Text, nullable=False),  # in the ledger, from which the amount is held
    Column("amount_sat", BigInteger, nullable=False),  # network fee included
    Column("address", Text, nullable=False),
    Column("script_pubkey", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("requested_at", BigInteger, nullable=False),
    Column("ready_at", BigInteger, nullable=False),  # not paid before
    Column("decided_at", BigInteger),
    Column("decided_by", Text),  # who approved or declined: operator, seller, policy
    Column("reason", Text),  # why it was declined or cancelled
    Column("batch_id", Text, ForeignKey("payout_batches.id")),
    Column("trouble", Text),  # why it waits, in words
    Index(None, "account", "state"),
    Index(None, "seller_id", "requested_at"),
    Index(None, "invoice_id"),
    Index(None, "batch_id"),
    Index(None, "state"),
    Index(None, "script_pubkey"),
)

payout_batches = Table(
    "payout_batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("change_sat", BigInteger, nullable=False),  # 0: none
    Column("change_script_pubkey", LargeBinary),
    Column("exported_at", BigInteger),  # from then on somebody else may have signed and sent it
    Column("trouble", Text),  # why it is not signed or not sent yet, in words
    Index(None, "state"),
)

batch_inputs = Table(
    "batch_inputs",
    metadata,
    Column("txid", Text, primary_key=True),
    Column("vout", BigInteger, primary_key=True),
    Column("batch_id", Text, ForeignKey("payout_batches.id"), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("amount_sat", BigInteger, nullable=False),
    Index(None, "batch_id"),
)

# One transaction of a batch; all of a batch's spend the same coins, so that at most one is ever mined.
payout_versions = Table(
    "payout_versions",
    metadata,
    Column("batch_id", Text, ForeignKey("payout_batches.id"), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("feerate_sat_kvb", BigInteger, nullable=False),
    Column("fee_sat", BigInteger, nullable=False),
    Column("unsigned", LargeBinary, nullable=False),
    Column("psbt", Text, nullable=False),
    Column("raw", LargeBinary),  # signed
    Column("txid", Text),  # of `raw`
    Column("signed_at", BigInteger),
    Index(None, "txid"),
)

# What each payout gets of each version, and pays of its fee: together its amount.
version_shares = Table(
    "version_shares",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("payout_id", Text, ForeignKey("payouts.id"), primary_key=True),
    Column("vout", Integer, nullable=False),
    Column("arrives_sat", BigInteger, nullable=False),
    Column("fee_sat", BigInteger, nullable=False),
    Index(None, "payout_id"),
)

# The first address that a refund of the invoice was claimed to: no other is ever paid.
refund_addresses = Table(
    "refund_addresses",
    metadata,
    Column("invoice_id", Text, ForeignKey("invoices.id"), primary_key=True),
    Column("address", Text, nullable=False),
    Column("script_pubkey", LargeBinary, nullable=False),
    Column("claimed_at", BigInteger, nullable=False),
)

# What the operator said about transactions that are no payouts of ours: which accounts bear them.
spend_explanations = Table(
    "spend_explanations",
    metadata,
    Column("txid", Text, primary_key=True),
    Column("account", Text, primary_key=True),  # of the ledger
    Column("amount_sat", BigInteger),  # None: all that the others leave
)

# One row for each look at ledger and node; the newest are kept.
reconciliations = Table(
    "reconciliations",
    metadata,
    Column("at", BigInteger, primary_key=True),
    Column("height", BigInteger, nullable=False),
    Column("difference_sat", BigInteger, nullable=False),
    Column("explained", Boolean, nullable=False),
    Column("report", Text, nullable=False),  # JSON; empty while it runs, or if it was cut off
)

# Channels: one row for each script that a payer asked us to watch, which is a contract without money yet.
channel_contracts = Table(
    "channel_contracts",
    metadata,
    Column("script_pubkey", LargeBinary, primary_key=True),
    # Rises with each contract and each deposit to one: what is new is what is above the last that was read.
    Column("seq", BigInteger, nullable=False, unique=True),
    Column(
        "nonce", LargeBinary, nullable=False
    ),  # of its terms: with the channel seed it gives the payee's key
    Column("payer_key", LargeBinary, nullable=False),
    Column("payee_key", LargeBinary, nullable=False),
    Column("expiry_height", BigInteger, nullable=False),
    Column("change_script_pubkey", LargeBinary, nullable=False),
    Column("close_fee_sat", BigInteger, nullable=False),
    Column("announced_at", BigInteger, nullable=False),
    Index(None, "payer_key"),
    Index(None, "announced_at"),
)

# One for each deposit to such a script. Where its coin is, `paying_transactions` and `paying_inputs` say.
channels = Table(
    "channels",
    metadata,
    Column("id", Text, primary_key=True),  # the outpoint, <txid>:<vout>
    Column("txid", Text, nullable=False),
    Column("vout", BigInteger, nullable=False),
    Column("script_pubkey", LargeBinary, ForeignKey("channel_contracts.script_pubkey"), nullable=False),
    Column("capacity_sat", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("opened_at", BigInteger),
    Column("accepted_sat", BigInteger, nullable=False),  # the highest cumulative amount that was signed
    Column("signature", LargeBinary),  # over it, compact
    Column("spent_msat", BigInteger, nullable=False),  # of it charged
    Column("close_reason", Text),
    Column("close_asked_at", BigInteger),
    Column("agreed_paid_sat", BigInteger),  # a cooperative close: the amount, the fee, the payer's signature
    Column("agreed_fee_sat", BigInteger),
    Column("agreed_signature", LargeBinary),
    Column("closed_at", BigInteger),
    Column("trouble", Text),  # why it is not closed yet, in words
    UniqueConstraint("txid", "vout"),
    Index(None, "closed_at"),
    Index(None, "script_pubkey"),
    Index(None, "state"),
)

# What a channel bought of one offer, all chunks together.
channel_sales = Table(
    "channel_sales",
    metadata,
    Column("channel_id", Text, ForeignKey("channels.id"), primary_key=True),
    Column("subject", Text, primary_key=True),  # what was sold: an offer's id
    Column("seller_id", Text, nullable=False),
    Column("fee_ppm", BigInteger, nullable=False),  # the operator's part, as it was with the first chunk
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("units", BigInteger, nullable=False),  # chunks paid for
    Column("spent_msat", BigInteger, nullable=False),
    Column("booked_msat", BigInteger, nullable=False),  # of it in the ledger
    Column("bookings", BigInteger, nullable=False),
    Index(None, "seller_id", "last_at"),
    Index(None, "subject"),
)

# Which chunks a channel has paid for: bit n of page p is chunk p * 4096 + n of the file.
channel_pages = Table(
    "channel_pages",
    metadata,
    Column("channel_id", Text, ForeignKey("channels.id"), primary_key=True),
    Column("item", Text, primary_key=True),  # a file's id
    Column("page", BigInteger, primary_key=True),
    Column("paid", LargeBinary, nullable=False),  # up to 512 bytes
)

# Transactions that close channels. Versions of one close spend the same deposits: at most one is ever mined.
channel_closes = Table(
    "channel_closes",
    metadata,
    Column("close_id", Text, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("txid", Text, nullable=False, unique=True),
    Column("raw", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("sent_height", BigInteger, nullable=False),  # the tip when it was first sent
    Column("feerate_sat_kvb", BigInteger, nullable=False),
    Column("fee_sat", BigInteger, nullable=False),
    Column("payee_script_pubkey", LargeBinary, nullable=False),
    Column("payee_vout", Integer),  # None: too little for an output
    Column("payee_sat", BigInteger, nullable=False),
    Column("child_txid", Text),  # pays for it (CPFP)
)

channel_close_members = Table(
    "channel_close_members",
    metadata,
    Column("close_id", Text, primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("channel_id", Text, ForeignKey("channels.id"), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("paid_sat", BigInteger, nullable=False),  # what the payer's signature in it says
    Column("agreed", Boolean, nullable=False),
    Column("received_sat", BigInteger, nullable=False),  # its share of the payee's output
    Index(None, "channel_id"),
)

# One row: the process that has the channels of this database, and until when.
channel_host = Table(
    "channel_host",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("holder", Text, nullable=False),  # random, of the process
    Column("held_until", BigInteger, nullable=False),
)
