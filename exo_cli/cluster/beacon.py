"""The beacon codec: one fixed-size signed datagram, and the reasons for which one is dropped.

Pure: bytes in, a `Packet` or a `Dropped` out. Knows nothing of sockets, clocks or what was heard
before (`replay` remembers that). Every packet has the same size, so that no answer is larger than
the probe that asked for it.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

from exo_cli.trust.derive import beacon_key
from exo_cli.trust.keyring import ClusterKey, Keyring
from exo_cli.trust.signature import sign, verify

PORT: Final = 52416
MAGIC: Final = b"exo\x01"
VERSION: Final = 1
SIZE: Final = 176
NAME_BYTES: Final = 64
NO_NONCE: Final = bytes(16)

# magic, version, kind, state, role | fingerprint, node id, instance | boot, seq, port | nonce | name
_HEAD: Final = struct.Struct(f"!4sBBBB8s16s8sQQH16s{NAME_BYTES}s")
_MAC_BYTES: Final = 16
_SIGNED: Final = SIZE - _MAC_BYTES
assert _HEAD.size <= _SIGNED

Reason = Literal[
    "size", "magic", "version", "cluster", "signature", "malformed", "replay", "echo", "unasked", "public"
]


class Kind(IntEnum):
    """What a packet wants."""

    BEACON = 1  # I am here
    PROBE = 2  # who is there? sent to everybody on a link
    KNOCK = 3  # the same, sent to one address: to be passed to the other nodes of that machine
    PASSED = 4  # a knock, passed by a node to a sibling
    ANSWER = 5  # I am here, with the nonce of the probe
    LEAVE = 6  # I am going


class State(IntEnum):
    READY = 1
    DRAINING = 2


class Role(IntEnum):
    WATCHER = 0  # probes only; is no node and never answers
    SHARD = 1
    ANNOUNCE = 2


@dataclass(frozen=True, slots=True)
class Packet:
    """Everything that a datagram says. Identity is proven later, over mutual TLS."""

    kind: Kind
    node_id: bytes
    instance: bytes
    boot: int
    seq: int
    port: int
    name: str
    state: State = State.READY
    role: Role = Role.SHARD
    nonce: bytes = NO_NONCE
    fingerprint: str = ""


class Dropped(Exception):
    """Why a datagram is ignored. `fingerprint` and `name` are a stranger's claims, if it made any."""

    def __init__(self, reason: Reason, fingerprint: str = "", name: str = "") -> None:
        super().__init__(reason)
        self.reason: Reason = reason
        self.fingerprint = fingerprint
        self.name = name


def encode(packet: Packet, key: ClusterKey) -> bytes:
    """The packet as a signed datagram of the cluster that holds `key`."""
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        packet.kind,
        packet.state,
        packet.role,
        bytes.fromhex(key.fingerprint),
        packet.node_id,
        packet.instance,
        packet.boot,
        packet.seq,
        packet.port,
        packet.nonce,
        _fit(packet.name),
    )
    signed = head.ljust(_SIGNED, b"\0")
    return signed + sign(beacon_key(key.secret), signed)


def decode(data: bytes, keyring: Keyring) -> Packet:
    """The packet in `data`; raises Dropped. Nothing but the head is read before the signature holds."""
    if len(data) != SIZE:
        raise Dropped("size")
    magic, version, kind, state, role, mark, node_id, instance, boot, seq, port, nonce, name = (
        _HEAD.unpack_from(data)
    )
    if magic != MAGIC:
        raise Dropped("magic")
    fingerprint = mark.hex()
    if version != VERSION:
        raise Dropped("version", fingerprint)
    key = keyring.by_fingerprint(fingerprint)
    if key is None:
        raise Dropped("cluster", fingerprint, _text(name))
    if not verify(beacon_key(key.secret), data[:_SIGNED], data[_SIGNED:]):
        raise Dropped("signature", fingerprint, _text(name))
    try:
        return Packet(
            Kind(kind),
            node_id,
            instance,
            boot,
            seq,
            port,
            _text(name),
            State(state),
            Role(role),
            nonce,
            fingerprint,
        )
    except ValueError:
        raise Dropped("malformed", fingerprint) from None


def _fit(name: str) -> bytes:
    """At most NAME_BYTES of UTF-8, never half a character."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore").encode()


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")
