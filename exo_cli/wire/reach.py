"""What stands behind an address that gRPC could not connect to: nothing, something else, a stranger.

gRPC answers every refusal with the same word, so this asks again with the standard library's TLS, which
shows a certificate without trusting it. Nothing is sent to the peer but a handshake. Knows nothing of
gRPC, and not whether the service behind the certificate works.
"""

import asyncio
import re
import ssl
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from exo_cli.trust.authority import AUTHORITY_NAME, authority_certificate, certificate_name
from exo_cli.trust.keyring import Keyring

_CLUSTER: Final = re.compile(re.escape(AUTHORITY_NAME) + "([0-9a-f]{16})")
# What OpenSSL calls bytes that are no TLS record at all; everything else it says of a TLS peer.
_NOT_TLS: Final = frozenset(
    (
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "UNEXPECTED_MESSAGE",
    )
)


class Reach(StrEnum):
    """How far one gets."""

    OK = "ok"  # shows a certificate of one of our keys
    DOWN = "down"  # no answer in time, or no way there
    REFUSED = "refused"  # the machine answers; no process listens on the port
    PLAINTEXT = "plaintext"  # a process listens and does not speak TLS
    FOREIGN = "foreign"  # speaks TLS, under an authority that is not ours


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found. `cluster` is the fingerprint that a foreign certificate of exo's claims to be under."""

    reach: Reach
    cluster: str | None = None


async def examine(host: str, port: int, keyring: Keyring, timeout_s: float) -> Examination:
    """Knock at one address, once for each of our keys at most."""
    found = Examination(Reach.DOWN)
    try:
        async with asyncio.timeout(timeout_s):
            for key in keyring.keys:
                # A peer in the middle of a rotation shows the certificate that is asked for by name.
                found = await _knock(host, port, keyring, certificate_name(key.fingerprint))
                if found.reach is not Reach.FOREIGN:
                    break
    except TimeoutError:
        pass
    return found


async def _knock(host: str, port: int, keyring: Keyring, name: str) -> Examination:
    try:
        if host.startswith("unix:"):
            path = f"{host.removeprefix('unix:')}:{port}"
            _, writer = await asyncio.open_unix_connection(path, ssl=_trust_nobody(), server_hostname=name)
        else:
            _, writer = await asyncio.open_connection(host, port, ssl=_trust_nobody(), server_hostname=name)
    except (ConnectionRefusedError, FileNotFoundError):
        return Examination(Reach.REFUSED)
    except ssl.SSLError as error:
        return Examination(Reach.PLAINTEXT if error.reason in _NOT_TLS else Reach.FOREIGN)
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
        return Examination(Reach.PLAINTEXT)
    except OSError:
        return Examination(Reach.DOWN)
    try:
        shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    return _judge(shown or b"", keyring)


def _trust_nobody() -> ssl.SSLContext:
    """Any certificate is looked at. The handshake still proves that the peer holds its private key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _judge(shown: bytes, keyring: Keyring) -> Examination:
    try:
        certificate = x509.load_der_x509_certificate(shown)
        if any(_issued_by(certificate, authority_certificate(key)) for key in keyring.keys):
            return Examination(Reach.OK)
        names = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return Examination(Reach.FOREIGN)
    claimed = _CLUSTER.fullmatch(str(names[0].value)) if names else None
    return Examination(Reach.FOREIGN, claimed[1] if claimed else None)


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
