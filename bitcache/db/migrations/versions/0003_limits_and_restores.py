"""What damage, limits and restores need to remember."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _restores()
    _indexes()
    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.add_column(sa.Column("damaged_at", sa.BigInteger(), nullable=True))
        batch_op.create_index(batch_op.f("ix_files_damaged_at"), ["damaged_at"], unique=False)

    with op.batch_alter_table("parcels", schema=None) as batch_op:
        batch_op.add_column(sa.Column("damaged", sa.Boolean(), server_default=sa.false(), nullable=False))

    with op.batch_alter_table("descriptors", schema=None) as batch_op:
        batch_op.add_column(sa.Column("gap_limit", sa.Integer(), nullable=True))


def _indexes() -> None:
    """Those by which an old server answers as fast as a new one."""
    for table, column in (("invoices", "status"), ("transfers", "debit"), ("transfers", "credit")):
        op.drop_index(op.f(f"ix_{table}_{column}"), table_name=table)
    op.drop_index(op.f("ix_grants_parcel_id"), table_name="grants")
    for table, first, second in (
        ("grants", "parcel_id", "retained_until"),
        ("invoices", "seller_id", "status"),
        ("invoices", "status", "released_at"),
        ("invoices", "subject", "status"),
        ("transfers", "credit", "created_at"),
        ("transfers", "debit", "created_at"),
    ):
        op.create_index(op.f(f"ix_{table}_{first}_{second}"), table, [first, second], unique=False)


def _restores() -> None:
    op.create_table(
        "master_key_backups",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("backed_up_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_master_key_backups")),
    )
    op.create_table(
        "restores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("restored_at", sa.BigInteger(), nullable=False),
        sa.Column("taken_at", sa.BigInteger(), nullable=False),
        sa.Column("from_height", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_restores")),
    )
    op.create_table(
        "address_searches",
        sa.Column("descriptor_id", sa.Text(), nullable=False),
        sa.Column("from_index", sa.BigInteger(), nullable=False),
        sa.Column("from_height", sa.BigInteger(), nullable=True),
        sa.Column("decided_index", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["descriptor_id"], ["descriptors.id"], name=op.f("fk_address_searches_descriptor_id")
        ),
        sa.PrimaryKeyConstraint("descriptor_id", name=op.f("pk_address_searches")),
    )
    op.create_index(op.f("ix_address_searches_ended_at"), "address_searches", ["ended_at"], unique=False)
    op.create_table(
        "unassigned_addresses",
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("descriptor_id", sa.Text(), nullable=False),
        sa.Column("address_index", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["descriptor_id"], ["descriptors.id"], name=op.f("fk_unassigned_addresses_descriptor_id")
        ),
        sa.PrimaryKeyConstraint("script_pubkey", name=op.f("pk_unassigned_addresses")),
    )
    op.create_index(
        op.f("ix_unassigned_addresses_descriptor_id_address_index"),
        "unassigned_addresses",
        ["descriptor_id", "address_index"],
        unique=False,
    )
    op.create_table(
        "unassigned_outputs",
        sa.Column("txid", sa.Text(), nullable=False),
        sa.Column("vout", sa.BigInteger(), nullable=False),
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("amount_sat", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["script_pubkey"],
            ["unassigned_addresses.script_pubkey"],
            name=op.f("fk_unassigned_outputs_script_pubkey"),
        ),
        sa.PrimaryKeyConstraint("txid", "vout", name=op.f("pk_unassigned_outputs")),
    )
    op.create_index(
        op.f("ix_unassigned_outputs_script_pubkey"), "unassigned_outputs", ["script_pubkey"], unique=False
    )
