import asyncio
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exo_cli import config
from exo_cli.errors import ExoError, NotAuthorised, Unavailable
from exo_cli.trust import changes, keyfile
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import INSECURE, ClusterKey, Keyring, KeyringSource
from exo_cli.wire.channels import (
    CHANNEL_OPTIONS,
    MAX_MESSAGE_BYTES,
    SERVER_OPTIONS,
    Reach,
    diagnose,
    dial,
    open_channel,
    server_credentials,
)
from tests.support.loopback import bound_socket, echo, serving, stream, with_option

HERE = "127.0.0.1"
BOUND_S = 5.0
OLD, NEW, ELSE = (ClusterKey(bytes([n]) * 32) for n in (1, 2, 3))


def ring(*keys: ClusterKey) -> Keyring:
    return Keyring("cluster", keys)


def source_of(*keys: ClusterKey) -> KeyringSource:
    """A source whose key file holds these keys."""
    keyfile.replace(config.cluster_key_path(), [key.secret for key in keys])
    return KeyringSource()


async def dialled(port: int, keyring: Keyring, host: str = HERE, fingerprint: str | None = None) -> None:
    """Dial, make one call, hang up."""
    channel = await dial(host, port, keyring, fingerprint=fingerprint, timeout_s=BOUND_S)
    try:
        assert await echo(channel) == b"hello"
    finally:
        await channel.close()


async def refused(port: int, keyring: Keyring, host: str = HERE, timeout_s: float = BOUND_S) -> ExoError:
    with pytest.raises(ExoError) as caught:
        await dial(host, port, keyring, timeout_s=timeout_s)
    assert caught.value.hint
    return caught.value


@asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Something on a port that is no node."""

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handled, HERE, 0, ssl=tls)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        yield port


# -- who is let in ---------------------------------------------------------------------------------


def test_members_meet() -> None:
    async def main() -> None:
        async with serving(source_of(OLD)) as port:
            await dialled(port, ring(OLD))
            await dialled(port, ring(OLD), host="localhost")
            assert await diagnose(HERE, port, ring(OLD), BOUND_S) is Reach.OK
            channel = open_channel(f"{HERE}:{port}", ring(OLD))
            assert await echo(channel, b"x" * 1000) == b"x" * 1000
            await channel.close()

    asyncio.run(main())


def test_a_socket_of_the_file_system_is_the_same_path() -> None:
    async def main(directory: str) -> None:
        where = f"unix:{directory}/a socket"
        assert await diagnose(where, 7, ring(OLD), BOUND_S) is Reach.REFUSED
        assert "nothing listens on" in (await refused(7, ring(OLD), host=where)).message
        async with serving(source_of(OLD), address=f"{where}:7"):
            await dialled(7, ring(OLD), host=where)
            assert await diagnose(where, 7, ring(OLD), BOUND_S) is Reach.OK
            assert await diagnose(where, 7, ring(ELSE), BOUND_S) is Reach.FOREIGN
            assert isinstance(await refused(7, ring(ELSE), host=where), NotAuthorised)

    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        asyncio.run(main(directory))


def test_a_local_key_is_the_same_path() -> None:
    async def main() -> None:
        source = KeyringSource()
        assert source.current().kind == "local"
        async with serving(source) as port:
            await dialled(port, source.current())

    asyncio.run(main())


def test_a_node_of_another_cluster_is_named() -> None:
    async def main() -> None:
        async with serving(source_of(OLD)) as port:
            error = await refused(port, ring(ELSE))
            assert isinstance(error, NotAuthorised)
            assert (error.exit, OLD.fingerprint in error.message, ELSE.fingerprint in error.message) == (
                77,
                True,
                True,
            )
            assert await diagnose(HERE, port, ring(ELSE, NEW), BOUND_S) is Reach.FOREIGN
            error = await refused(port, Keyring("local", (ELSE,)))
            assert "has no cluster key" in error.message
            assert "exo key join" in str(error.hint)
            error = await refused(port, INSECURE)
            assert "runs with --insecure" in error.message
        async with serving(KeyringSource(insecure=True)) as port:
            await dialled(port, INSECURE)
            error = await refused(port, ring(OLD))
            assert (error.exit, "--insecure" in error.message) == (77, True)

    asyncio.run(main())


async def _attempt(port: int, credentials: grpc.ChannelCredentials | None, name: str) -> grpc.StatusCode:
    """What a client with these credentials gets from its first call."""
    target = f"{HERE}:{port}"
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", name)]
    channel = (
        grpc.aio.secure_channel(target, credentials, options)
        if credentials
        else grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
    )
    async with channel:
        try:
            await echo(channel)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def test_foreign_certificateless_and_plaintext_clients_are_refused() -> None:
    ours, theirs = issue_leaf(OLD), issue_leaf(ELSE)
    # Each trusts the server's authority and asks for its name: only what the client shows is wrong.
    clients = {
        "member": grpc.ssl_channel_credentials(ours.authority_pem, ours.key_pem, ours.certificate_pem),
        "foreign": grpc.ssl_channel_credentials(ours.authority_pem, theirs.key_pem, theirs.certificate_pem),
        "forged": grpc.ssl_channel_credentials(ours.authority_pem, *_forged_leaf(ours.certificate_pem)),
        "no certificate": grpc.ssl_channel_credentials(ours.authority_pem),
        "plaintext": None,
    }

    async def main() -> None:
        async with serving(source_of(OLD)) as port:
            answers = {
                who: await _attempt(port, credentials, ours.name) for who, credentials in clients.items()
            }
            await dialled(port, ring(OLD))
        ok, no = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
        assert answers == {"member": ok, "foreign": no, "forged": no, "no certificate": no, "plaintext": no}

    asyncio.run(main())


def _forged_leaf(genuine_pem: bytes) -> tuple[bytes, bytes]:
    """A leaf that says everything a member's does, signed by somebody else."""
    genuine = x509.load_pem_x509_certificate(genuine_pem)
    private = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(genuine.subject)
        .issuer_name(genuine.issuer)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(genuine.not_valid_before_utc)
        .not_valid_after(genuine.not_valid_after_utc)
    )
    for extension in genuine.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return _pem(private), builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_client_does_not_speak_to_a_server_that_only_claims_to_be_of_its_cluster() -> None:
    key_pem, certificate_pem = _forged_leaf(issue_leaf(OLD).certificate_pem)

    async def main() -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        port = server.add_secure_port(f"{HERE}:0", grpc.ssl_server_credentials([(key_pem, certificate_pem)]))
        await server.start()
        error = await refused(port, ring(OLD))
        assert error.exit == 77
        await server.stop(None)

    asyncio.run(main())


