"""Which addresses --insecure may use: those that no packet from the Internet can reach directly.

Literal addresses only. Names are resolved by whoever has a resolver, and each answer is asked about.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from exo_cli.errors import NotAuthorised

_PRIVATE: Final = tuple(
    ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",  # carrier-grade NAT; VPN meshes number their members from it
        "::1/128",
        "fe80::/10",
        "fc00::/7",
    )
)


def is_private(ip: str) -> bool:
    """Whether `ip` is loopback, link-local or private; False for anything that is not an address."""
    try:
        # The zone (fe80::1%eth0) names an interface here and is no part of the address.
        address: IPv4Address | IPv6Address = ip_address(ip.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _PRIVATE)


def refuse_public(ip: str) -> None:
    """Raise NotAuthorised unless `ip` is a private address."""
    if not is_private(ip):
        raise NotAuthorised(
            f"--insecure does not speak to {ip}: it is not a private address",
            hint="Make a cluster key and leave out --insecure: exo key new",
        )
