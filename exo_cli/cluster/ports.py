"""Which TCP port a node takes, and who holds one that is taken. Knows nothing of gRPC."""

import contextlib
import errno
import http.client
import socket
from dataclasses import dataclass

import psutil

from exo_cli.cluster.beacon import PORT
from exo_cli.errors import SystemFailure, UsageProblem

TRIES = 32
API_PORT = 52415


def parse_listen(text: str) -> tuple[str | None, int]:
    """`HOST:PORT`, `:PORT`, `PORT` or `HOST`; no port means the usual one."""
    host, port = text, ""
    closed = True
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        closed = bool(host and bracket) and rest[:1] in ("", ":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    elif text.isdecimal():
        host, port = "", text
    if not closed or (port and not (port.isascii() and port.isdecimal() and int(port) < 65536)):
        raise UsageProblem(
            f"'{text}' is no address to listen on", hint="Say HOST:PORT, for example 0.0.0.0:52416."
        )
    return host or None, int(port) if port else PORT


def parse_peer(text: str) -> tuple[str, int]:
    """`HOST` or `HOST:PORT` as an address: names are looked up here, once."""
    hint = "Say --peer HOST or --peer HOST:PORT."
    try:
        host, port = parse_listen(text)
    except UsageProblem:
        raise UsageProblem(f"'{text}' is no address of a host", hint=hint) from None
    if host is None or port == 0:
        raise UsageProblem(f"'{text}' names no host", hint=hint)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageProblem(
            f"cannot find a host named '{host}'", hint="Check the name, or give the address."
        ) from error
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    ip = str(address[0])
    if family == socket.AF_INET6 and len(address) == 4 and address[3] and "%" not in ip:
        with contextlib.suppress(OSError):
            ip = f"{ip}%{socket.if_indextoname(int(address[3]))}"
    return ip, port


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((host, port))
    except (socket.gaierror, UnicodeError) as error:
        raise UsageProblem(
            f"cannot find an address named '{host}' to listen on",
            hint="Say HOST:PORT with an address of this machine, for example 0.0.0.0:52416.",
        ) from error
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EACCES):
            raise SystemFailure(
                f"cannot listen on {host} port {port}: {error.strerror}",
                hint="Give --listen an address of this machine and a port above 1023.",
            ) from error
        return False
    return True


def choose(hosts: list[str], port: int, *, fixed: bool) -> int:
    """The port if it is free on every host, else (unless it was asked for) the next one that is."""
    last = port if fixed or port == 0 else min(port + TRIES - 1, 65535)
    for candidate in range(port, last + 1):
        if all(is_free(host, candidate) for host in hosts):
            return candidate
    holder = holder_of(port)
    by = f" by {holder}" if holder else ""
    if fixed:
        raise SystemFailure(f"port {port} is taken{by}", hint="Give another --listen, or stop what holds it.")
    raise SystemFailure(
        f"ports {port} to {last} are all taken, the first{by}",
        hint="Give a free one with --listen.",
    )


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens on a TCP port of this machine, as far as we may know."""

    text: str
    is_ours: bool
    """Whether it is one of exo's own verbs."""


def holder_of(port: int) -> str | None:
    """Who listens on a TCP port of this machine, in words."""
    holder = listener(port)
    return holder.text if holder is not None else None


def listener(port: int) -> Listener | None:
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port:
            if connection.pid is None:
                return Listener("another user's program", is_ours=False)
            try:
                process = psutil.Process(connection.pid)
                ours = "exo_cli" in " ".join(process.cmdline()) or "serve-shard" in process.cmdline()
                return Listener(f"{process.name()} (process {connection.pid})", is_ours=ours)
            except psutil.Error:
                return Listener(f"process {connection.pid}", is_ours=False)
    return None


def upstream_exo_at(host: str, port: int = API_PORT, timeout_s: float = 0.5) -> bool:
    """Whether exo-explore/exo, a different program, serves its API there: only it has /node_id."""
    # No proxy and no redirect: whatever listens there must not send us elsewhere.
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/node_id")
        reply = connection.getresponse()
        body = reply.read(256).strip()
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return bool(reply.status == 200 and len(body) > 2 and body[:1] == b'"' == body[-1:])


def has_ipv6() -> bool:
    """Whether this machine can listen on every address of both families at once."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
