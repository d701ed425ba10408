"""What one process of the server does."""

from enum import StrEnum


class Role(StrEnum):
    ALL = "all"
    WEB = "web"
    """Answers requests; another process follows the node."""
    WATCHER = "watcher"
    """Follows the node; exactly one per database."""
