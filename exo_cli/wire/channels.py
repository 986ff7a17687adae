"""Mutually authenticated gRPC: a server's credentials, a client's channels, and why there is none.

Both ends show a leaf under the cluster's authority and accept no other. A process in the middle of a
rotation holds two keys: as a server it shows the leaf whose name the client asks for, as a client it
takes the identity that the peer knows. Knows nothing of the services that run over a channel.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

import grpc
import grpc.aio

from exo_cli.errors import ExoError, NotAuthorised, Unavailable
from exo_cli.trust.authority import Leaf, issue_leaf
from exo_cli.trust.keyring import INSECURE, ClusterKey, Keyring, KeyringSource
from exo_cli.trust.private import refuse_public
from exo_cli.wire import frames
from exo_cli.wire.reach import Examination, Reach, examine

__all__ = [
    "CHANNEL_OPTIONS",
    "MAX_MESSAGE_BYTES",
    "SERVER_OPTIONS",
    "Reach",
    "diagnose",
    "dial",
    "leaf_channel",
    "leaf_server_credentials",
    "open_channel",
    "server_credentials",
]

# A frame, and the envelope around it.
MAX_MESSAGE_BYTES: Final = frames.MAX_MESSAGE_BYTES + 64 * 1024

Options = tuple[tuple[str, int], ...]

_BOTH: Final[Options] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # Without it a frozen peer is noticed after 60 s, whatever the keepalive says.
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER_OPTIONS: Final[Options] = (
    *_BOTH,
    # Not above the clients' keepalive time, or their pings end healthy connections.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", 256),
    # A second server on the port must fail, not share it.
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # New calls need a new handshake now and then, so that a key dropped by a rotation stops working
    # for them; calls that run are left alone.
    ("grpc.max_connection_age_ms", 600_000),
)

CHANNEL_OPTIONS: Final[Options] = (
    *_BOTH,
    # A channel is one connection of its own, with its own back-off.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Peers are reached as they announced themselves: not through a proxy meant for the web.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
)


def server_credentials(source: KeyringSource) -> grpc.ServerCredentials:
    """Credentials that follow the keyring: each new connection is met with the keys of that moment."""
    shown = source.current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        ring = source.current()
        if ring == shown:
            return None
        shown = ring
        return _configuration(ring)

    # The stubs do not know that None means "as before".
    return grpc.dynamic_ssl_server_credentials(_configuration(shown), fetch, True)  # type: ignore[arg-type]


def leaf_server_credentials(leaves: Sequence[Leaf]) -> grpc.ServerCredentials:
    """Credentials of a process that holds leaves and no key: those it has, as long as it lives."""
    pairs = [(leaf.key_pem, leaf.certificate_pem) for leaf in leaves]
    roots = b"".join(leaf.authority_pem for leaf in leaves)
    return grpc.ssl_server_credentials(pairs, roots, require_client_auth=True)


def leaf_channel(target: str, leaf: Leaf) -> grpc.aio.Channel:
    """A channel of a process that holds a leaf and no key, to a literal address."""
    credentials = grpc.ssl_channel_credentials(leaf.authority_pem, leaf.key_pem, leaf.certificate_pem)
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", leaf.name))
    return grpc.aio.secure_channel(_resolved(target, None), credentials, options)


def open_channel(target: str, keyring: Keyring, key: ClusterKey | None = None) -> grpc.aio.Channel:
    """A channel to `ip:port`, `[ip6]:port` or `unix:path`; it connects with its first call."""
    leaf = issue_leaf(key or keyring.primary)
    credentials = grpc.ssl_channel_credentials(leaf.authority_pem, leaf.key_pem, leaf.certificate_pem)
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", leaf.name))
    return grpc.aio.secure_channel(_resolved(target, keyring), credentials, options)


async def dial(
    host: str, port: int, keyring: Keyring, *, fingerprint: str | None = None, timeout_s: float
) -> grpc.aio.Channel:
    """A channel that is ready; `host` may be `unix:/path`. `fingerprint`: which of our keys the peer has.

    Raises Unavailable where nobody answers, NotAuthorised where somebody does who is not of our cluster.
    """
    clock = asyncio.get_running_loop()
    deadline = clock.time() + timeout_s
    where = _endpoint(host, port)
    identities = sorted(keyring.keys, key=lambda key: key.fingerprint != fingerprint)
    found = Examination(Reach.DOWN)
    try:
        async with asyncio.timeout_at(deadline):
            addresses = await _addresses(host)
            while True:
                for index, address in enumerate(addresses):
                    # One address that swallows packets must not use up the time of the others.
                    share = clock.time() + (deadline - clock.time()) / (len(addresses) - index)
                    channel = await _first_ready(_endpoint(address, port), keyring, identities, share)
                    if channel is not None:
                        return channel
                found = await _examine_all(addresses, port, keyring, deadline - clock.time())
                if found.reach is not Reach.OK:
                    break
                # One of us, met while its keys or its socket were changing: once more, while there is time.
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    raise _no_channel(where, found, keyring, timeout_s)


async def diagnose(host: str, port: int, keyring: Keyring, timeout_s: float) -> Reach:
    """What stands behind an address."""
    return (await examine(host, port, keyring, timeout_s)).reach


def _configuration(ring: Keyring) -> grpc.ServerCertificateConfiguration:
    leaves = [issue_leaf(key) for key in ring.keys]
    pairs = [(leaf.key_pem, leaf.certificate_pem) for leaf in leaves]
    return grpc.ssl_server_certificate_configuration(pairs, b"".join(leaf.authority_pem for leaf in leaves))


def _resolved(target: str, keyring: Keyring | None) -> str:
    """The target in gRPC's own spelling: an address with its family named, so that nothing is looked up."""
    if target.startswith("unix:"):
        return target
    host, _, port = target.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if keyring is not None and keyring.kind == "insecure":
        refuse_public(host)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return f"dns:///{target}"
    return f"ipv4:{host}:{port}" if version == 4 else f"ipv6:{quote(f'[{host}]', safe=':')}:{port}"


