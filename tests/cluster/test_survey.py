"""From voices to records in the file: real nodes on loopback, and a station that only says who it heard."""

import asyncio
import json
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exo_cli import config
from exo_cli.cluster import asked as asked_module
from exo_cli.cluster import service
from exo_cli.cluster import survey as module
from exo_cli.cluster.beacon import Role
from exo_cli.cluster.membership import Change, Peer
from exo_cli.cluster.station import Station, watcher
from exo_cli.cluster.survey import Survey
from exo_cli.cluster.topology_file import TopologyFile, encode
from exo_cli.errors import BadData, Exit
from exo_cli.schemas.topology import Link, Node, Topology
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import SERVER_OPTIONS
from exo_cli.wire.exo_pb2_grpc import ControlServicer
from exo_cli.wire.hello import hello
from tests.support.loopback import bound_socket, with_option
from tests.support.nodes import Here, eventually, serving
from tests.support.records import link, node


class Scene:
    """A survey over a real file, and the station that it is told news by."""

    def __init__(self, source: KeyringSource, path: Path, **options: Any) -> None:
        self.file = TopologyFile(path)
        self.knocks: list[tuple[str, int]] = []
        # Never started, so it has no sockets; what it would ask is written down.
        self.station = Station(watcher(), source, nodes_dir=path.parent / "none")
        self.station.knock = lambda ip, port: self.knocks.append((ip, port))  # type: ignore[method-assign]
        self.survey = Survey(self.station, source, self.file, **options)

    def tell(self, what: Any, peer: Peer) -> None:
        """As the station does it: membership first."""
        if what == "left":
            self.station.membership.peers.pop(peer.node_id, None)
        else:
            self.station.membership.peers[peer.node_id] = peer
            if what in ("suspect", "dead"):
                peer.status = what
            else:
                peer.status = "alive"
        self.survey.heard(Change(what, peer))

    def nodes(self) -> dict[str, str]:
        return {each.name: each.state for each in self.file.read().nodes}

    def links(self) -> dict[tuple[str, str], Link]:
        return {(each.from_, each.to): each for each in self.file.read().links}

    async def said(self, names: dict[str, str]) -> None:
        await eventually(lambda: self.nodes() == names, lambda: f"the file says {self.nodes()}, not {names}")


@asynccontextmanager
async def scene(path: Path | None = None, **options: Any) -> AsyncIterator[Scene]:
    made = Scene(KeyringSource(), path or config.topology_path(), **options)
    await made.survey.start()
    try:
        yield made
    finally:
        await made.survey.stop()


