"""Addresses that came over the wire: literal ones only, so that nobody's word makes us ask a name server."""

import ipaddress

from exo_cli.errors import BadData
from exo_cli.models.safetensors import shown


def place_of(endpoint: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host = ""
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise BadData(f"{shown(endpoint)} is no address to fetch a model from")
    return host, int(port)
