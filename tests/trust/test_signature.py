import hmac

from hypothesis import given
from hypothesis import strategies as st

from exo_cli.trust.signature import MAC_BYTES, sign, verify


@given(st.binary(min_size=1), st.binary())
def test_a_signature_is_the_start_of_an_hmac(key: bytes, data: bytes) -> None:
    mac = sign(key, data)
    assert len(mac) == MAC_BYTES
    assert hmac.new(key, data, "sha256").digest().startswith(mac)
    assert verify(key, data, mac)


@given(st.binary(min_size=1, max_size=200), st.data())
def test_one_flipped_bit_is_noticed(data: bytes, draw: st.DataObject) -> None:
    key = b"k" * 32
    mac = sign(key, data)
    bit = draw.draw(st.integers(0, (len(data) + MAC_BYTES) * 8 - 1))
    whole = bytearray(data + mac)
    whole[bit // 8] ^= 1 << (bit % 8)
    assert not verify(key, bytes(whole[: len(data)]), bytes(whole[len(data) :]))


@given(st.binary(max_size=40).filter(lambda mac: len(mac) != MAC_BYTES))
def test_a_mac_of_another_length_is_refused(mac: bytes) -> None:
    assert not verify(b"key", b"data", mac)
    assert not verify(b"key", b"data", sign(b"key", b"data")[:-1])
    assert not verify(b"other key", b"data", sign(b"key", b"data"))
