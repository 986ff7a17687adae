"""Verbs where a network is needed that must not be the real one: no name server, no interface, a firewall."""

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.support.lab import Host, Lab, run, wait_until

pytestmark = [pytest.mark.net]


def explained(host: Host, *arguments: str) -> dict[str, dict[str, Any]]:
    done = host.exo("discover", "--explain", "--json", "--for", "2s", *arguments)
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert all(finding["seen"] for finding in findings)
    return {finding["id"]: finding for finding in findings}


def with_name_server(host: Host, server: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run exo where /etc/resolv.conf names this server; seen by that process alone."""
    resolver = host.home / "resolv.conf"
    resolver.write_text(f"nameserver {server}\n")
    script = f'mount --bind {resolver} /etc/resolv.conf && exec "$@"'
    return subprocess.run(
        [
            *("ip", "netns", "exec", host.namespace, "sh", "-c", script, "sh"),
            *(sys.executable, "-m", "exo_cli", *arguments),
        ],
        env=host.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_name_server_that_is_away_does_not_hang_anybody(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a = lab.host("a", lan, "10.90.1.10/24")
    # No way there: answered at once.
    unknown = with_name_server(a, "192.0.2.53", "discover", "--peer", "studio.example", "--for", "0.1s")
    assert unknown.returncode in (2, 69), unknown.stderr
    assert "studio.example" in unknown.stderr
    assert unknown.stdout == ""
    # An address on the link where nobody is: packets vanish.
    silent = with_name_server(a, "10.90.1.53", "serve-shard", "--json", "--peer", "studio.example")
    assert silent.returncode in (2, 69), silent.stderr
    error = json.loads(silent.stderr.splitlines()[-1])
    assert "studio.example" in error["message"]
    assert error["exit"] == silent.returncode


def test_a_machine_without_an_interface_is_told_by_every_way_to_look(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a = lab.host("a", lan, "10.91.1.10/24")
    lab.key(a)
    run("ip", "-n", a.namespace, "link", "set", "eth0", "down")
    for way in ([], ["--watch"], ["--explain"], ["--wait", "nodes=1"]):
        done = a.exo("discover", *way)
        assert done.returncode == 69, done.stderr
        assert done.stdout == ""
        assert "no network interface that is up" in done.stderr
        assert "--peer" in done.stderr


def test_deaf_unreachable_and_off_are_told_apart(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.92.1.10/24"), lab.host("b", lan, "10.92.1.11/24")
    lab.key(a, b)
    # What it gets by UDP on eth0 it drops, as behind a firewall; TCP is open.
    deaf = b.serve("--interface", "lo")
    found = explained(a, "--peer", b.address)
    assert "filtered" in found["peer-silent-ok"]["means"]
    assert found["peer-silent-ok"]["about"] == f"{b.address}:52416"
    deaf.terminate()
    # Its beacons arrive and its TCP port does not answer: heard, named, not reached.
    shut = b.serve("--listen", "127.0.0.1:52416")
    told = a.exo("discover", "--for", "2s", "--measure", "never")
    assert told.returncode == 0
    assert "b is heard but not reached" in told.stderr
    found = explained(a)
    assert "TCP port 52416 does not" in found["heard-not-reached"]["means"]
    shut.terminate()
    # The machine is there and nobody runs; then the machine is off.
    assert "peer-silent-refused" in explained(a, "--peer", b.address)
    run("ip", "-n", b.namespace, "link", "set", "eth0", "down")
    found = explained(a, "--peer", b.address)
    assert found["peer-silent-down"]["do"] == f"ping {b.address}"


def test_a_node_on_one_address_of_two_is_found_there_and_measures_itself(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.93.1.10/24"), lab.host("b", lan, "10.93.1.11/24")
    lab.key(a, b)
    a.serve()
    b.serve("--listen", f"{b.address}:52500")
    topology = a.topology("--for", "2s")
    (there,) = [node for node in topology["nodes"] if node["name"] == "b"]
    assert there["endpoint"] == f"{b.address}:52500"
    assert there["loopback_bytes_per_s"] > 1e6
    assert {link["error"] for link in topology["links"]} == {None}


def test_a_very_slow_link_has_a_figure_or_a_reason_in_bounded_time(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.94.1.10/24"), lab.host("b", lan, "10.94.1.11/24")
    lab.key(a, b)
    a.serve()
    b.serve()
    lab.shape(b, "1mbit")
    topology = a.topology("--for", "2s")
    ids = {node["name"]: node["id"] for node in topology["nodes"]}
    slow = {(link["from"], link["to"]): link for link in topology["links"]}[ids["b"], ids["a"]]
    if slow["error"] is None:
        assert slow["bytes_per_s"] < 5 * 125_000
    else:
        assert "too slow" in slow["error"]
    # And the nodes are free for the next one.
    again = a.topology("--for", "1s", "--measure", "always")
    assert all("busy" not in (link["error"] or "") for link in again["links"])


def test_a_node_frozen_in_the_middle_does_not_hold_the_others(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b, c = (lab.host(name, lan, f"10.95.1.{10 + i}/24") for i, name in enumerate("abc"))
    lab.key(a, b, c)
    processes = {host.name: host.serve() for host in (a, b, c)}
    lab.shape(a, "20mbit")
    measuring = a.start("discover", "--wait", "nodes=3", "--json", "-v")
    wait_until(lambda: "measuring 6 links" in measuring.err(), 30, measuring.err)
    processes["c"].popen.send_signal(signal.SIGSTOP)
    assert measuring.popen.wait(120) == 0, measuring.err()
    links = json.loads(measuring.out())["links"]
    ids = {node["name"]: node["id"] for node in json.loads(measuring.out())["nodes"]}
    between = [link for link in links if ids["c"] not in (link["from"], link["to"])]
    assert len(between) == 2
    assert {link["error"] for link in between} == {None}
