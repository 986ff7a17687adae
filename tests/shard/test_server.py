"""serve-shard's process from inside: it serves, warns of a copied identity."""

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exo_cli import config
from exo_cli.cluster import facts
from exo_cli.cluster.beacon import Role
from exo_cli.cluster.facts import Accelerator
from exo_cli.cluster.lifecycle import double_id
from exo_cli.cluster.membership import Change, Peer
from exo_cli.cluster.node import NodeHost, NodeOptions
from exo_cli.errors import Exit
from exo_cli.schemas.events import ReadyLine
from exo_cli.schemas.topology import LoadedStage, Topology
from exo_cli.shard import server
from exo_cli.shard.server import ShardOptions, serve
from exo_cli.trust.keyring import KeyringSource
from tests.support.records import node as record


def double(*ips: str) -> Change:
    peer = Peer(
        node_id="a" * 32,
        instance=b"i" * 8,
        boot=1,
        seq=1,
        name="studio",
        port=1,
        role=Role.SHARD,
        fingerprint="",
        draining=False,
        heard_s=0.0,
    )
    peer.addresses.update(dict.fromkeys(ips, 0.0))
    return Change("duplicate-id", peer)


def test_a_copied_identity_is_said_with_what_to_do() -> None:
    text = double_id(double("192.0.2.7"))
    assert "a" * 32 in text
    assert "at 192.0.2.7" in text
    assert "remove nodes/studio" in text
    assert "at another process" in double_id(double(""))


def test_it_serves_until_a_signal_and_warns_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "probe_accelerator", lambda: Accelerator(backend="none"))
    warnings: list[str] = []
    ready: list[ReadyLine] = []
    hosts: list[NodeHost] = []
    start = NodeHost.start

    async def remembered(self: NodeHost) -> None:
        hosts.append(self)
        await start(self)

    monkeypatch.setattr(NodeHost, "start", remembered)

    def on_ready(line: ReadyLine) -> None:
        ready.append(line)
        hosts[0].survey.heard(double("127.0.0.1"))
        hosts[0].survey.heard(Change("suspect", double().peer))
        os.kill(os.getpid(), signal.SIGTERM)

    options = NodeOptions(role="shard", nodes_dir=config.nodes_dir(), topology=tmp_path / "topology.json")
    shard = ShardOptions(weights_dir=tmp_path / "weights")
    got = asyncio.run(
        serve(options, shard, KeyringSource(), on_ready=on_ready, ready_file=None, warn=warnings.append)
    )
    assert got == (signal.SIGTERM, Exit.OK)
    assert [line.pid for line in ready] == [os.getpid()]
    assert ready[0].endpoint.startswith("127.0.0.1:")
    assert [text for text in warnings if "have the id" in text] == [double_id(double("127.0.0.1"))]


def test_an_engines_threads_are_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "usable_cores", lambda: frozenset(range(16)))
    me = SimpleNamespace(machine=SimpleNamespace(host="h1"), identity=SimpleNamespace(node_id="me"))
    held = LoadedStage(model="m", layers=(0, 1), state="ready")
    nodes = (
        record("me", stages=(held,) * 9),  # what the file says of us is older than what we know
        record("idle"),  # about to get a stage
        record("busy", stages=(held, held)),
        record("dead", state="dead"),
        record("watches", role="announce"),
        record("elsewhere", host="h2"),
    )
    node: Any = SimpleNamespace(me=me, survey=SimpleNamespace(topology=Topology(nodes=nodes)))
    engines: Any = SimpleNamespace(leases=[])

    def threads(**settings: Any) -> str:
        shard = ShardOptions(weights_dir=Path(), **settings)
        return server._surroundings(shard, engines, node).environment["NUMBA_NUM_THREADS"]

    assert threads() == "4"  # ours, one for the idle one, two for the busy one
    engines.leases = [None] * 4
    assert threads() == "2"
    assert threads(threads=5) == "5"
    assert threads(cores=frozenset({0, 1, 2})) == "1"
    assert server._surroundings(ShardOptions(Path(), cores=frozenset({3})), engines, node).cores == {3}
