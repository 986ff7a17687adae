import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.trust import derive

# RFC 5869, appendix A, cases 1 to 3.
VECTORS = [
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize(("secret", "salt", "info", "output"), VECTORS)
def test_hkdf_gives_the_vectors_of_the_rfc(secret: str, salt: str, info: str, output: str) -> None:
    made = derive.hkdf_sha256(
        bytes.fromhex(secret), salt=bytes.fromhex(salt), info=bytes.fromhex(info), length=len(output) // 2
    )
    assert made.hex() == output


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80), st.integers(1, 300))
def test_hkdf_is_what_cryptography_makes(secret: bytes, salt: bytes, info: bytes, length: int) -> None:
    other = HKDF(hashes.SHA256(), length, salt, info).derive(secret)
    assert derive.hkdf_sha256(secret, salt=salt, info=info, length=length) == other


@pytest.mark.parametrize("length", [0, -1, 255 * 32 + 1])
def test_hkdf_refuses_lengths_it_cannot_give(length: int) -> None:
    with pytest.raises(ValueError, match="8160"):
        derive.hkdf_sha256(b"x", salt=b"", info=b"", length=length)


def test_what_is_derived_is_fixed_for_ever() -> None:
    # Two versions of exo that disagree here could not meet.
    secret = bytes(range(32))
    assert derive.fingerprint(secret) == "809291624255c530"
    assert (
        derive.beacon_key(secret).hex() == "ec21ce3d549c7aa99f59272acc2dd06ead73b17d294ab82def5eddce41452150"
    )
    assert (
        f"{derive.authority_scalar(secret):064x}"
        == "bb3e71be30137b52cef5397364855e6284f658d1cbd3d9e317c45f9b8a19db1a"
    )


@given(st.binary(min_size=32, max_size=32))
def test_the_authority_scalar_is_a_private_key(secret: bytes) -> None:
    assert 1 <= derive.authority_scalar(secret) < 2**256
    assert len(derive.fingerprint(secret)) == 16
