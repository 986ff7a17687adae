"""`exo bench --links` between machines: namespaces that have an id of their own each."""

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from tests.support.lab import Host, Lab

pytestmark = [pytest.mark.net]

_NETNS = Path("/etc/netns")
"""What lies there under a namespace's name covers /etc for the processes in it."""


@pytest.fixture
def three(lab: Lab) -> Iterator[tuple[Host, Host, Host]]:
    """Machines on one switch, with one key."""
    lan = lab.bridge("lan")
    a, b, c = (lab.host(name, lan, f"10.92.1.{10 + number}/24") for number, name in enumerate("abc"))
    lab.key(a, b, c)
    was_there = _NETNS.exists()
    ids = [_NETNS / host.namespace / "machine-id" for host in (a, b, c)]
    try:
        for number, file in enumerate(ids):
            file.parent.mkdir(parents=True)
            file.write_text(f"{number}" * 32)
        yield a, b, c
    finally:
        for file in ids:
            file.unlink(missing_ok=True)
            if file.parent.exists():
                file.parent.rmdir()
        if not was_there and _NETNS.exists():
            _NETNS.rmdir()


def test_nodes_and_this_machine_are_measured_both_ways(three: tuple[Host, Host, Host]) -> None:
    a, b, c = three
    a.serve()
    b.serve()
    # The third runs no node, and has no topology file before or after.
    done = c.exo("bench", "--links", "--repeat", "2", "--json")
    assert done.returncode == 0, done.stderr
    links = json.loads(done.stdout)["links"]
    ids = {link["from_id"] for link in links}
    assert {(link["from_id"], link["to_id"]) for link in links} == set(permutations(ids, 2))
    assert len(ids) == 3
    for link in links:
        assert (link["rounds"], link["error"], link["interface"]) == (2, None, "eth0"), link
        assert link["bytes_per_s"] > 0
    assert not (c.home / ".local/state/exo/topology.json").exists()

    # Where a node runs here, this machine is that node.
    done = a.exo("bench", "--links", "--repeat", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert {link["from_node"] for link in json.loads(done.stdout)["links"]} == {"a", "b"}
