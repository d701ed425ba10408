"""What blocks did to channels: run in the watcher's transaction, whenever blocks came or went."""

from payments.ports import Transaction


class ChannelFollower:
    """`follow` is called with every block that came or went; from `depth` on, money is no more in doubt."""

    def __init__(self, *, depth: int) -> None:
        self._depth = depth

    async def follow(self, tx: Transaction, *, now: int) -> None:
        """Bring states and books of all channels in line with the chain."""
