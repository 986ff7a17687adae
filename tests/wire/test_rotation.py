"""Two nodes keep talking through rotations begun and finished by either of them."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from exo_cli.trust import changes, keyfile

ROOT = Path(__file__).parents[2]


class Node:
    """One peer process with a configuration of its own."""

    def __init__(self, home: Path) -> None:
        self.path = home / "exo" / "cluster.key"
        self._stderr = home / "stderr"
        self._home = home

    @contextmanager
    def running(self) -> Iterator["Node"]:
        environment = os.environ | {"XDG_CONFIG_HOME": str(self._home)}
        with (
            self._stderr.open("w") as stderr,
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.peer"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as self._process,
        ):
            try:
                self.port = int(self._line())
                yield self
                assert self._process.stdin is not None
                self._process.stdin.close()
                assert self._process.wait(20) == 0
            finally:
                self._process.kill()
        assert self._stderr.read_text() == ""

    def tell(self, text: str) -> None:
        assert self._process.stdin is not None
        print(text, file=self._process.stdin, flush=True)

    def report(self, ask: str = "report") -> dict[str, object]:
        self.tell(ask)
        said: dict[str, object] = json.loads(self._line())
        assert said["failures"] == []
        return said

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._stderr.read_text()
        return line


def count(report: dict[str, object], name: str) -> int:
    value = report[name]
    assert isinstance(value, int)
    return value


def go_on(nodes: tuple[Node, ...], more: int = 5) -> None:
    """Until each node has made that many more calls and ticks, all of them good."""
    for node in nodes:
        before = node.report()
        for name in ("calls", "ticks"):
            wanted = count(before, name) + more
            for _ in range(100_000):
                if count(node.report(), name) >= wanted:
                    break
            else:
                pytest.fail(f"no {name} any more")


def steps(first: Node, second: Node, finisher: Node, other: Node) -> tuple[Callable[[], changes.Change], ...]:
    """One rotation: who begins, who joins, who finishes first, who last."""
    return (
        lambda: changes.rotate(first.path),
        lambda: changes.join(second.path, keyfile.read(first.path)),
        lambda: changes.finish(finisher.path),
        lambda: changes.finish(other.path),
    )


@pytest.mark.process
def test_rotation_in_both_orders_with_traffic_running(tmp_path: Path) -> None:
    a, b = Node(tmp_path / "a"), Node(tmp_path / "b")
    secrets = (keyfile.new_secret(),)
    for node in (a, b):
        keyfile.create(node.path, secrets)
    with ExitStack() as stack:
        nodes = tuple(stack.enter_context(node.running()) for node in (a, b))
        a.tell(str(b.port))
        b.tell(str(a.port))
        go_on(nodes)
        for first, finisher in itertools.product(nodes, nodes):
            for step in steps(first, b if first is a else a, finisher, b if finisher is a else a):
                assert step().changed
                go_on(nodes)
        now = {json.dumps(node.report("hush")["fingerprints"]) for node in nodes}
        assert len(now) == 1
        assert keyfile.read(a.path) != secrets
