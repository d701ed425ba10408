"""What a server with payment channels has beside the others, put together in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitcache.channel_desk import ChannelDesk
from bitcache.metered import MeteredSales
from payments.channel_registry import ChannelRegistry

if TYPE_CHECKING:
    from payments.channel_opening import ChannelOpening


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """None of it exists where `[channels] enabled` is false."""

    registry: ChannelRegistry
    opening: ChannelOpening
    desk: ChannelDesk
    sales: MeteredSales
