"""Hosted sales: balances beside the ledger, payouts, refunds."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "payout_plans",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=True),
        sa.Column("pending_address", sa.Text(), nullable=True),
        sa.Column("pending_script_pubkey", sa.LargeBinary(), nullable=True),
        sa.Column("pending_until", sa.BigInteger(), nullable=True),
        sa.Column("threshold_sat", sa.BigInteger(), nullable=True),
        sa.Column("every", sa.Text(), nullable=True),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_payout_plans_account_id")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_payout_plans")),
    )
    with op.batch_alter_table("payout_plans", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_payout_plans_next_at"), ["next_at"], unique=False)

    op.create_table(
        "balances",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("amount_msat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_balances")),
    )
    op.create_table(
        "payout_batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("change_sat", sa.BigInteger(), nullable=False),
        sa.Column("change_script_pubkey", sa.LargeBinary(), nullable=True),
        sa.Column("exported_at", sa.BigInteger(), nullable=True),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payout_batches")),
    )
    with op.batch_alter_table("payout_batches", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_payout_batches_state"), ["state"], unique=False)

    op.create_table(
        "reconciliations",
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False),
        sa.Column("difference_sat", sa.BigInteger(), nullable=False),
        sa.Column("explained", sa.Boolean(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("at", name=op.f("pk_reconciliations")),
    )
    op.create_table(
        "spend_explanations",
        sa.Column("txid", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("amount_sat", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("txid", "account", name=op.f("pk_spend_explanations")),
    )
    op.create_table(
        "batch_inputs",
        sa.Column("txid", sa.Text(), nullable=False),
        sa.Column("vout", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("amount_sat", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["payout_batches.id"], name=op.f("fk_batch_inputs_batch_id")),
        sa.PrimaryKeyConstraint("txid", "vout", "batch_id", name=op.f("pk_batch_inputs")),
    )
    with op.batch_alter_table("batch_inputs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_batch_inputs_batch_id"), ["batch_id"], unique=False)

    op.create_table(
        "payout_versions",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("feerate_sat_kvb", sa.BigInteger(), nullable=False),
        sa.Column("fee_sat", sa.BigInteger(), nullable=False),
        sa.Column("unsigned", sa.LargeBinary(), nullable=False),
        sa.Column("psbt", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=True),
        sa.Column("txid", sa.Text(), nullable=True),
        sa.Column("signed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["payout_batches.id"], name=op.f("fk_payout_versions_batch_id")
        ),
        sa.PrimaryKeyConstraint("batch_id", "n", name=op.f("pk_payout_versions")),
    )
    with op.batch_alter_table("payout_versions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_payout_versions_txid"), ["txid"], unique=False)

    op.create_table(
        "payouts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=True),
        sa.Column("invoice_id", sa.Text(), nullable=True),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("amount_sat", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("ready_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["batch_id"], ["payout_batches.id"], name=op.f("fk_payouts_batch_id")),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_payouts_invoice_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payouts")),
    )
    with op.batch_alter_table("payouts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_payouts_batch_id"), ["batch_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_payouts_invoice_id"), ["invoice_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_payouts_script_pubkey"), ["script_pubkey"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_payouts_seller_id_requested_at"), ["seller_id", "requested_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_payouts_account_state"), ["account", "state"], unique=False)
        batch_op.create_index(batch_op.f("ix_payouts_state"), ["state"], unique=False)

    op.create_table(
        "refund_addresses",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("claimed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_refund_addresses_invoice_id")),
        sa.PrimaryKeyConstraint("invoice_id", name=op.f("pk_refund_addresses")),
    )
    op.create_table(
        "version_shares",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("payout_id", sa.Text(), nullable=False),
        sa.Column("vout", sa.Integer(), nullable=False),
        sa.Column("arrives_sat", sa.BigInteger(), nullable=False),
        sa.Column("fee_sat", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["payout_id"], ["payouts.id"], name=op.f("fk_version_shares_payout_id")),
        sa.PrimaryKeyConstraint("batch_id", "n", "payout_id", name=op.f("pk_version_shares")),
    )
    with op.batch_alter_table("version_shares", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_version_shares_payout_id"), ["payout_id"], unique=False)

    with op.batch_alter_table("accounts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("settlement", sa.Text(), server_default="direct", nullable=False))

    with op.batch_alter_table("descriptors", schema=None) as batch_op:
        batch_op.add_column(sa.Column("hosted", sa.Boolean(), server_default=sa.false(), nullable=False))

    with op.batch_alter_table("invoices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("refunded", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column("fee_ppm", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("fee_sat", sa.BigInteger(), server_default="0", nullable=False))

    with op.batch_alter_table("restores", schema=None) as batch_op:
        batch_op.add_column(sa.Column("payouts_resumed_at", sa.BigInteger(), nullable=True))

    with op.batch_alter_table("unassigned_addresses", schema=None) as batch_op:
        batch_op.add_column(sa.Column("purpose", sa.Text(), nullable=True))

    _add_up_balances()


def _add_up_balances() -> None:
    """What the whole history so far leaves on each account."""
    op.execute("""
        INSERT INTO balances (account, amount_msat)
        SELECT account, CAST(SUM(msat) AS BIGINT) FROM (
            SELECT credit AS account, amount_msat AS msat FROM transfers
            UNION ALL
            SELECT debit AS account, -amount_msat AS msat FROM transfers
        ) AS sides
        GROUP BY account
        HAVING SUM(msat) <> 0
    """)
