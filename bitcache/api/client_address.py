"""Who a limit counts for: the address in front of the trusted proxies, IPv6 by its /64. Pure."""

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
UNKNOWN = "unknown"
"""A peer without an address, such as a Unix socket: all of them share one allowance."""
HOPS_MAX = 20


def client_address(peer: str | None, forwarded_for: str | None, proxies: Sequence[Network]) -> str:
    """The client of a connection from `peer` with this X-Forwarded-For.

    The header is believed only as far as trusted proxies wrote it, from the right: anybody can send one.
    """
    hops = [hop.strip() for hop in (forwarded_for or "").split(",")[-HOPS_MAX:] if hop.strip()]
    client = _parsed(peer)
    while client is not None and hops and any(client in proxy for proxy in proxies):
        client = _parsed(hops.pop())
    if client is None:
        return UNKNOWN
    if client.version == 6:
        # Of the number alone: the zone of a link-local address would make a client of each interface's name.
        return str(ipaddress.IPv6Network((int(client), 64), strict=False).network_address)
    return str(client)


def is_proxied(peer: str | None, forwarded_for: str | None, proxies: Sequence[Network]) -> bool:
    """Whether a trusted proxy is at the other end and says that it speaks for somebody."""
    address = _parsed(peer)
    return forwarded_for is not None and address is not None and any(address in proxy for proxy in proxies)


def _parsed(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address((text or "").strip("[]"))
    except ValueError:
        return None
    # One buyer must not have two allowances by coming over both stacks.
    mapped = address.ipv4_mapped if address.version == 6 else None
    return mapped or address
