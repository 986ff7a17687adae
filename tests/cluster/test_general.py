"""The general chapter: versions, the interface that is chosen, who holds the ports."""

import asyncio
import errno
import socket
import sys
from typing import Any

import msgspec
import pytest

from exo_cli.cluster import ports
from exo_cli.cluster.beacon import PORT
from exo_cli.cluster.general import cluster_findings, denied, port_findings
from exo_cli.cluster.ports import Listener
from exo_cli.schemas.findings import Finding
from exo_cli.schemas.topology import Link, Node, Topology
from tests.support import topologies as make


def of(nodes: list[Node], *links: Link) -> dict[str, Finding]:
    return {finding.id: finding for finding in cluster_findings(Topology(nodes=tuple(nodes), links=links))}


def test_nodes_of_different_versions() -> None:
    a, b, c = (make.node(name) for name in "abc")
    assert of([a, b]) == {}
    newer = msgspec.structs.replace(c, version="9.9.9")
    found = of([a, b, newer])["versions-differ"]
    assert "9.9.9 on c" in found.seen
    assert set(found.nodes) == {"a", "b", "c"}
    gone = msgspec.structs.replace(newer, state="dead")
    assert of([a, b, gone]) == {}


@pytest.mark.parametrize(
    ("mine", "theirs", "cable"),
    [
        (("wifi", "ethernet"), ("wifi", "ethernet"), "Ethernet"),
        (("wifi", "ethernet", "thunderbolt"), ("thunderbolt", "ethernet"), "Thunderbolt"),
        (("wifi", "ethernet"), ("wifi", "thunderbolt"), None),
        (("wifi",), ("wifi",), None),
    ],
)
def test_a_link_over_the_radio_between_machines_with_a_cable(
    mine: tuple[Any, ...], theirs: tuple[Any, ...], cable: str | None
) -> None:
    a, b = make.node("a", ports=mine), make.node("b", ports=theirs)
    found = of([a, b], make.link(a, b, 0.03, kind="wifi"), make.link(b, a, 0.03, kind="wifi"))
    assert ("wrong-interface" in found) is (cable is not None)
    if cable:
        assert cable in found["wrong-interface"].seen
        assert "--no-interface" in found["wrong-interface"].then[0]


def test_a_link_over_the_cable_is_well() -> None:
    a, b = (make.node(name, ports=("wifi", "ethernet")) for name in "ab")
    assert of([a, b], make.link(a, b, 0.11, kind="ethernet")) == {}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> dict[int, Listener]:
    """Who listens, as the test says; nothing of this machine is asked."""
    holders: dict[int, Listener] = {}
    monkeypatch.setattr(ports, "upstream_exo_at", lambda *_, **__: False)
    monkeypatch.setattr(ports, "listener", holders.get)
    return holders


def test_ports_that_are_free_or_ours_are_no_finding(nobody: dict[int, Listener]) -> None:
    assert list(port_findings()) == []
    nobody[PORT] = Listener("python (process 7)", is_ours=True)
    assert list(port_findings()) == []


def test_who_holds_a_port_is_named(nobody: dict[int, Listener]) -> None:
    for port in (PORT, ports.API_PORT):
        nobody[port] = Listener("nginx (process 7)", is_ours=False)
    assert [(each.id, each.about) for each in port_findings()] == [
        ("port-taken", "port 52415"),
        ("port-taken", "port 52416"),
    ]
    assert all("nginx (process 7)" in each.seen and each.do for each in port_findings())


def test_the_other_program_of_this_name_is_named(
    nobody: dict[int, Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody[ports.API_PORT] = Listener("exo (process 7)", is_ours=False)
    monkeypatch.setattr(ports, "upstream_exo_at", lambda *_, **__: True)
    (found,) = port_findings()
    assert found.id == "upstream-exo"
    assert "exo-explore/exo" in found.seen


def test_a_listener_of_this_process_is_found_and_is_not_a_node() -> None:
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        found = ports.listener(mine.getsockname()[1])
    assert found is not None
    assert "process" in found.text
    assert not found.is_ours


def test_macos_that_denies_the_local_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(asyncio, "open_connection", refuse)
    monkeypatch.setattr(sys, "platform", "darwin")
    found = asyncio.run(denied("studio", "192.0.2.7", 1))
    assert found is not None
    assert "Local Network" in (found.do or "")
    monkeypatch.setattr(sys, "platform", "linux")
    assert asyncio.run(denied("studio", "192.0.2.7", 1)) is None
