import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from exo_cli.trust import keyfile
from exo_cli.trust.authority import authority_certificate, certificate_name, issue_leaf
from exo_cli.trust.keyring import ClusterKey

KEY = ClusterKey(bytes(range(32)))
OTHER = ClusterKey(b"canary-secret-of-thirty-2-bytes!")

PRINT_BOTH = """
import sys
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import load_keyring
leaf = issue_leaf(load_keyring().primary)
sys.stdout.buffer.write(leaf.authority_pem + b"|" + leaf.certificate_pem)
"""


@pytest.mark.process
def test_two_processes_derive_the_same_authority_and_leaves_of_their_own(tmp_path: Path) -> None:
    seen = []
    for name in ("a", "b"):
        keyfile.create(tmp_path / name / "exo" / "cluster.key", [KEY.secret])
        environment = os.environ | {
            "XDG_CONFIG_HOME": str(tmp_path / name),
            "PYTHONHASHSEED": "0" if name == "a" else "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", PRINT_BOTH], env=environment, capture_output=True, check=True
        )
        assert done.stderr == b""
        seen.append(done.stdout.split(b"|"))
    assert seen[0][0] == seen[1][0] == issue_leaf(KEY).authority_pem
    leaves = {seen[0][1], seen[1][1], issue_leaf(KEY).certificate_pem}
    assert len(leaves) == 3
    for leaf in leaves:
        x509.load_pem_x509_certificate(leaf).verify_directly_issued_by(authority_certificate(KEY))


def test_the_authority_names_the_cluster() -> None:
    certificate = authority_certificate(KEY)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == [f"exo cluster {KEY.fingerprint}"]
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_a_leaf_serves_both_ends_under_the_name_of_its_cluster() -> None:
    leaf = x509.load_pem_x509_certificate(issue_leaf(KEY).certificate_pem)
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert (
        names.get_values_for_type(x509.DNSName)
        == [certificate_name(KEY.fingerprint)]
        == [issue_leaf(KEY).name]
    )
    usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    private = serialization.load_pem_private_key(issue_leaf(KEY).key_pem, None)
    assert private.public_key() == leaf.public_key()


@pytest.mark.parametrize("year", [1970, 2026, 2049, 2050, 9999])
def test_a_leaf_is_good_whatever_the_clock_says(year: int) -> None:
    leaf = x509.load_pem_x509_certificate(issue_leaf(KEY).certificate_pem)
    day = datetime(year, 1, 2, tzinfo=UTC)
    assert leaf.not_valid_before_utc <= day <= leaf.not_valid_after_utc
    if year < 9999:
        verifier = (
            PolicyBuilder().store(Store([authority_certificate(KEY)])).time(day).build_client_verifier()
        )
        assert verifier.verify(leaf, []).subjects


def test_a_leaf_of_one_cluster_is_not_of_another() -> None:
    leaf = x509.load_pem_x509_certificate(issue_leaf(OTHER).certificate_pem)
    with pytest.raises((ValueError, InvalidSignature)):
        leaf.verify_directly_issued_by(authority_certificate(KEY))


def test_a_process_makes_one_leaf_a_key() -> None:
    assert issue_leaf(KEY) is issue_leaf(ClusterKey(bytes(range(32))))
    assert issue_leaf(KEY) is not issue_leaf(OTHER)


def test_no_private_key_is_shown() -> None:
    leaf = issue_leaf(OTHER)
    assert "PRIVATE" in leaf.key_pem.decode()
    assert repr(leaf) == f"Leaf(name='{leaf.name}')"
    assert b"canary" not in leaf.certificate_pem + leaf.authority_pem + leaf.key_pem
