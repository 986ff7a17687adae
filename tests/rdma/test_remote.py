"""Diagnose over the network: what a node answers, and what a liar can say."""

import asyncio
import time
from typing import Any

import pytest

from exo_cli.cluster.service import NodeService
from exo_cli.errors import BadData
from exo_cli.rdma import remote
from exo_cli.rdma.capture import Capture, Said, read
from exo_cli.rdma.diagnose import diagnose
from exo_cli.rdma.remote import Answerer, Target, as_messages, ask, from_messages
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from tests.support.captures import CAPTURES
from tests.support.nodes import serving

(MAC,) = read(CAPTURES / "mac-disabled")


@pytest.mark.parametrize(
    "name", ["mac-disabled", "mac-old-macos", "linux-observed-no-device", "linux-memlock"]
)
def test_a_capture_survives_the_wire(name: str) -> None:
    (capture,) = read(CAPTURES / name)
    again = from_messages(capture.node, as_messages(capture))
    assert diagnose([again]) == diagnose([capture])


def test_topics_are_the_names_of_texts() -> None:
    names = [each.name for each in as_messages(MAC, ["rdma_ctl", "unknown"])]
    assert names == ["platform", "rdma_ctl"]


def test_what_a_member_says_is_bounded_and_checked() -> None:
    long = Capture("darwin", "m", {"rdma_ctl": Said(0, b"x" * (1 << 20), b"y" * (1 << 20))})
    assert sum(each.ByteSize() for each in as_messages(long)) < 300_000
    found = from_messages("m", [*as_messages(MAC), pb.Capture(name="../../x", output=b"?")])
    assert set(found.texts) == set(MAC.texts)
    for platform in (b"", b"plan9", b"\xff"):
        with pytest.raises(BadData):
            from_messages("m", [pb.Capture(name="platform", output=platform)])


def test_whoever_asks_again_at_once_gets_the_same_answer() -> None:
    asked: list[int] = []
    now = [100.0]

    def collect() -> Capture:
        asked.append(1)
        return MAC

    async def main() -> None:
        answer = Answerer(collect, clock=lambda: now[0])
        await asyncio.gather(*(answer([]) for _ in range(5)))
        assert len(asked) == 1
        now[0] += remote.FRESH_S + 1
        await answer(["rdma_ctl"])
        assert len(asked) == 2

    asyncio.run(main())


class Slow(NodeService):
    """Never says what it has."""

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Any) -> pb.DiagnoseReply:
        await asyncio.sleep(600)
        return pb.DiagnoseReply()


class Liar(NodeService):
    async def Diagnose(self, request: pb.DiagnoseRequest, context: Any) -> pb.DiagnoseReply:
        return pb.DiagnoseReply(captures=[pb.Capture(name="rdma_ctl", output=b"enabled\n")])


def test_each_node_is_asked_and_each_silence_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 1.0)
    source = KeyringSource()

    async def main() -> None:
        async with (
            serving(source, "good") as good,
            serving(source, "plain") as plain,
            serving(source, "slow", make=Slow) as slow,
            serving(source, "liar", make=Liar) as liar,
        ):
            assert isinstance(good.service, NodeService)
            good.service.diagnose = Answerer(lambda: MAC)
            nodes = {"good": good, "plain": plain, "slow": slow, "liar": liar}
            targets = [Target(name, "127.0.0.1", node.port) for name, node in nodes.items()]
            gone = Target("gone", "127.0.0.1", 9)
            began_s = time.monotonic()
            captures, silent = await ask([*targets, gone], source.current())
            assert time.monotonic() - began_s < 60
        assert [capture.node for capture in captures] == ["good"]
        said = {target.name: finding.seen for target, finding in silent.items()}
        assert "only announces" in said["plain"]
        assert "in time" in said["slow"]
        assert "what system" in said["liar"]
        assert "nothing listens" in said["gone"]
        assert {(finding.id, finding.level) for finding in silent.values()} == {("silent", "failure")}
        assert not diagnose(captures, beside=list(silent.values())).would_work

    asyncio.run(main())
