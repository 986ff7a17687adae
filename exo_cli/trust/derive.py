"""What follows from a cluster's secret, each thing under a label of its own: HKDF-SHA256 (RFC 5869).

Written on the standard library so that beacons and `exo key` start without the certificate machinery.
Knows nothing of files, certificates or packets.
"""

import hmac
from typing import Final

SECRET_BYTES: Final = 32

_SALT: Final = b"exo cluster key 1"
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def fingerprint(secret: bytes) -> str:
    """The cluster's public name: 16 hexadecimal characters that tell nothing of the secret."""
    return _labelled(secret, b"fingerprint", 8).hex()


def beacon_key(secret: bytes) -> bytes:
    """What beacons are signed with."""
    return _labelled(secret, b"beacon hmac-sha256", 32)


def authority_scalar(secret: bytes) -> int:
    """The private key of the cluster's certificate authority on P-256."""
    # 16 bytes more than the order has: the bias of the modulus stays under 2**-128.
    wide = int.from_bytes(_labelled(secret, b"authority p256", 48), "big")
    return wide % (_P256_ORDER - 1) + 1


def hkdf_sha256(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869: extract, then expand to `length` bytes."""
    if not 0 < length <= 255 * 32:
        raise ValueError("HKDF-SHA256 gives 1 to 8160 bytes")
    pseudorandom = hmac.digest(salt or bytes(32), secret, "sha256")
    output = block = b""
    counter = 0
    while len(output) < length:
        counter += 1
        block = hmac.digest(pseudorandom, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def _labelled(secret: bytes, label: bytes, length: int) -> bytes:
    return hkdf_sha256(secret, salt=_SALT, info=label, length=length)
