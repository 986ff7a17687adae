"""Show 2 and 5 of the discovery work: real processes in real network namespaces."""

import json
import os
import signal

import pytest

from tests.support.lab import Host, Lab, wait_until

pytestmark = [pytest.mark.net]


def names(topology: dict[str, object]) -> dict[str, str]:
    nodes = topology["nodes"]
    assert isinstance(nodes, list)
    return {node["name"]: node["state"] for node in nodes}


def test_a_cluster_is_found_a_stranger_is_kept_out_and_the_dead_are_reported(lab: Lab) -> None:
    lan, far = lab.bridge("lan"), lab.bridge("far")
    lab.router("rt", {lan: "10.77.1.1/24", far: "10.77.2.1/24"})
    a, b, c = (
        lab.host(name, lan, f"10.77.1.{10 + i}/24", gateway="10.77.1.1") for i, name in enumerate("abc")
    )
    d = lab.host("d", far, "10.77.2.10/24", gateway="10.77.2.1")
    stranger = lab.host("s", lan, "10.77.1.66/24")
    lab.key(a, b, c, d)
    foreign = lab.key(stranger)
    processes = {host.name: host.serve() for host in (a, b, c, d)}
    thief = stranger.serve()
    second = b.start("serve-shard", "--json")
    wait_until(lambda: '"ready"' in second.out(), 30, second.err)

    # Found without configuration: three on the bridge, two of them nodes of one machine.
    topology = a.topology("--for", "3s", "--measure", "never")
    found = names(topology)
    assert {"a", "b", "c"} <= found.keys()
    assert "d" not in found
    assert "s" not in found
    two = [node for node in topology["nodes"] if node["endpoint"].startswith(b.address)]
    assert sorted(node["endpoint"] for node in two) == [f"{b.address}:52416", f"{b.address}:52417"]
    assert len({node["id"] for node in topology["nodes"]}) == 4

    # A unicast probe reaches one process; through it both nodes of that machine are found.
    alone = b.home / "alone.json"
    near = d.topology("--peer", b.address, "--for", "3s", "--measure", "never", "--topology", str(alone))
    assert sorted(node["endpoint"] for node in near["nodes"] if node["name"] != "d") == [
        f"{b.address}:52416",
        f"{b.address}:52417",
    ]

    # Another subnet: named by --peer, found, measured in both directions.
    topology = a.topology("--peer", d.address, "--for", "2s")
    found = names(topology)
    assert found["d"] == "ready"
    ids = {node["name"]: node["id"] for node in topology["nodes"]}
    measured = {(link["from"], link["to"]): link for link in topology["links"]}
    assert len(measured) == len(ids) * (len(ids) - 1)
    for pair, link in measured.items():
        assert link["error"] is None, (pair, link)
        assert link["bytes_per_s"] > 0
        assert 0 < link["rtt_us_p50"] <= link["rtt_us_p99"]

    # The stranger: listed by --explain, named with its own fingerprint, and powerless.
    explained = json.loads(a.exo("discover", "--explain", "--json", "--for", "2s").stdout)
    assert {each["fingerprint"] for each in explained["strangers"]} == {foreign}
    assert any(finding["id"] == "stranger" for finding in explained["findings"])
    mine = stranger.topology("--peer", a.address, "--for", "2s")
    assert set(names(mine)) == {"s"}
    seen = json.loads(
        stranger.exo("discover", "--explain", "--json", "--peer", a.address, "--for", "2s").stdout
    )
    assert any(finding["id"] == "peer-silent-foreign" for finding in seen["findings"])
    assert thief.popen.poll() is None

    # Killed: suspected, then dead, within ten seconds, in a file that nobody here asked for.
    watched = a.home / ".local/state/exo/topology.json"
    assert names(json.loads(watched.read_text()))["c"] == "ready"
    processes["c"].kill()
    wait_until(lambda: names(json.loads(watched.read_text()))["c"] == "dead", 30)

    # Left in order: gone at once.
    assert processes["b"].terminate() == 0
    wait_until(lambda: "b" not in names(json.loads(watched.read_text())), 10)