# -- 69 or 77 --------------------------------------------------------------------------------------


def test_nothing_listens() -> None:
    with bound_socket() as held:
        port: int = held.getsockname()[1]
        error = asyncio.run(refused(port, ring(NEW, OLD)))
        assert isinstance(error, Unavailable)
        assert (error.exit, error.message) == (69, f"nothing listens on {HERE}:{port}")
        assert asyncio.run(diagnose(HERE, port, ring(OLD), BOUND_S)) is Reach.REFUSED


def test_a_frozen_process_is_down() -> None:
    with bound_socket() as frozen:
        frozen.listen()  # the kernel accepts; nobody reads
        port: int = frozen.getsockname()[1]
        error = asyncio.run(refused(port, ring(NEW, OLD), timeout_s=0.3))
        assert (error.exit, "does not answer within 0.3 s" in error.message) == (69, True)
        assert asyncio.run(diagnose(HERE, port, ring(OLD), 0.2)) is Reach.DOWN


def test_a_name_nobody_has() -> None:
    error = asyncio.run(refused(52416, ring(OLD), host="no-such-name.invalid"))
    assert (error.exit, "no-such-name.invalid" in error.message) == (69, True)


async def _banner(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
    await writer.drain()


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    await writer.drain()


async def _hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    return


@pytest.mark.parametrize("handle", [_banner, _http, _hang_up])
def test_another_program_in_plain_text(handle: Any) -> None:
    async def main() -> None:
        async with listening(handle) as port:
            error = await refused(port, ring(NEW, OLD))
            assert (error.exit, "does not speak TLS" in error.message) == (77, True)
            assert await diagnose(HERE, port, ring(OLD), BOUND_S) is Reach.PLAINTEXT

    asyncio.run(main())


def test_a_grpc_server_in_plain_text() -> None:
    async def main() -> None:
        async with serving(None) as port:
            assert (await refused(port, ring(OLD))).exit == 77
            assert await diagnose(HERE, port, ring(OLD), BOUND_S) is Reach.PLAINTEXT

    asyncio.run(main())


def test_a_web_server_with_tls(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    # A name made to look like ours inside a longer one: nothing of it may be shown.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"exo cluster {OLD.fingerprint}\x1b[31m")])
    day = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(day).not_valid_after(day + timedelta(days=1))
    (tmp_path / "key").write_bytes(_pem(private))
    (tmp_path / "cert").write_bytes(
        builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    async def main() -> None:
        async with listening(_http, context) as port:
            error = await refused(port, ring(OLD))
            assert (error.exit, "no exo cluster made" in error.message) == (77, True)
            assert "\x1b" not in error.message
            assert await diagnose(HERE, port, ring(OLD), BOUND_S) is Reach.FOREIGN

    asyncio.run(main())


# -- two keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "client"),
    [
        ((OLD,), (NEW, OLD)),
        ((NEW, OLD), (OLD,)),
        ((NEW, OLD), (NEW,)),
        ((NEW,), (NEW, OLD)),
        ((NEW, OLD), (OLD, NEW)),
        ((NEW, OLD), (ELSE, OLD)),
    ],
)
def test_one_key_in_common_is_enough(server: tuple[ClusterKey, ...], client: tuple[ClusterKey, ...]) -> None:
    async def main() -> None:
        async with serving(source_of(*server)) as port:
            await dialled(port, ring(*client))
            for key in (*server, ELSE):
                await dialled(port, ring(*client), fingerprint=key.fingerprint)
            assert await diagnose(HERE, port, ring(*client), BOUND_S) is Reach.OK

    asyncio.run(main())


def test_a_known_fingerprint_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from exo_cli.wire import channels

    tried: list[str | None] = []

    def recording(target: str, keyring: Keyring, key: ClusterKey | None = None) -> grpc.aio.Channel:
        tried.append(key.fingerprint if key else None)
        return open_channel(target, keyring, key)

    monkeypatch.setattr(channels, "open_channel", recording)

    async def main() -> None:
        async with serving(source_of(OLD)) as port:
            await dialled(port, ring(NEW, OLD), fingerprint=OLD.fingerprint)
            assert tried == [OLD.fingerprint]
            await dialled(port, ring(NEW, OLD))
            assert tried[1:] == [NEW.fingerprint, OLD.fingerprint]

    asyncio.run(main())


def test_a_member_met_at_a_bad_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from exo_cli.wire import channels

    real = channels._first_ready
    attempts: list[str] = []

    async def fails_once(target: str, *rest: Any) -> grpc.aio.Channel | None:
        attempts.append(target)
        return None if len(attempts) == 1 else await real(target, *rest)

    monkeypatch.setattr(channels, "_first_ready", fails_once)

    async def main() -> None:
        async with serving(source_of(OLD)) as port:
            await dialled(port, ring(OLD))
            assert len(attempts) == 2

    asyncio.run(main())


def test_a_running_server_follows_its_key_file() -> None:
    path = config.cluster_key_path()

    async def main() -> None:
        async with serving(source_of(OLD)) as port:
            held = await dial(HERE, port, ring(OLD), timeout_s=BOUND_S)
            call = stream(held)
            changes.rotate(path)
            new = ClusterKey(keyfile.read(path)[0])
            await dialled(port, ring(OLD))
            await dialled(port, ring(new))
            changes.finish(path)
            await dialled(port, ring(new))
            assert (await refused(port, ring(OLD))).exit == 77
            # A call that runs is left alone.
            await call.write(b"still here")
            assert await call.read() == b"still here"
            # A bad edit changes nothing for those who come now.
            path.write_text("half an edit")
            await dialled(port, ring(new))
            call.cancel()
            await held.close()

    asyncio.run(main())


def test_a_dropped_key_loses_its_open_connections_for_new_calls() -> None:
    path = config.cluster_key_path()
    options = with_option(SERVER_OPTIONS, "grpc.max_connection_age_ms", 100)

    async def main() -> None:
        async with serving(source_of(OLD), options=options) as port:
            held = await dial(HERE, port, ring(OLD), timeout_s=BOUND_S)
            await echo(held)
            changes.rotate(path)
            changes.finish(path)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(_for_ever(held), BOUND_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await held.close()

    asyncio.run(main())
    assert dict(SERVER_OPTIONS)["grpc.max_connection_age_ms"] == 600_000


async def _for_ever(channel: grpc.aio.Channel) -> None:
    while True:
        await echo(channel)


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["8.8.8.8", "2001:db8::1", "::ffff:8.8.8.8"])
def test_insecure_refuses_public_addresses(host: str) -> None:
    async def main() -> None:
        error = await refused(52416, INSECURE, host=host)
        assert (error.exit, "private" in error.message) == (77, True)

    asyncio.run(main())
    target = f"[{host}]:52416" if ":" in host else f"{host}:52416"
    for bad in (target, "example.org:52416"):
        with pytest.raises(NotAuthorised):
            open_channel(bad, INSECURE)


def test_ipv6() -> None:
    if not socket.has_ipv6 or not _can_bind("::1"):
        pytest.skip("this machine has no IPv6 on loopback")

    async def main() -> None:
        async with serving(source_of(OLD), address="[::1]:0") as port:
            await dialled(port, ring(OLD), host="::1")
            channel = open_channel(f"[::1]:{port}", ring(OLD))
            assert await echo(channel) == b"hello"
            await channel.close()

    asyncio.run(main())


def _can_bind(host: str) -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _link_local() -> str | None:
    """A link-local address of this machine with its interface."""
    import psutil

    for interface, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family is socket.AF_INET6 and address.address.startswith("fe80:"):
                return f"{address.address.partition('%')[0]}%{interface}"
    return None


def test_ipv6_link_local_with_its_interface() -> None:
    host = _link_local()
    if host is None:
        pytest.skip("this machine has no link-local address")

    async def main() -> None:
        async with serving(source_of(OLD), address="[::]:0") as port:
            await dialled(port, ring(OLD), host=host)
            assert await diagnose(host, port, ring(OLD), BOUND_S) is Reach.OK
            channel = open_channel(f"[{host}]:{port}", ring(OLD))
            assert await echo(channel) == b"hello"
            await channel.close()

    asyncio.run(main())


def test_unix_sockets(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/s"

    async def main() -> None:
        async with serving(KeyringSource(insecure=True), address=target):
            channel = open_channel(target, INSECURE)
            assert await echo(channel) == b"hello"
            await channel.close()

    asyncio.run(main())


# -- settings --------------------------------------------------------------------------------------


def test_messages_are_bounded_on_both_sides() -> None:
    async def main() -> None:
        leaf = issue_leaf(OLD)
        credentials = grpc.ssl_channel_credentials(leaf.authority_pem, leaf.key_pem, leaf.certificate_pem)
        options = with_option(CHANNEL_OPTIONS, "grpc.max_send_message_length", -1)
        options.append(("grpc.ssl_target_name_override", leaf.name))

        def loose_channel(port: int) -> grpc.aio.Channel:
            return grpc.aio.secure_channel(f"{HERE}:{port}", credentials, options)

        async with serving(source_of(OLD)) as port:
            channel = open_channel(f"{HERE}:{port}", ring(OLD))
            assert len(await echo(channel, b"x" * MAX_MESSAGE_BYTES)) == MAX_MESSAGE_BYTES
            assert "CLIENT: Sent message larger" in await _too_large(channel)
            await channel.close()
            # A client that does not bound what it sends is stopped by the server.
            async with loose_channel(port) as loose:
                assert "SERVER: Received message larger" in await _too_large(loose)
        wide = with_option(SERVER_OPTIONS, "grpc.max_receive_message_length", -1)
        async with serving(source_of(OLD), options=wide) as port, loose_channel(port) as loose:
            assert "SERVER: Sent message larger" in await _too_large(loose)
        # And a client bounds what a loose server sends.
        wide = with_option(wide, "grpc.max_send_message_length", -1)
        async with serving(source_of(OLD), options=wide) as port, loose_channel(port) as loose:
            assert "CLIENT: Received message larger" in await _too_large(loose)

    asyncio.run(main())


async def _too_large(channel: grpc.aio.Channel) -> str:
    """Who refuses a message over the bound, and at which point."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echo(channel, b"x" * (MAX_MESSAGE_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value.details() or ""


def test_the_keepalive_settings_fit_each_other() -> None:
    server, channel = dict(SERVER_OPTIONS), dict(CHANNEL_OPTIONS)
    for side in (server, channel):
        assert side["grpc.keepalive_time_ms"] == 10_000
        assert side["grpc.keepalive_timeout_ms"] == side["grpc.http2.ping_timeout_ms"] == 2_000
        assert side["grpc.keepalive_permit_without_calls"] == 1
        assert side["grpc.http2.max_pings_without_data"] == 0
    assert server["grpc.http2.min_ping_interval_without_data_ms"] <= channel["grpc.keepalive_time_ms"]


def test_a_second_server_on_the_port_fails() -> None:
    async def main() -> None:
        source = source_of(OLD)
        async with serving(source) as port:
            second = grpc.aio.server(options=SERVER_OPTIONS)
            with pytest.raises(RuntimeError):
                second.add_secure_port(f"{HERE}:{port}", server_credentials(source))
            await second.stop(None)

    asyncio.run(main())


FAIL_TO_DIAL = """
import asyncio, sys
from exo_cli.errors import ExoError
from exo_cli.trust.keyring import load_keyring
from exo_cli.wire.channels import dial
try:
    asyncio.run(dial("127.0.0.1", int(sys.argv[1]), load_keyring(), timeout_s=5))
except ExoError as error:
    sys.exit(error.exit)
"""


@pytest.mark.process
def test_grpc_is_silent_and_obeys_no_proxy(tmp_path: Path) -> None:
    async def run(port: int, **more: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", FAIL_TO_DIAL, str(port)]
        return await asyncio.to_thread(
            subprocess.run, command, env=os.environ | more, capture_output=True, check=False
        )

    async def main() -> None:
        async with serving(source_of(OLD)) as port:
            stranger = await run(port, XDG_CONFIG_HOME=str(tmp_path / "else"))
            assert (stranger.returncode, stranger.stdout, stranger.stderr) == (77, b"", b"")
            # The dialled channel is dropped unclosed, on purpose: the exit code is what counts here.
            proxied = await run(port, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
            assert proxied.returncode == 0

    asyncio.run(main())
