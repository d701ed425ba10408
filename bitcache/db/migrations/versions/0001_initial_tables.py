"""Initial tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("bytes_max", sa.BigInteger(), nullable=True),
        sa.Column("descriptor_id", sa.Text(), nullable=True),
        sa.Column("pending_descriptor_id", sa.Text(), nullable=True),
        sa.Column("pending_until", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
    )
    op.create_table(
        "events",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("json", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_at"), ["at"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_subject"), ["subject"], unique=False)

    op.create_table(
        "idempotency_keys",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_idempotency_keys")),
    )
    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_keys_created_at"), ["created_at"], unique=False)

    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("touched_at", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.Column("root", sa.LargeBinary(), nullable=True),
        sa.Column("digests", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_files_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_files_account_id"), ["account_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_files_touched_at"), ["touched_at"], unique=False)

    op.create_table(
        "parcels",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("meterable", sa.Boolean(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("files_count", sa.Integer(), nullable=False),
        sa.Column("sealed_at", sa.BigInteger(), nullable=True),
        sa.Column("metadata", sa.LargeBinary(), nullable=True),
        sa.Column("sealed_release_secret", sa.LargeBinary(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_parcels_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_parcels")),
    )
    with op.batch_alter_table("parcels", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_parcels_account_id_created_at"), ["account_id", "created_at"], unique=False
        )

    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_tokens_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_tokens_token_hash")),
    )
    with op.batch_alter_table("tokens", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tokens_account_id"), ["account_id"], unique=False)

    op.create_table(
        "file_parts",
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("part_no", sa.Integer(), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_file_parts_file_id")),
        sa.PrimaryKeyConstraint("file_id", "part_no", name=op.f("pk_file_parts")),
    )
    op.create_table(
        "offers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("parcel_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("price_msat", sa.BigInteger(), nullable=False),
        sa.Column("bytes_at", sa.Integer(), nullable=False),
        sa.Column("key_at", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("max_downloads", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("taken_down_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_offers_account_id")),
        sa.ForeignKeyConstraint(["parcel_id"], ["parcels.id"], name=op.f("fk_offers_parcel_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_offers")),
    )
    with op.batch_alter_table("offers", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_offers_account_id_created_at"), ["account_id", "created_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_offers_parcel_id"), ["parcel_id"], unique=False)

    op.create_table(
        "parcel_files",
        sa.Column("parcel_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_parcel_files_file_id")),
        sa.ForeignKeyConstraint(["parcel_id"], ["parcels.id"], name=op.f("fk_parcel_files_parcel_id")),
        sa.PrimaryKeyConstraint("parcel_id", "position", name=op.f("pk_parcel_files")),
    )
    with op.batch_alter_table("parcel_files", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_parcel_files_file_id"), ["file_id"], unique=False)

    op.create_table(
        "grants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("offer_id", sa.Text(), nullable=False),
        sa.Column("parcel_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("bytes_allowed", sa.Boolean(), nullable=False),
        sa.Column("key_allowed", sa.Boolean(), nullable=False),
        sa.Column("retained_until", sa.BigInteger(), nullable=False),
        sa.Column("bytes_served", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["offer_id"], ["offers.id"], name=op.f("fk_grants_offer_id")),
        sa.ForeignKeyConstraint(["parcel_id"], ["parcels.id"], name=op.f("fk_grants_parcel_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
        sa.UniqueConstraint("invoice_id", name=op.f("uq_grants_invoice_id")),
    )
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_grants_offer_id"), ["offer_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_grants_parcel_id"), ["parcel_id"], unique=False)

    op.create_table(
        "blocks",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("connected_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_blocks")),
    )
    with op.batch_alter_table("blocks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_blocks_height"), ["height"], unique=False)

    op.create_table(
        "descriptors",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sealed_text", sa.LargeBinary(), nullable=False),
        sa.Column("next_index", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_descriptors")),
    )
    op.create_table(
        "outages",
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("started_at", name=op.f("pk_outages")),
    )
    op.create_table(
        "paying_transactions",
        sa.Column("txid", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("coinbase", sa.Boolean(), nullable=False),
        sa.Column("presence", sa.Text(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=True),
        sa.Column("conflict_height", sa.BigInteger(), nullable=True),
        sa.Column("reorged", sa.Boolean(), nullable=False),
        sa.Column("prefetch_fit", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("txid", name=op.f("pk_paying_transactions")),
    )
    with op.batch_alter_table("paying_transactions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_paying_transactions_conflict_height"), ["conflict_height"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_paying_transactions_height"), ["height"], unique=False)
        batch_op.create_index(batch_op.f("ix_paying_transactions_presence"), ["presence"], unique=False)

    op.create_table(
        "transfers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("debit", sa.Text(), nullable=False),
        sa.Column("credit", sa.Text(), nullable=False),
        sa.Column("amount_msat", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
    )
    with op.batch_alter_table("transfers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_transfers_created_at"), ["created_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_transfers_credit"), ["credit"], unique=False)
        batch_op.create_index(batch_op.f("ix_transfers_debit"), ["debit"], unique=False)
        batch_op.create_index(batch_op.f("ix_transfers_reference"), ["reference"], unique=False)

    op.create_table(
        "watcher_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("beat_at", sa.BigInteger(), nullable=False),
        sa.Column("online_at", sa.BigInteger(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_watcher_state")),
    )
    op.create_table(
        "invoices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("bytes_at", sa.Integer(), nullable=False),
        sa.Column("key_at", sa.Integer(), nullable=False),
        sa.Column("tolerance_sat", sa.BigInteger(), nullable=False),
        sa.Column("tolerance_ppm", sa.BigInteger(), nullable=False),
        sa.Column("frozen", sa.Text(), nullable=False),
        sa.Column("claim_hash", sa.LargeBinary(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("descriptor_id", sa.Text(), nullable=True),
        sa.Column("address_index", sa.BigInteger(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=True),
        sa.Column("released_at", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("standing", sa.Text(), nullable=False),
        sa.Column("review_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["descriptor_id"], ["descriptors.id"], name=op.f("fk_invoices_descriptor_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoices")),
        sa.UniqueConstraint(
            "descriptor_id", "address_index", name=op.f("uq_invoices_descriptor_id_address_index")
        ),
        sa.UniqueConstraint("reference", name=op.f("uq_invoices_reference")),
        sa.UniqueConstraint("script_pubkey", name=op.f("uq_invoices_script_pubkey")),
        sa.UniqueConstraint("subject", "claim_hash", name=op.f("uq_invoices_subject_claim_hash")),
    )
    with op.batch_alter_table("invoices", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_invoices_review_at"), ["review_at"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_invoices_seller_id_created_at"), ["seller_id", "created_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_invoices_status"), ["status"], unique=False)

    op.create_table(
        "paying_inputs",
        sa.Column("txid", sa.Text(), nullable=False),
        sa.Column("previous_txid", sa.Text(), nullable=False),
        sa.Column("previous_vout", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["txid"], ["paying_transactions.txid"], name=op.f("fk_paying_inputs_txid")),
        sa.PrimaryKeyConstraint("txid", "previous_txid", "previous_vout", name=op.f("pk_paying_inputs")),
    )
    with op.batch_alter_table("paying_inputs", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_paying_inputs_previous_txid_previous_vout"),
            ["previous_txid", "previous_vout"],
            unique=False,
        )

    op.create_table(
        "invoice_terms",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("amount_sat", sa.BigInteger(), nullable=False),
        sa.Column("valid_until", sa.BigInteger(), nullable=False),
        sa.Column("offered_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_invoice_terms_invoice_id")),
        sa.PrimaryKeyConstraint("invoice_id", "position", name=op.f("pk_invoice_terms")),
    )
    op.create_table(
        "received_outputs",
        sa.Column("txid", sa.Text(), nullable=False),
        sa.Column("vout", sa.BigInteger(), nullable=False),
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("amount_sat", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_received_outputs_invoice_id")),
        sa.PrimaryKeyConstraint("txid", "vout", name=op.f("pk_received_outputs")),
    )
    with op.batch_alter_table("received_outputs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_received_outputs_invoice_id"), ["invoice_id"], unique=False)
