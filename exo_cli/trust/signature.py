"""The mark on a beacon that only members of the cluster can make. Knows nothing of what is signed."""

import hmac
from typing import Final

MAC_BYTES: Final = 16


def sign(beacon_key: bytes, data: bytes) -> bytes:
    """HMAC-SHA256 over `data`, its first 16 bytes."""
    return hmac.digest(beacon_key, data, "sha256")[:MAC_BYTES]


def verify(beacon_key: bytes, data: bytes, mac: bytes) -> bool:
    """Whether `mac` is the mark of `data`; the time taken does not depend on where they differ."""
    return hmac.compare_digest(sign(beacon_key, data), mac)
