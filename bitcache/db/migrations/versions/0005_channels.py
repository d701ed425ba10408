"""Payment channels, and offers sold per chunk."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:

    op.create_table(
        "channel_closes",
        sa.Column("close_id", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("txid", sa.Text(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_height", sa.BigInteger(), nullable=False),
        sa.Column("feerate_sat_kvb", sa.BigInteger(), nullable=False),
        sa.Column("fee_sat", sa.BigInteger(), nullable=False),
        sa.Column("payee_script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("payee_vout", sa.Integer(), nullable=True),
        sa.Column("payee_sat", sa.BigInteger(), nullable=False),
        sa.Column("child_txid", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("close_id", "n", name=op.f("pk_channel_closes")),
        sa.UniqueConstraint("txid", name=op.f("uq_channel_closes_txid")),
    )
    op.create_table(
        "channel_contracts",
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("payer_key", sa.LargeBinary(), nullable=False),
        sa.Column("payee_key", sa.LargeBinary(), nullable=False),
        sa.Column("expiry_height", sa.BigInteger(), nullable=False),
        sa.Column("change_script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("close_fee_sat", sa.BigInteger(), nullable=False),
        sa.Column("announced_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("script_pubkey", name=op.f("pk_channel_contracts")),
        sa.UniqueConstraint("seq", name=op.f("uq_channel_contracts_seq")),
    )
    with op.batch_alter_table("channel_contracts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_channel_contracts_announced_at"), ["announced_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_channel_contracts_payer_key"), ["payer_key"], unique=False)

    op.create_table(
        "channel_host",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("held_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_channel_host")),
    )
    op.create_table(
        "channels",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("txid", sa.Text(), nullable=False),
        sa.Column("vout", sa.BigInteger(), nullable=False),
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("capacity_sat", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=True),
        sa.Column("accepted_sat", sa.BigInteger(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=True),
        sa.Column("spent_msat", sa.BigInteger(), nullable=False),
        sa.Column("close_reason", sa.Text(), nullable=True),
        sa.Column("close_asked_at", sa.BigInteger(), nullable=True),
        sa.Column("agreed_paid_sat", sa.BigInteger(), nullable=True),
        sa.Column("agreed_fee_sat", sa.BigInteger(), nullable=True),
        sa.Column("agreed_signature", sa.LargeBinary(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["script_pubkey"], ["channel_contracts.script_pubkey"], name=op.f("fk_channels_script_pubkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_channels")),
        sa.UniqueConstraint("txid", "vout", name=op.f("uq_channels_txid_vout")),
    )
    with op.batch_alter_table("channels", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_channels_script_pubkey"), ["script_pubkey"], unique=False)
        batch_op.create_index(batch_op.f("ix_channels_closed_at"), ["closed_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_channels_state"), ["state"], unique=False)

    op.create_table(
        "channel_close_members",
        sa.Column("close_id", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("channel_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("paid_sat", sa.BigInteger(), nullable=False),
        sa.Column("agreed", sa.Boolean(), nullable=False),
        sa.Column("received_sat", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel_id"], ["channels.id"], name=op.f("fk_channel_close_members_channel_id")
        ),
        sa.PrimaryKeyConstraint("close_id", "n", "channel_id", name=op.f("pk_channel_close_members")),
    )
    with op.batch_alter_table("channel_close_members", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_channel_close_members_channel_id"), ["channel_id"], unique=False)

    op.create_table(
        "channel_pages",
        sa.Column("channel_id", sa.Text(), nullable=False),
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("page", sa.BigInteger(), nullable=False),
        sa.Column("paid", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_channel_pages_channel_id")),
        sa.PrimaryKeyConstraint("channel_id", "item", "page", name=op.f("pk_channel_pages")),
    )
    op.create_table(
        "channel_sales",
        sa.Column("channel_id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("seller_id", sa.Text(), nullable=False),
        sa.Column("fee_ppm", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("spent_msat", sa.BigInteger(), nullable=False),
        sa.Column("booked_msat", sa.BigInteger(), nullable=False),
        sa.Column("bookings", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_channel_sales_channel_id")),
        sa.PrimaryKeyConstraint("channel_id", "subject", name=op.f("pk_channel_sales")),
    )
    with op.batch_alter_table("channel_sales", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_channel_sales_seller_id_last_at"), ["seller_id", "last_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_channel_sales_subject"), ["subject"], unique=False)

    with op.batch_alter_table("offers", schema=None) as batch_op:
        batch_op.add_column(sa.Column("sold_whole", sa.Boolean(), server_default=sa.true(), nullable=False))
        batch_op.add_column(sa.Column("metered_msat", sa.BigInteger(), nullable=True))
