"""Ports: what a person may write, which one is free, and who holds the one that is not."""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from exo_cli.cluster import ports
from exo_cli.cluster.ports import (
    choose,
    has_ipv6,
    holder_of,
    is_free,
    parse_listen,
    parse_peer,
    upstream_exo_at,
)
from exo_cli.errors import SystemFailure, UsageProblem


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0.0.0.0:52416", ("0.0.0.0", 52416)),
        (":8000", (None, 8000)),
        ("8000", (None, 8000)),
        ("0", (None, 0)),
        (":0", (None, 0)),
        ("studio.local", ("studio.local", 52416)),
        ("studio.local:1", ("studio.local", 1)),
        ("studio:", ("studio", 52416)),
        ("192.168.1.7", ("192.168.1.7", 52416)),
        ("::", ("::", 52416)),
        ("fe80::1%en5", ("fe80::1%en5", 52416)),
        ("[::]:9", ("::", 9)),
        ("[::1]", ("::1", 52416)),
        ("[fe80::1%en5]:65535", ("fe80::1%en5", 65535)),
    ],
)
def test_what_one_may_listen_on(text: str, meant: tuple[str | None, int]) -> None:
    assert parse_listen(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        "65536",
        ":65536",
        "host:-1",
        "host:http",
        "host: 80",
        "[::1",
        "[::1]9",
        "[::1]x",
        "[]:9",
        "host:²",
        "host:٣",
        "٣",
        "[::1]:99999",
    ],
)
def test_what_one_may_not(text: str) -> None:
    with pytest.raises(UsageProblem, match="is no address to listen on") as caught:
        parse_listen(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", ("127.0.0.1", 52416)),
        ("127.0.0.1:9", ("127.0.0.1", 9)),
        ("[::1]:9", ("::1", 9)),
        ("::1", ("::1", 52416)),
        ("localhost:9", ("127.0.0.1", 9)),
    ],
)
def test_peers_become_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_peer(text) == address


@pytest.mark.parametrize("text", ["", "52416", ":52416", "127.0.0.1:0"])
def test_a_peer_needs_a_host_and_a_port(text: str) -> None:
    with pytest.raises(UsageProblem, match="names no host"):
        parse_peer(text)


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_NONAME, "no"), UnicodeEncodeError("idna", "x", 0, 1, "no")]
)
def test_a_peer_that_is_not_found_is_a_usage_problem(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(UsageProblem, match="cannot find a host named 'nowhere'"):
        parse_peer("nowhere:9")


def test_a_name_with_both_families_is_reached_over_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::7", 9, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 9)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: found)
    assert parse_peer("both:9") == ("10.0.0.7", 9)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: found[:1])
    assert parse_peer("both:9") == ("fd00::7", 9)
    scoped = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::7", 9, 0, socket.if_nametoindex("lo")))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: [scoped])
    assert parse_peer("both:9") == ("fe80::7%lo", 9)


# -- taken ports -------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens; the one after it is free, most likely."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


def test_a_taken_port_is_not_free(taken: int) -> None:
    assert not is_free("127.0.0.1", taken)
    assert not is_free("0.0.0.0", taken)
    if has_ipv6():
        assert not is_free("::", taken)


def test_a_taken_port_that_was_asked_for_names_its_holder(taken: int) -> None:
    with pytest.raises(
        SystemFailure, match=f"port {taken} is taken by .* \\(process {os.getpid()}\\)"
    ) as caught:
        choose(["127.0.0.1"], taken, fixed=True)
    assert caught.value.hint == "Give another --listen, or stop what holds it."
    assert psutil.Process().name() in str(holder_of(taken))


def test_the_next_free_port_is_taken(taken: int) -> None:
    assert taken < choose(["127.0.0.1"], taken, fixed=False) < taken + ports.TRIES
    assert choose(["127.0.0.1"], 0, fixed=True) == 0


def test_a_port_must_be_free_on_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = {("a", 7), ("b", 8)}
    monkeypatch.setattr(ports, "is_free", lambda host, port: (host, port) not in busy)
    assert choose(["a", "b"], 7, fixed=False) == 9
    assert choose(["a", "b"], 9, fixed=True) == 9


@pytest.mark.parametrize(("port", "last"), [(52416, 52447), (65530, 65535), (65535, 65535)])
def test_ports_end(monkeypatch: pytest.MonkeyPatch, port: int, last: int) -> None:
    tried: list[int] = []

    def taken(host: str, port: int) -> bool:
        tried.append(port)
        return False

    monkeypatch.setattr(ports, "is_free", taken)
    monkeypatch.setattr(ports, "holder_of", lambda port: None)
    with pytest.raises(SystemFailure, match=f"ports {port} to {last} are all taken, the first$"):
        choose(["127.0.0.1"], port, fixed=False)
    assert tried == list(range(port, last + 1))


def test_an_address_of_somebody_else_is_refused() -> None:
    with pytest.raises(SystemFailure, match=r"cannot listen on 203\.0\.113\.5 port 0"):
        is_free("203.0.113.5", 0)


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_NONAME, "no"), UnicodeEncodeError("idna", "x", 0, 1, "no")]
)
def test_a_host_without_an_address_is_not_a_taken_port(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Nameless(socket.socket):
        def bind(self, address: object) -> None:
            raise error

    monkeypatch.setattr(socket, "socket", Nameless)
    with pytest.raises(UsageProblem, match="cannot find an address named 'nowhere' to listen on"):
        choose(["nowhere"], 7, fixed=True)


def test_a_port_for_root_only_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(SystemFailure, match="port 80: Permission denied"):
        choose(["0.0.0.0"], 80, fixed=False)


def test_a_free_port_has_no_holder() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert holder_of(bound.getsockname()[1]) is None


def test_a_holder_that_may_not_be_seen_is_not_invented(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    def denied(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    assert holder_of(taken) is None


# -- the other program of this name ------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def web_server(answer: Answer) -> Iterator[int]:
    """A real HTTP server on loopback that answers as told."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(status: int, body: bytes, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("status", "body", "is_exo"),
    [
        (200, b'"12D3KooWabcdef"', True),
        (200, b'"12D3KooWabcdef"\n', True),
        (404, b'"12D3KooWabcdef"', False),
        (200, b"<html></html>", False),
        (200, b'{"detail":"no"}', False),
        (200, b'""', False),
        (200, b'"', False),
        (200, b"", False),
        (500, b'"x"', False),
    ],
)
def test_the_other_exo_is_known_by_its_node_id(status: int, body: bytes, is_exo: bool) -> None:
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        says(status, body)(request)

    with web_server(answer) as port:
        assert upstream_exo_at("127.0.0.1", port, 10) == is_exo
    assert asked == ["/node_id"]


def test_a_redirect_is_not_followed() -> None:
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        if request.path == "/node_id":
            says(302, b"", Location="/elsewhere")(request)
        else:
            says(200, b'"x"')(request)

    with web_server(answer) as port:
        assert not upstream_exo_at("127.0.0.1", port, 10)
    assert asked == ["/node_id"]


@pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 99])
def test_a_port_that_speaks_something_else_is_not_exo(reply: bytes) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        assert not upstream_exo_at("127.0.0.1", server.getsockname()[1], 10)
        thread.join()


def test_a_closed_or_silent_port_is_not_exo(taken: int) -> None:
    assert not upstream_exo_at("127.0.0.1", taken, 0.05)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not upstream_exo_at("127.0.0.1", bound.getsockname()[1], 10)
