"""What can go wrong while playing with a bitcoin world."""

from __future__ import annotations


class RegtestError(Exception):
    """Any failure of the regtest world."""


class BitcoindMissing(RegtestError):
    """No usable bitcoind was found, and none could be fetched. The message says how to get one."""


class NodeFailed(RegtestError):
    """A node did not start, or ended by itself. `log_tail` holds its last words."""

    def __init__(self, reason: str, log_tail: str) -> None:
        super().__init__(f"{reason}\n{log_tail}".rstrip())
        self.log_tail = log_tail


class NodeUnreachable(RegtestError):
    """The node does not answer: it is stopped, or not up yet."""


class RpcRefused(RegtestError):
    """The node answered a call with an error."""

    def __init__(self, method: str, code: int, reason: str) -> None:
        super().__init__(f"{method}: {reason} (code {code})")
        self.method = method
        self.code = code
        self.reason = reason


class WaitedTooLong(RegtestError):
    """A condition did not come true before its deadline."""
