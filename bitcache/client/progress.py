"""What a long transfer tells whoever watches it."""

from typing import Protocol


class Progress(Protocol):
    """Called from the event loop; must return at once."""

    def start(self, what: str, total_bytes: int) -> None:
        """A transfer of `total_bytes` begins, or another one after it."""

    def advance(self, length_bytes: int) -> None:
        """So many bytes are done; those of an earlier run come in one go at the beginning."""