def _endpoint(host: str, port: int) -> str:
    # A socket of the file system has a number in its name where others have a port.
    return f"[{host}]:{port}" if ":" in host and not host.startswith("unix:") else f"{host}:{port}"


async def _addresses(host: str) -> list[str]:
    """The literal addresses of `host`, the preferred one first."""
    if host.startswith("unix:"):
        return [host]
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(
            f"no address is known for the name {host!r}", hint="Give its IP address, or mend the name."
        ) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def _first_ready(
    target: str, keyring: Keyring, identities: Sequence[ClusterKey], deadline: float
) -> grpc.aio.Channel | None:
    """A ready channel under the first identity that the peer accepts, before `deadline`."""
    for key in identities:
        channel = open_channel(target, keyring, key)
        ready = False
        try:
            async with asyncio.timeout_at(deadline):
                ready = await _becomes_ready(channel)
        except TimeoutError:
            return None
        finally:
            if not ready:
                await channel.close()
        if ready:
            return channel
    return None


async def _becomes_ready(channel: grpc.aio.Channel) -> bool:
    """Whether the first attempt to connect succeeds. Ready means that the peer accepted our leaf, too."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            return False
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return True


async def _examine_all(
    addresses: Sequence[str], port: int, keyring: Keyring, timeout_s: float
) -> Examination:
    """The most telling of what is found at the addresses of one host."""
    found = await asyncio.gather(*(examine(address, port, keyring, timeout_s) for address in addresses))
    telling = (Reach.OK, Reach.FOREIGN, Reach.PLAINTEXT, Reach.REFUSED, Reach.DOWN)
    return min(found, key=lambda examination: telling.index(examination.reach))


def _no_channel(where: str, found: Examination, keyring: Keyring, timeout_s: float) -> ExoError:
    """The sentence for what was found instead of a connection."""
    match found.reach:
        case Reach.REFUSED:
            return Unavailable(f"nothing listens on {where}", hint="Start it there: exo serve-shard")
        case Reach.DOWN:
            return Unavailable(
                f"{where} does not answer within {timeout_s:g} s",
                hint="Is that machine on, and exo serve-shard running? exo discover --explain says more.",
            )
        case Reach.OK:
            return Unavailable(
                f"{where} is of this cluster but accepted no connection within {timeout_s:g} s",
                hint="It is busy or about to stop; try again.",
            )
        case Reach.PLAINTEXT:
            return NotAuthorised(
                f"{where} does not speak TLS: it is another program, not a node",
                hint="Nodes listen on port 52416 unless --listen says otherwise; exo discover lists them.",
            )
        case Reach.FOREIGN:
            return _foreign(where, found.cluster, keyring)


def _foreign(where: str, cluster: str | None, keyring: Keyring) -> NotAuthorised:
    carry = "On a machine of its cluster: exo key export | ssh THIS-MACHINE exo key join -"
    if cluster is None:
        return NotAuthorised(
            f"{where} shows a certificate that no exo cluster made: it is another program, not a node",
            hint="Nodes listen on port 52416 unless --listen says otherwise; exo discover lists them.",
        )
    if cluster == INSECURE.primary.fingerprint:
        return NotAuthorised(
            f"{where} runs with --insecure and this process does not",
            hint="Give that node the cluster's key and start it without --insecure.",
        )
    if keyring.kind == "insecure":
        return NotAuthorised(
            f"{where} has the key {cluster} and this process runs with --insecure",
            hint="Leave out --insecure.",
        )
    if keyring.kind == "local":
        return NotAuthorised(f"{where} has the key {cluster} and this machine has no cluster key", hint=carry)
    return NotAuthorised(
        f"{where} has the key {cluster} and this machine has {' and '.join(keyring.fingerprints)}", hint=carry
    )