def test_a_frozen_node_is_suspected_and_refutes_it(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.78.1.10/24"), lab.host("b", lan, "10.78.1.11/24")
    lab.key(a, b)
    frozen = b.serve()
    watcher = a.start("discover", "--watch", "--json", "--measure", "never")
    wait_until(lambda: '"joined"' in watcher.out(), 15, watcher.err)
    os.kill(frozen.popen.pid, signal.SIGSTOP)
    wait_until(lambda: '"suspect"' in watcher.out(), 25, watcher.err)
    os.kill(frozen.popen.pid, signal.SIGCONT)
    wait_until(lambda: '"refuted"' in watcher.out() or '"dead"' in watcher.out(), 25, watcher.err)
    changes = [event["change"] for event in events(watcher.out()) if event["type"] == "node"]
    assert changes[:3] == ["joined", "suspect", "refuted"]
    assert watcher.terminate() == 0


def events(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


def test_ids_survive_a_restart_and_a_copied_id_is_reported(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b, c = (lab.host(name, lan, f"10.79.1.{10 + i}/24") for i, name in enumerate("abc"))
    lab.key(a, b, c)
    first = b.serve()
    before = identity(b)
    assert first.terminate() == 0
    b.serve()
    assert identity(b)["id"] == before["id"]
    assert identity(b)["boot"] == before["boot"] + 1

    copied = c.home / ".local/state/exo/nodes/c"
    copied.mkdir(parents=True)
    (copied / "node.json").write_text(json.dumps({**identity(b), "name": "c"}))
    c.serve()
    told = a.exo("discover", "--for", "3s", "--measure", "never")
    assert told.returncode == 0
    assert f"two nodes have the id {before['id']}" in told.stderr


def identity(host: Host) -> dict[str, int]:
    value: dict[str, int] = json.loads(
        (host.home / f".local/state/exo/nodes/{host.name}/node.json").read_text()
    )
    return value


def test_a_link_of_100_mbit_reads_as_such(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.80.1.10/24"), lab.host("b", lan, "10.80.1.11/24")
    lab.key(a, b)
    a.serve()
    b.serve(verb="discover")
    lab.shape(b, "100mbit")
    topology = a.topology("--for", "2s")
    ids = {node["name"]: node["id"] for node in topology["nodes"]}
    links = {(link["from"], link["to"]): link for link in topology["links"]}
    slow, fast = links[ids["b"], ids["a"]], links[ids["a"], ids["b"]]
    assert 0.8 * 12.5e6 <= slow["bytes_per_s"] <= 1.2 * 12.5e6
    assert slow["limited_by"] is None
    assert fast["bytes_per_s"] > 5 * slow["bytes_per_s"]
    # Young figures are used again, by everybody: the node remembers them too.
    again = a.topology("--for", "1s")
    assert {link["measured_unix_ms"] for link in again["links"]} == {
        link["measured_unix_ms"] for link in topology["links"]
    }


def test_of_two_ways_the_better_one_is_taken(lab: Lab) -> None:
    slow, fast = lab.bridge("slow"), lab.bridge("fast")
    a, b = lab.host("a", slow, "10.81.1.10/24"), lab.host("b", slow, "10.81.1.11/24")
    lab.plug(a.namespace, fast, "eth1", "10.81.2.10/24")
    lab.plug(b.namespace, fast, "eth1", "10.81.2.11/24")
    lab.key(a, b)
    for host in (a, b):
        lab.shape(host, "50mbit")
        host.serve()
    topology = a.topology("--for", "2s")
    assert {link["interface"] for link in topology["links"]} == {"eth1"}
    assert {link["address"] for link in topology["links"]} == {"10.81.2.10", "10.81.2.11"}


def test_interfaces_can_be_chosen_and_a_machine_without_any_is_told(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.82.1.10/24"), lab.host("b", lan, "10.82.1.11/24")
    lab.key(a, b)
    b.serve()
    assert set(names(a.topology("--interface", "eth*", "--for", "2s", "--measure", "never"))) == {"b"}
    hidden = a.home / "hidden.json"
    blind = a.topology("--interface", "lo", "--for", "1s", "--measure", "never", "--topology", str(hidden))
    assert names(blind) == {}
    wrong = a.exo("discover", "--interface", "wlan7")
    assert wrong.returncode == 2
    assert "there is no interface 'wlan7'" in wrong.stderr
    alone = a.exo("discover", "--no-interface", "*")
    assert alone.returncode == 69
    assert "no network interface" in alone.stderr


def test_waiting_for_nodes_ends_at_once_or_with_75(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.83.1.10/24"), lab.host("b", lan, "10.83.1.11/24")
    lab.key(a, b)
    a.serve()
    waiting = a.start("discover", "--wait", "nodes=2", "--timeout", "60s", "--json", "--measure", "never")
    b.serve()
    assert waiting.popen.wait(30) == 0, waiting.err()
    assert set(names(json.loads(waiting.out()))) == {"a", "b"}
    late = a.exo("discover", "--wait", "nodes=3", "--timeout", "1s", "--measure", "never")
    assert late.returncode == 75
    assert "2 of 3 nodes are ready" in late.stderr


def test_without_a_key_nothing_leaves_the_machine(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.84.1.10/24"), lab.host("b", lan, "10.84.1.11/24")
    a.serve()
    assert set(names(a.topology("--for", "1s", "--measure", "never"))) == {"a"}
    assert b.topology("--peer", a.address, "--for", "1s", "--measure", "never")["nodes"] == []
    refused = b.exo("serve-shard", "--listen", "0.0.0.0:52416")
    assert refused.returncode == 77
    assert "exo key new" in refused.stderr


def test_insecure_nodes_find_each_other_and_say_so(lab: Lab) -> None:
    lan = lab.bridge("lan")
    a, b = lab.host("a", lan, "10.85.1.10/24"), lab.host("b", lan, "10.85.1.11/24")
    node = b.serve("--insecure")
    assert "--insecure" in node.err()
    assert set(names(a.topology("--insecure", "--for", "2s", "--measure", "never"))) == {"b"}
    public = b.exo("serve-shard", "--insecure", "--listen", "203.0.113.5:52416")
    assert public.returncode == 77