def play(act: Callable[[Scene, KeyringSource], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        async with scene(**options) as made:
            await act(made, KeyringSource())

    asyncio.run(whole())


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def write(*nodes: Node, links: tuple[Link, ...] = ()) -> None:
    TopologyFile(config.topology_path()).update(lambda _: Topology(nodes=nodes, links=links))


# --------------------------------------------------------------------------------- who is there


def test_who_joins_is_described_and_written_and_who_leaves_is_gone_at_once() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        async with serving(source, "a") as a, serving(source, "b") as b:
            made.tell("joined", a.peer())
            made.tell("joined", b.peer())
            await made.said({"a": "ready", "b": "ready"})
            (record,) = [each for each in made.file.read().nodes if each.name == "a"]
            assert (record.id, record.endpoint) == (a.id, f"127.0.0.1:{a.port}")
            await made.survey.measure()
            assert set(made.links()) == {(a.id, b.id), (b.id, a.id)}
            made.tell("left", a.peer())
            await made.said({"b": "ready"})
            assert made.links() == {}
            # It comes back.
            made.tell("joined", a.peer())
            await made.said({"a": "ready", "b": "ready"})

    play(act)


def test_a_change_is_described_anew_also_while_it_is_being_described() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        gate = asyncio.Event()
        asked: list[str] = []

        class Slow(ControlServicer):
            async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
                state = a.me.record()
                asked.append(state.state)
                await gate.wait()
                return pb.DescribeReply(hello=hello(a.id, 1), node=msgspec.json.encode(state))

        async with serving(source, "a", make=lambda *_: Slow()) as a:
            made.tell("joined", a.peer())
            await eventually(lambda: asked == ["ready"])
            a.me.draining = True
            made.tell("changed", a.peer())
            gate.set()
            await made.said({"a": "draining"})
            assert asked == ["ready", "draining"]

    play(act)


def test_silence_is_judged_and_a_sign_of_life_takes_it_back() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        async with serving(source, "a") as a:
            for what, state in (
                ("joined", "ready"),
                ("suspect", "suspect"),
                ("dead", "dead"),
                ("joined", "ready"),
            ):
                made.tell(what, a.peer())
                await made.said({"a": state})

    play(act)


def test_a_verdict_stands_over_a_newer_record_of_the_same_run() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        async with serving(source, "a") as a:
            made.tell("joined", a.peer())
            await made.said({"a": "ready"})
            # Another process of this machine heard it a little later, and wrote so.
            newer = msgspec.structs.replace(a.me.record(), seq=10_000)
            made.file.update(lambda old: msgspec.structs.replace(old, nodes=(newer,)))
            made.tell("dead", a.peer())
            await made.said({"a": "dead"})
            assert made.file.read().nodes[0].seq == 10_000
            # A restart is another matter: nothing was said about that run.
            restarted = msgspec.structs.replace(newer, boot=newer.boot + 1, seq=1)
            made.file.update(lambda old: msgspec.structs.replace(old, nodes=(restarted,)))
            made.tell("dead", a.peer())
            await made.survey.settle()
            assert made.nodes() == {"a": "ready"}

    play(act)


def test_a_node_known_from_the_file_alone_is_judged_too() -> None:
    held = bound_socket()
    write(node("a" * 32, name="a", endpoint="127.0.0.1:9", seen=now_ms()))

    async def act(made: Scene, source: KeyringSource) -> None:
        peer = stranger_at(held.getsockname()[1], "a" * 32)
        made.tell("joined", peer)
        await eventually(lambda: bool(made.survey.unreached))
        made.tell("dead", peer)
        await made.said({"a": "dead"})

    with held:
        play(act)


def stranger_at(port: int, node_id: str = "e" * 32) -> Peer:
    """Somebody who is heard, at a port where the test decides what is."""
    peer = Peer(
        node_id=node_id,
        instance=b"i" * 8,
        boot=1,
        seq=1,
        name="heard",
        port=port,
        role=Role.SHARD,
        fingerprint="",
        draining=False,
        heard_s=0.0,
        proven=True,
    )
    peer.addresses["127.0.0.1"] = 0.0
    return peer


def test_who_is_heard_and_not_reached_is_named_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.05)

    async def act(made: Scene, source: KeyringSource) -> None:
        with bound_socket() as held:
            port = held.getsockname()[1]
            async with serving(source, "a") as a:
                peer = a.peer()
                peer.port = port
                made.tell("joined", peer)
                await eventually(lambda: a.id in made.survey.unreached)
                failure = made.survey.unreached[a.id].failure
                assert failure.exit == Exit.UNAVAILABLE
                assert f"127.0.0.1:{port}" in failure.message
                assert made.nodes() == {}
                peer.port = a.port  # it opens its door at last
                await made.said({"a": "ready"})
                assert made.survey.unreached == {}
                made.tell("left", peer)
                assert made.survey.unreached == {}

    play(act)


def test_who_left_while_it_was_asked_is_not_said_to_be_unreachable() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        with bound_socket() as held:
            peer = stranger_at(held.getsockname()[1])
            made.tell("joined", peer)
            made.tell("left", peer)
            await made.survey.settle()
            assert made.survey.unreached == {}

    play(act)


def test_settling_does_not_wait_for_what_is_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)

    async def slow(peer: Peer, source: KeyringSource) -> Node:
        await asyncio.sleep(0.05 if peer.node_id[0] == "a" else 0.03)
        raise BadData("no")

    monkeypatch.setattr(module, "describe", slow)

    async def act(made: Scene, source: KeyringSource) -> None:
        for first in "ab":
            made.tell("joined", stranger_at(9, first * 32))
        async with asyncio.timeout(5):
            await made.survey.settle()

    play(act)


# -------------------------------------------------------------------------------- what others claim


def record_of(a: Here) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(msgspec.json.encode(a.me.record()))
    return value


def another(a: Here) -> bytes:
    return json.dumps({**record_of(a), "id": "d" * 32}).encode()


