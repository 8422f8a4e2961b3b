"""Which network addresses a user's URL may lead to. Pure.

The tables are the IANA special-purpose registries as read in 2026, not `ipaddress.is_global`: that one counts NAT64,
6to4 and multicast as global, and changes with the patch release of Python.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiworker.domain.errors import MediaAddressForbidden

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform service answers its guests here
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Everything outside is unassigned, local or a translation: ::1, ::ffff:0:0/96, 64:ff9b::/96, fc00::/7, fe80::/10 ...
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))

# The C library reads such a last label as a number: 2130706433, 0x7f.1, 0177.0.0.1 and 127.1 all mean 127.0.0.1.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

Address = IPv4Address | IPv6Address


def is_public(address: Address) -> bool:
    """True for globally routed unicast that carries no other address inside it."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return (
        address.scope_id is None
        and address in _GLOBAL_UNICAST_V6
        and not any(address in network for network in _NOT_PUBLIC_V6)
    )


def literal_address(host: str) -> Address | None:
    """The address that `host` (lower case, no brackets) spells, None for a name.

    Raises MediaAddressForbidden for an IPv4 address in any spelling but the dotted quad.
    """
    try:
        return ip_address(host)
    except ValueError:
        if _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
            raise MediaAddressForbidden("the host is a number that is not a dotted quad") from None
        return None


def is_listed(host: str, port: int, allowed_hosts: Collection[str]) -> bool:
    """Whether `allowed_hosts` has `host` or `host:port`; an IPv6 address is listed with or without brackets."""
    name = host.lower().removesuffix(".")
    bracketed = f"[{name}]" if ":" in name else name
    return any(entry in allowed_hosts for entry in (name, bracketed, f"{bracketed}:{port}"))
