"""Each finding, from counters and probes of a run that the test makes up, and real ports behind them."""

import asyncio
import errno
import sys
from collections.abc import Callable
from typing import Any

import pytest

from exo_cli import config
from exo_cli.cluster import explain as module
from exo_cli.cluster import ports
from exo_cli.cluster.explain import explain
from exo_cli.cluster.interfaces import Interface
from exo_cli.cluster.lookout import Lookout, LookoutOptions
from exo_cli.cluster.membership import Change
from exo_cli.cluster.radio import Count
from exo_cli.cluster.survey import Unreached
from exo_cli.errors import (
    BadData,
    ExoError,
    NotAuthorised,
    TryAgain,
    Unavailable,
    VersionMismatch,
)
from exo_cli.schemas.findings import Explanation, Finding, Stranger
from exo_cli.schemas.topology import Topology
from exo_cli.trust import keyfile
from exo_cli.trust.keyring import INSECURE, KeyringSource
from exo_cli.wire.reach import Reach
from tests.support.loopback import bound_socket
from tests.support.records import node

LAN = Interface("eth0", "ethernet", 2, (), ("192.0.2.7",), True)
TUNNEL = Interface("tun0", "tunnel", 3, (), ("198.51.100.7",), False)


@pytest.fixture(autouse=True)
def nothing_else_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of this machine is asked unless a test says so."""
    monkeypatch.setattr(ports, "upstream_exo_at", lambda *_, **__: False)
    monkeypatch.setattr(ports, "listener", lambda _port: None)


@pytest.fixture
def a_key() -> None:
    keyfile.create(config.cluster_key_path(), (keyfile.new_secret(),))


def lookout(*, insecure: bool = False, peers: tuple[tuple[str, int], ...] = ()) -> Lookout:
    """One that never ran: its counters are what the test puts there. No socket is opened."""
    options = LookoutOptions(nodes_dir=config.nodes_dir(), topology=config.topology_path(), peers=peers)
    return Lookout(options, KeyringSource(insecure))


def counted(watch: Lookout, interface: Interface, **numbers: Any) -> None:
    watch.station.radio.interfaces.append(interface)
    count = watch.station.radio.counts[interface.name] = Count()
    for name, value in numbers.items():
        known = getattr(count, name)
        known.update(value) if isinstance(value, dict) else setattr(count, name, value)


def findings(watch: Lookout) -> dict[str, Finding]:
    explanation = asyncio.run(explain(watch))
    assert isinstance(explanation, Explanation)
    for finding in explanation.findings:
        assert finding.seen.strip(), finding
        assert finding.about, finding
        assert finding.level == "ok" or finding.means or finding.seen, finding
    found = {finding.id: finding for finding in explanation.findings}
    assert len(found) == len(explanation.findings)
    return found


# ---------------------------------------------------------------------------------------- keys


def test_without_a_key_it_says_what_was_not_looked_at() -> None:
    found = findings(lookout())
    assert set(found) == {"no-cluster-key"}
    assert "exo key new" in (found["no-cluster-key"].do or "")


@pytest.mark.usefixtures("a_key")
def test_with_a_key_and_nothing_counted_nothing_is_claimed() -> None:
    assert findings(lookout()) == {}


def test_the_published_key_is_said() -> None:
    assert findings(lookout(insecure=True))["insecure"].level == "warning"


@pytest.mark.usefixtures("a_key")
def test_a_key_that_cannot_be_read_any_more_is_said() -> None:
    watch = lookout()
    config.cluster_key_path().chmod(0o644)
    watch.source.current()
    found = findings(watch)["key-unreadable"]
    assert found.level == "failure"
    assert str(config.cluster_key_path()) in found.seen


# ---------------------------------------------------------------------------------- interfaces


@pytest.mark.usefixtures("a_key")
@pytest.mark.parametrize(
    ("numbers", "id", "says"),
    [
        ({"sent": 8}, "nothing-comes-back", "8 packets sent, none received"),
        ({"sent": 8, "received": 5, "dropped": {"echo": 5}}, "nobody-answers", "8 packets sent, 5 received"),
        (
            {"sent": 8, "received": 9, "accepted": 6, "dropped": {"signature": 3}},
            "dropped-signature",
            "3 packets dropped (signature)",
        ),
        (
            {"sent": 8, "received": 9, "accepted": 7, "dropped": {"replay": 2}},
            "dropped-replay",
            "2 packets dropped (replay)",
        ),
        (
            {"sent": 8, "received": 9, "accepted": 5, "dropped": {"public": 4}},
            "public-refused",
            "4 packets from public addresses",
        ),
        (
            {"received": 3, "accepted": 3, "send_errors": {"EPERM": 7}},
            "send-eperm",
            "7 packets could not be sent",
        ),
        ({"accepted": 1, "send_errors": {"ENETUNREACH": 1}}, "send-enetunreach", "ENETUNREACH"),
        ({"accepted": 1, "send_errors": {"ECONNREFUSED": 1}}, "send-econnrefused", "ECONNREFUSED"),
        ({"accepted": 1, "send_errors": {"EADDRNOTAVAIL": 1}}, "send-eaddrnotavail", "EADDRNOTAVAIL"),
        ({"accepted": 1, "send_errors": {"EWEIRD": 1}}, "send-eweird", "EWEIRD"),
    ],
)
def test_what_was_counted_on_an_interface(numbers: dict[str, Any], id: str, says: str) -> None:
    watch = lookout()
    counted(watch, LAN, **numbers)
    found = findings(watch)
    assert set(found) == {id}
    assert found[id].about == "eth0"
    assert says in found[id].seen


@pytest.mark.usefixtures("a_key")
def test_an_interface_where_all_is_well_or_nothing_happened_is_not_worth_a_line() -> None:
    watch = lookout()
    counted(watch, LAN, sent=8, received=20, accepted=12, dropped={"echo": 8})
    counted(watch, TUNNEL)
    assert findings(watch) == {}


@pytest.mark.usefixtures("a_key")
def test_where_the_port_cannot_be_shared_no_firewall_is_blamed() -> None:
    watch = lookout()
    watch.station.radio.deaf = OSError(errno.EADDRINUSE, "Address already in use")
    counted(watch, LAN, sent=8)
    found = findings(watch)
    assert set(found) == {"beacon-port-taken"}
    assert "Address already in use" in found["beacon-port-taken"].seen
    assert "52416" in (found["beacon-port-taken"].do or "")


@pytest.mark.usefixtures("a_key")
def test_a_mac_that_keeps_its_terminal_from_the_network_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    watch = lookout()
    counted(watch, LAN, accepted=1, send_errors={"EHOSTUNREACH": 4})
    assert "Local Network" in (findings(watch)["send-ehostunreach"].do or "")


def test_loopback_is_not_held_to_be_a_network() -> None:
    watch = lookout()
    counted(watch, Interface("lo", "loopback", 1, (), ("127.0.0.1",), False), sent=9)
    assert set(findings(watch)) == {"no-cluster-key"}


# ----------------------------------------------------------------------------------- strangers


def stranger(**other: Any) -> Stranger:
    fields: dict[str, Any] = {
        "address": "192.0.2.66",
        "fingerprint": "f" * 16,
        "reason": "cluster",
        "name": "eve",
        "packets": 3,
    }
    return Stranger(**(fields | other))


STRANGERS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "stranger", "another key than this machine"),
    ({"fingerprint": INSECURE.primary.fingerprint}, "stranger", "runs with --insecure"),
    ({"reason": "version"}, "stranger-version", "another version of exo"),
    ({"reason": "signature"}, "stranger-forged", "pretends"),
    ({"name": ""}, "stranger", "another key"),
]


@pytest.mark.usefixtures("a_key")
@pytest.mark.parametrize(("other", "id", "means"), STRANGERS)
def test_strangers_are_named_by_what_they_sent(other: dict[str, Any], id: str, means: str) -> None:
    watch = lookout()
    watch.station._strangers["192.0.2.66", "f", "r"] = stranger(**other)
    found = findings(watch)
    assert set(found) == {id}
    assert found[id].about == "192.0.2.66"
    assert "3 packets" in found[id].seen
    assert means in (found[id].means or "")
    assert ("(eve)" in found[id].seen) == (id == "stranger" and other.get("name") != "")


def test_a_stranger_with_a_key_where_this_run_has_none() -> None:
    for watch in (lookout(), lookout(insecure=True)):
        watch.station._strangers["192.0.2.66", "f", "r"] = stranger()
        found = findings(watch)["stranger"]
        assert "this run does not" in (found.means or "")
        assert "--replace" not in (found.do or "")


# ---------------------------------------------------------------------- heard and not reached, doubles


def heard(watch: Lookout, failure: ExoError) -> None:
    watch.survey.unreached["a" * 32] = Unreached(peer(), failure)


def peer() -> Any:
    class Heard:
        node_id, name, port = "a" * 32, "studio", 52416

        def ips(self) -> list[str]:
            return ["192.0.2.9", "fe80::9%eth0"]

    return Heard()


@pytest.mark.usefixtures("a_key")
@pytest.mark.parametrize(
    ("failure", "means"),
    [
        (Unavailable("it does not answer", hint="Look."), "TCP port 52416 does not"),
        (VersionMismatch("it speaks 9", hint="Look."), "another version"),
        (NotAuthorised("it has another key", hint="Look."), "refuses us"),
        (BadData("it lies", hint="Look."), "not as a node of this version"),
        (TryAgain("it is slow", hint="Look."), None),
    ],
)
def test_who_is_heard_and_not_reached(failure: ExoError, means: str | None) -> None:
    watch = lookout()
    heard(watch, failure)
    found = findings(watch)["heard-not-reached"]
    assert (found.level, found.about, found.do) == ("failure", "studio", "Look.")
    assert failure.message in found.seen
    assert "192.0.2.9:52416, [fe80::9%eth0]:52416" in found.seen
    assert found.means is None if means is None else means in (found.means or "")


@pytest.mark.usefixtures("a_key")
def test_two_nodes_with_one_id() -> None:
    watch = lookout()
    watch.doubles.append(Change("duplicate-id", peer()))
    found = findings(watch)["duplicate-id"]
    assert "a" * 32 in found.seen
    assert "nodes/studio" in (found.do or "")


# -------------------------------------------------------------------------- probes of this moment


def behind(reach: Reach) -> Callable[..., Any]:
    async def diagnose(*_: Any, **__: Any) -> Reach:
        return reach

    return diagnose


WORDS = {
    Reach.OK: ("UDP port 52416 is filtered", "52416"),
    Reach.REFUSED: ("no node runs on that port", "exo serve-shard"),
    Reach.DOWN: ("off, the address is wrong", "ping 192.0.2.5"),
    Reach.PLAINTEXT: ("the port belongs to something else", "--listen"),
    Reach.FOREIGN: ("refuses us", "ssh 192.0.2.5 exo key join"),
}


@pytest.mark.usefixtures("a_key")
@pytest.mark.parametrize("reach", list(Reach))
def test_a_host_that_was_named_and_did_not_answer(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "diagnose", behind(reach))
    watch = lookout(peers=(("192.0.2.5", 52416), ("192.0.2.6", 52416)))
    watch.station.asked_hosts["192.0.2.5:52416"] = 5
    watch.station.answered_hosts["192.0.2.6:52416"] = 1
    found = findings(watch)
    assert set(found) == {f"peer-silent-{reach.value}"}
    (finding,) = found.values()
    assert finding.about == "192.0.2.5:52416"
    assert finding.seen.startswith("5 probes without an answer; ")
    means, do = WORDS[reach]
    assert means in (finding.means or "")
    assert do in (finding.do or "")


@pytest.mark.usefixtures("a_key")
@pytest.mark.parametrize("reach", list(Reach))
def test_a_node_known_from_before(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "diagnose", behind(reach))
    watch = lookout()
    watch.survey.topology = Topology(
        nodes=(
            node("a" * 32, name="studio", state="dead", endpoint="192.0.2.5:52416"),
            node("b" * 32, name="mini", state="ready"),
        )
    )
    found = findings(watch)
    assert set(found) == {f"node-silent-{reach.value}"}
    (finding,) = found.values()
    assert finding.about == "studio (192.0.2.5:52416)"
    assert "not heard now" in finding.seen
    # The command names what can be typed: the address, not the node's name.
    assert WORDS[reach][1] in (finding.do or "")


def test_without_a_key_nobody_is_told_to_hand_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "diagnose", behind(Reach.FOREIGN))
    found = findings(lookout(peers=(("192.0.2.5", 52416),)))["peer-silent-foreign"]
    assert (found.do or "").startswith("there:")


def test_what_really_stands_behind_a_port_is_probed() -> None:
    with bound_socket() as held:
        ip, port = held.getsockname()
        watch = lookout(peers=((ip, port),))
        watch.station.asked_hosts[f"{ip}:{port}"] = 1
        assert "peer-silent-refused" in findings(watch)


def test_the_other_program_of_that_name_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "upstream_exo_at", lambda *_, **__: True)
    assert "different program" in (findings(lookout())["upstream-exo"].means or "")


@pytest.mark.usefixtures("a_key")
def test_who_was_found_is_said_too() -> None:
    watch = lookout()
    watch.survey.described["a" * 32] = node("a" * 32, name="studio")
    watch.survey.described["b" * 32] = node("b" * 32, name="mini", state="suspect")
    found = findings(watch)
    assert set(found) == {"node-found"}
    assert (found["node-found"].level, found["node-found"].about) == ("ok", "studio")
