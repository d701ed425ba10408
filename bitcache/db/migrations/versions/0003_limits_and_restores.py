"""What limits and restores need to remember."""

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    pass
