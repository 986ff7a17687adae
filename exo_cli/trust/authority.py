"""The cluster's certificate authority, derived from the key, and leaves issued by it.

Every process that holds the key makes the same authority, byte for byte, so no certificate is ever
handed around; each process makes its own leaf and throws it away when it ends. Holding a leaf proves
that its maker holds the key, and nothing else. Knows nothing of sockets or gRPC.
"""

import functools
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from exo_cli.trust.derive import authority_scalar
from exo_cli.trust.keyring import ClusterKey

AUTHORITY_NAME: Final = "exo cluster "
"""The authority's common name, before the fingerprint."""

# Membership ends with a rotation, not with a date: machines whose clocks are wrong must still meet.
# The second is what RFC 5280 writes for "no expiry".
_NOT_BEFORE: Final = datetime(1970, 1, 1)
_NOT_AFTER: Final = datetime(9999, 12, 31, 23, 59, 59)


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a process shows to its peers, as PEM, with the authority that it trusts."""

    name: str
    key_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    authority_pem: bytes = field(repr=False)


def certificate_name(fingerprint: str) -> str:
    """The name in every leaf of a cluster; a client asks for it, a server picks its leaf by it."""
    return f"{fingerprint}.exo.internal"


@functools.lru_cache(maxsize=8)
def authority_certificate(key: ClusterKey) -> x509.Certificate:
    """The authority of `key`: the same bytes in every process."""
    private = _authority_key(key)
    public = private.public_key()
    name = _named(AUTHORITY_NAME + key.fingerprint)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(private, hashes.SHA256(), ecdsa_deterministic=True)


@functools.lru_cache(maxsize=8)
def issue_leaf(key: ClusterKey) -> Leaf:
    """This process's leaf under `key`; its private key is made here and lives only here."""
    name = certificate_name(key.fingerprint)
    authority = authority_certificate(key)
    signer = _authority_key(key)
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(authority.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return Leaf(
        name=name,
        key_pem=private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        authority_pem=authority.public_bytes(serialization.Encoding.PEM),
    )


def _authority_key(key: ClusterKey) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(authority_scalar(key.secret), ec.SECP256R1())


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
