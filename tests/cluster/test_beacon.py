"""The codec: what is encoded is decoded, and everything else is dropped for a stated reason."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo_cli.cluster import beacon
from exo_cli.cluster.beacon import Dropped, Kind, Packet, Reason, Role, State, decode, encode
from exo_cli.trust.derive import beacon_key
from exo_cli.trust.keyring import Keyring
from exo_cli.trust.signature import sign
from tests.support.beacons import FOREIGN, KEY, OTHER, PLAIN, RING

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
PACKETS = st.builds(
    Packet,
    kind=st.sampled_from(Kind),
    node_id=st.binary(min_size=16, max_size=16),
    instance=st.binary(min_size=8, max_size=8),
    boot=st.integers(0, 2**64 - 1),
    seq=st.integers(0, 2**64 - 1),
    port=st.integers(0, 65535),
    name=NAMES,
    state=st.sampled_from(State),
    role=st.sampled_from(Role),
    nonce=st.binary(min_size=16, max_size=16),
)


def reason_of(data: bytes, ring: Keyring = RING) -> Reason:
    with pytest.raises(Dropped) as caught:
        decode(data, ring)
    return caught.value.reason


def signed(data: bytes) -> bytes:
    """`data` with a signature that holds."""
    return data[:-16] + sign(beacon_key(KEY.secret), data[:-16])


@settings(deadline=None)
@given(PACKETS)
def test_what_is_encoded_is_decoded(packet: Packet) -> None:
    data = encode(packet, KEY)
    assert len(data) == beacon.SIZE
    again = decode(data, RING)
    assert again.fingerprint == KEY.fingerprint
    assert packet.name.startswith(again.name)
    assert replace(again, fingerprint="", name="") == replace(packet, name="")


@settings(deadline=None)
@given(NAMES)
def test_a_long_name_loses_whole_characters(name: str) -> None:
    kept = decode(encode(replace(PLAIN, name=name), KEY), RING).name
    assert name.startswith(kept)
    if kept != name:
        assert len((kept + name[len(kept)]).encode()) > beacon.NAME_BYTES


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a" * 64, "a" * 64),
        ("a" * 65, "a" * 64),
        ("é" * 33, "é" * 32),
        ("a" + "é" * 33, "a" + "é" * 31),
        ("a" * 62 + "日本", "a" * 62),
        ("a" * 61 + "日本", "a" * 61 + "日"),
        ("🐚" * 20, "🐚" * 16),
        ("", ""),
    ],
)
def test_names_end_at_a_character(name: str, kept: str) -> None:
    assert decode(encode(replace(PLAIN, name=name), KEY), RING).name == kept


def test_every_kind_has_the_same_size() -> None:
    sizes = {
        len(encode(replace(PLAIN, kind=kind, name=name, role=role), KEY))
        for kind in Kind
        for name in ("", "a" * 64)
        for role in Role
    }
    assert sizes == {beacon.SIZE}


@settings(deadline=None)
@given(PACKETS, st.integers(0, beacon.SIZE * 8 - 1))
def test_one_flipped_bit_anywhere_is_enough(packet: Packet, bit: int) -> None:
    data = bytearray(encode(packet, KEY))
    data[bit // 8] ^= 1 << bit % 8
    where = bit // 8
    expected = "magic" if where < 4 else "version" if where == 4 else "signature"
    assert reason_of(bytes(data)) == ("cluster" if 8 <= where < 16 else expected)


@settings(deadline=None)
@given(st.binary(max_size=3 * beacon.SIZE) | st.binary(min_size=beacon.SIZE, max_size=beacon.SIZE))
def test_anything_from_the_network_is_dropped_and_nothing_else(data: bytes) -> None:
    assert reason_of(data) in get_args(Reason)


@settings(deadline=None)
@given(st.binary(min_size=beacon.SIZE - 13, max_size=beacon.SIZE - 13))
def test_what_follows_a_good_head_is_dropped_as_well(rest: bytes) -> None:
    head = encode(PLAIN, KEY)[:5]
    assert reason_of(head + rest[:3] + bytes.fromhex(KEY.fingerprint) + rest[3:]) == "signature"


@pytest.mark.parametrize("size", [0, 1, 4, 137, 138, 160, beacon.SIZE - 1, beacon.SIZE + 1, 2048, 65507])
def test_another_size_is_dropped(size: int) -> None:
    assert reason_of((encode(PLAIN, KEY) * 400)[:size]) == "size"


def test_another_protocol_is_dropped() -> None:
    data = encode(PLAIN, KEY)
    assert reason_of(b"EXO\x01" + data[4:]) == "magic"


def test_another_version_is_told_from_another_cluster() -> None:
    data = encode(PLAIN, KEY)
    with pytest.raises(Dropped) as caught:
        decode(data[:4] + b"\x02" + data[5:], RING)
    assert caught.value.reason == "version"
    assert caught.value.fingerprint == KEY.fingerprint


def test_a_stranger_is_known_by_what_it_claims() -> None:
    with pytest.raises(Dropped) as caught:
        decode(encode(PLAIN, FOREIGN), RING)
    assert caught.value.reason == "cluster"
    assert caught.value.fingerprint == FOREIGN.fingerprint
    assert caught.value.name == "studio"


def test_our_fingerprint_with_their_signature_is_forged() -> None:
    theirs = encode(PLAIN, FOREIGN)
    forged = theirs[:8] + bytes.fromhex(KEY.fingerprint) + theirs[16:]
    with pytest.raises(Dropped) as caught:
        decode(forged, RING)
    assert (caught.value.reason, caught.value.name) == ("signature", "studio")


@pytest.mark.parametrize(
    ("at", "value"), [(5, 0), (5, 7), (5, 255), (6, 0), (6, 3), (7, 3), (7, 255)], ids=str
)
def test_a_member_of_the_future_is_dropped_as_malformed(at: int, value: int) -> None:
    data = bytearray(encode(PLAIN, KEY))
    data[at] = value
    assert reason_of(signed(bytes(data))) == "malformed"


def test_a_name_that_is_no_text_is_shown_with_marks() -> None:
    data = bytearray(encode(replace(PLAIN, name="abc"), KEY))
    data[data.index(b"abc")] = 0xFF
    assert decode(signed(bytes(data)), RING).name == "\N{REPLACEMENT CHARACTER}bc"


def test_during_a_rotation_both_keys_are_heard_and_told_apart() -> None:
    both = Keyring("cluster", (OTHER, KEY))
    assert decode(encode(PLAIN, KEY), both).fingerprint == KEY.fingerprint
    assert decode(encode(PLAIN, OTHER), both).fingerprint == OTHER.fingerprint
    assert reason_of(encode(PLAIN, OTHER)) == "cluster"
    assert reason_of(encode(PLAIN, FOREIGN), both) == "cluster"