LIES: dict[str, tuple[Callable[[Here], bytes], str]] = {
    "nothing": (lambda a: b"", "not a node's record"),
    "no JSON": (lambda a: b"\xff\xfe", "not a node's record"),
    "a list": (lambda a: b"[]", "not a node's record"),
    "half": (lambda a: json.dumps({"id": a.id}).encode(), "missing required field"),
    "another id": (another, "another node than its beacon says"),
    "negative": (
        lambda a: json.dumps({**record_of(a), "cores": -1}).encode(),
        "out of range",
    ),
    "beyond": (lambda a: json.dumps({**record_of(a), "seq": 2**63}).encode(), "not a node's record"),
    "an odd id": (lambda a: json.dumps({**record_of(a), "id": "../x"}).encode(), "hexadecimal"),
    "deep": (lambda a: b"[" * 100_000, "not a node's record"),
    "large": (
        lambda a: json.dumps({**record_of(a), "chip": "x" * 300_000}).encode(),
        "larger than 256 KiB",
    ),
    "huge": (lambda a: b"x" * (9 * 1024 * 1024), "too large"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_member_that_lies_about_itself_is_refused_and_named(
    lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say, reason = LIES[lie]
    # Our own server would not send what is too large; a liar's does.
    unbounded = with_option(SERVER_OPTIONS, "grpc.max_send_message_length", -1)
    monkeypatch.setattr(service, "SERVER_OPTIONS", unbounded)

    async def act(made: Scene, source: KeyringSource) -> None:
        class Liar(ControlServicer):
            async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
                return pb.DescribeReply(hello=hello(a.id, 1), node=say(a))

        async with serving(source, "a", make=lambda *_: Liar()) as a:
            made.tell("joined", a.peer())
            await made.survey.settle()
            failure = made.survey.unreached[a.id].failure
            assert failure.exit == Exit.BAD_DATA
            assert reason in failure.message
            assert f"127.0.0.1:{a.port}" in failure.message
            assert made.nodes() == {}

    play(act)


def test_a_member_of_another_protocol_is_named_with_its_version() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        class Newer(ControlServicer):
            async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
                return pb.DescribeReply(hello=pb.Hello(protocol=2, version="9.9"))

        async with serving(source, "a", make=lambda *_: Newer()) as a:
            made.tell("joined", a.peer())
            await made.survey.settle()
            failure = made.survey.unreached[a.id].failure
            assert failure.exit == Exit.VERSION
            assert "protocol 2 (version 9.9)" in failure.message

    play(act)


FIGURE = {"rtt_us_p50": 90.0, "rtt_us_p99": 140.0, "bytes_per_s": 4e9, "boot": 1, "seq": 5}

CLAIMS: dict[str, dict[str, Any]] = {
    "not a number": {"bytes_per_s": math.nan},
    "endless": {"bytes_per_s": math.inf},
    "negative": {"bytes_per_s": -4e9},
    "nothing": {"bytes_per_s": 0.0},
    "odd round trip": {"rtt_us_p50": math.nan},
    "endless round trip": {"rtt_us_p99": math.inf},
    "from before the epoch": {"age_ms": 2**63},
    "a counter that ends all counters": {"seq": 2**64 - 1},
    "a life that ends all lives": {"boot": 2**64 - 1},
    "a novel": {"interface": "x" * 5000},
    "an error that is a novel": {"error": "x" * 5000},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_figure_that_cannot_be_is_not_taken_and_harms_nobody(claim: str) -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        class Braggart(ControlServicer):
            async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
                return pb.DescribeReply(hello=hello(a.id, 1), node=msgspec.json.encode(a.me.record()))

            async def Measure(self, request: pb.MeasureRequest, context: Any) -> pb.MeasureReply:
                return pb.MeasureReply(**{**FIGURE, **CLAIMS[claim]})

        async with serving(source, "a", make=lambda *_: Braggart()) as a, serving(source, "b") as b:
            made.tell("joined", a.peer())
            made.tell("joined", b.peer())
            await made.survey.measure()
            links = made.links()
            assert made.survey.problem is None
            assert links[a.id, b.id].bytes_per_s is None
            assert 0 < len(links[a.id, b.id].error or "") < 400
            # The way back leads to a node that cannot be measured; that is said, too.
            assert links[b.id, a.id].bytes_per_s is None
            assert {each.loopback_bytes_per_s for each in made.file.read().nodes if each.name == "a"} == {
                None
            }

    play(act)


# ---------------------------------------------------------------------------------- measuring links


def test_every_ordered_pair_is_measured_once_and_again_only_when_asked() -> None:
    progress: list[tuple[int, int]] = []

    async def act(made: Scene, source: KeyringSource) -> None:
        async with serving(source, "a") as a, serving(source, "b") as b, serving(source, "c") as c:
            for each in (a, b, c):
                made.tell("joined", each.peer())
            await made.survey.measure(on_progress=lambda done, total: progress.append((done, total)))
            first = made.links()
            assert set(first) == {
                (one.id, two.id) for one in (a, b, c) for two in (a, b, c) if one is not two
            }
            for found in first.values():
                assert (found.error, found.address, found.kind) == (None, "127.0.0.1", "loopback")
                assert 0 < (found.rtt_us_p50 or 0) <= (found.rtt_us_p99 or 0)
                # On one machine there is no cable: the transport is what limits it, or it is slower.
                assert found.limited_by in ("transport", None)
            assert progress == [(done, 6) for done in range(7)]
            assert all(each.loopback_bytes_per_s for each in made.file.read().nodes)
            await made.survey.measure(on_progress=lambda done, total: progress.append((done, total)))
            assert progress[7:] == [(0, 0)]
            assert made.links() == first
            await made.survey.measure(fresh=True)
            assert all(link.seq > first[pair].seq for pair, link in made.links().items())

    play(act)


def test_a_node_that_does_not_answer_any_more_leaves_a_reason() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        async with serving(source, "a") as a:
            async with serving(source, "b") as b:
                made.tell("joined", a.peer())
                made.tell("joined", b.peer())
                await made.survey.settle()
            await made.survey.measure()
            links = made.links()
            assert {each.bytes_per_s for each in links.values()} == {None}
            assert all(each.error for each in links.values())
            # It is not tried at once again while somebody watches.
            asked: list[int] = []
            await made.survey.measure(on_progress=lambda done, total: asked.append(total))
            assert asked == [0]

    play(act)


def test_a_busy_node_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_module, "BUSY_PAUSE_S", 0.01)
    busy = iter([True, True, True])

    async def act(made: Scene, source: KeyringSource) -> None:
        async with (
            serving(source, "a", requests_run=lambda: next(busy, False)) as a,
            serving(source, "b") as b,
        ):
            made.tell("joined", a.peer())
            made.tell("joined", b.peer())
            await made.survey.measure()
            assert {each.error for each in made.links().values()} == {None}

    play(act)


def test_a_node_that_works_all_the_time_is_said_to_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_module, "BUSY_PAUSE_S", 0.001)

    async def act(made: Scene, source: KeyringSource) -> None:
        async with serving(source, "a", requests_run=lambda: True) as a, serving(source, "b") as b:
            made.tell("joined", a.peer())
            made.tell("joined", b.peer())
            await made.survey.measure()
            assert {each.error for each in made.links().values()} == {"a or b is busy", "b or a is busy"}

    play(act)


def test_measuring_can_be_broken_off() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        async with serving(source, "a") as a, serving(source, "b") as b:
            made.tell("joined", a.peer())
            made.tell("joined", b.peer())
            await made.survey.settle()
            measuring = asyncio.create_task(made.survey.measure())
            await asyncio.sleep(0.05)
            before = asyncio.all_tasks()
            measuring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await measuring
            left = [repr(task) for task in before & asyncio.all_tasks() if "_measure_pair" in repr(task)]
            assert left == []
            await made.survey.measure()
            assert {each.error for each in made.links().values()} == {None}

    play(act)


# ------------------------------------------------------------------------------------- the file


def test_what_cannot_be_written_is_said_and_shown_all_the_same(tmp_path: Path) -> None:
    directory = tmp_path / "later"
    directory.mkdir()
    path = directory / "topology.json"

    async def whole() -> None:
        source = KeyringSource()
        shown: list[Topology] = []
        async with scene(path, on_topology=shown.append) as made, serving(source, "a") as a:
            directory.rmdir()
            (tmp_path / "later").write_text("a file is in the way")
            made.tell("joined", a.peer())
            await made.survey.settle()
            problem = made.survey.problem
            assert problem is not None
            assert problem.exit in (Exit.CANNOT_CREATE, Exit.INPUT_OUTPUT)
            assert str(path) in problem.message
            assert [each.name for each in shown[-1].nodes] == ["a"]
            # As soon as it can be written, it is, with all that was found meanwhile.
            (tmp_path / "later").unlink()
            directory.mkdir()
            await made.survey.settle()
            assert made.survey.problem is None
            assert made.nodes() == {"a": "ready"}

    asyncio.run(whole())


def test_a_file_that_says_nobody_is_written_too() -> None:
    async def act(made: Scene, source: KeyringSource) -> None:
        assert not made.file.path.exists()
        await made.survey.settle()
        assert made.file.path.exists()
        assert made.file.path.read_bytes() == encode(made.survey.topology)

    play(act)


def test_what_was_heard_last_is_written_by_the_stop() -> None:
    async def whole() -> None:
        source = KeyringSource()
        async with serving(source, "a") as a:
            async with scene() as made:
                made.tell("joined", a.peer())
                await eventually(lambda: a.id in made.survey.described)
            assert made.nodes() == {"a": "ready"}

    asyncio.run(whole())


def test_a_stop_in_the_middle_of_a_write_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        source = KeyringSource()
        inside, go_on = threading.Event(), threading.Event()
        async with serving(source, "a") as a:
            async with scene() as made:
                update = made.file.update

                def slow(change: Any) -> Topology:
                    inside.set()
                    go_on.wait(10)
                    return update(change)

                made.file.update = slow  # type: ignore[method-assign, assignment]
                made.tell("joined", a.peer())
                await eventually(inside.is_set)
                go_on.set()
            assert {each.name for each in made.survey.topology.nodes} == {"a"}
            assert made.nodes() == {"a": "ready"}

    asyncio.run(whole())


def test_who_is_known_is_asked_where_it_was_and_dead_if_it_stays_silent() -> None:
    write(
        node("a" * 32, name="a", endpoint="127.0.0.1:7001", seen=now_ms()),
        node("b" * 32, name="b", endpoint="[::1]:7002", seen=now_ms()),
        node("c" * 32, name="c", endpoint="192.0.2.7:7003"),
        node("d" * 32, name="d", endpoint="127.0.0.1:7004", state="suspect"),
    )

    async def act(made: Scene, source: KeyringSource) -> None:
        assert made.knocks == [("127.0.0.1", 7001), ("::1", 7002), ("127.0.0.1", 7004)]
        made.tell("suspect", stranger_at(7004, "d" * 32))
        made.survey.mark_silent()
        await made.survey.settle()
        # Without a cluster key the other machine was not asked: nothing is said about it.
        assert made.nodes() == {"a": "dead", "b": "dead", "c": "ready", "d": "suspect"}

    play(act)


def test_a_file_with_an_endpoint_that_is_none_is_refused_in_a_sentence() -> None:
    for endpoint in ("", "nowhere", "host:port", "1.2.3.4:70000", ":5"):
        write(node("a" * 32, name="a", endpoint=endpoint))
        with pytest.raises(BadData, match="the endpoint of a is no address") as caught:
            play(nothing)
        assert str(config.topology_path()) in caught.value.message
        os.unlink(config.topology_path())


async def nothing(made: Scene, source: KeyringSource) -> None:
    pass


def test_our_own_record_is_there_from_the_start_and_goes_with_us() -> None:
    def me() -> Node:
        return node("e" * 32, name="me", endpoint="127.0.0.1:7001")

    async def act(made: Scene, source: KeyringSource) -> None:
        await made.said({"me": "ready"})
        made.survey.forget_self("e" * 32)
        await made.said({})

    play(act, describe_self=me)


def test_a_link_of_a_node_that_is_gone_does_not_stay() -> None:
    write(
        node("a" * 32, name="a", endpoint="127.0.0.1:7001"),
        node("b" * 32, name="b", endpoint="127.0.0.1:7002"),
        links=(link("a" * 32, "b" * 32), link("b" * 32, "a" * 32)),
    )

    async def act(made: Scene, source: KeyringSource) -> None:
        made.tell("left", stranger_at(7001, "a" * 32))
        await made.said({"b": "ready"})
        assert made.links() == {}

    play(act)
