"""`exo run` as a process, against nodes that are processes: everything is real but the arithmetic."""

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exo_cli import config
from exo_cli.cluster.survey import describe_at
from exo_cli.cluster.topology_file import TopologyFile
from exo_cli.commands import run as run_module
from exo_cli.commands.run_view import harmless
from exo_cli.drive.size import size_of
from exo_cli.drive.split import Need, plan_of
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas import registry
from exo_cli.schemas.plan import ModelRef
from exo_cli.schemas.topology import Node, Topology
from exo_cli.trust.keyring import KeyringSource
from tests.support import toy_model
from tests.support.chain import expected
from tests.support.fake_stage import NodeProcess, node_process
from tests.support.jsonschema import problems

pytestmark = pytest.mark.process

RUN = (sys.executable, "-m", "tests.support.run_app", "run")
TIMEOUT_S = 60
QUESTION = "t5 t7 t11"


@dataclass
class Cluster:
    """Two nodes, a model, and a plan that splits it over both."""

    home: Path
    model: Path
    plan: Path
    nodes: list[NodeProcess]
    records: list[Node]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("stdin", subprocess.DEVNULL)
        if "input" in options:
            del options["stdin"]
        return subprocess.run(
            [*RUN, str(self.model), "--plan", str(self.plan), *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=self.environment,
            check=False,
            **options,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.home)}


def make_cluster(home: Path, *options: str) -> Iterator[Cluster]:
    """`options` are the second node's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("EXO_", "XDG_", "HF_")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        source = KeyringSource()
        with node_process(home, "a") as a, node_process(home, "b", *options) as b:

            async def records() -> list[Node]:
                return [await describe_at("127.0.0.1", node.port, source) for node in (a, b)]

            found = asyncio.run(records())
            model = toy_model.write(home / "toy")
            directory = ModelDirectory.open(model)
            need = Need(
                ModelRef(name="toy", revision=None, digest=directory.digest), size_of(directory), 8192
            )
            plan = plan_of(need, [(found[0], (0, 2)), (found[1], (2, 4))], "a test")
            (home / "plan.json").write_bytes(msgspec.json.encode(plan))
            TopologyFile(config.topology_path()).update(lambda old: Topology(nodes=tuple(found)))
            yield Cluster(home, model, home / "plan.json", [a, b], found)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from make_cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Cluster]:
    """One whose second node takes its time, and which a test may break."""
    yield from make_cluster(tmp_path, "--step-s", "0.02")


def ids(*words: int, chat: bool = True) -> list[int]:
    return [1, *words] if chat else list(words)


def says(prompt: Sequence[int], n: int) -> str:
    return toy_model.text(expected(2, prompt, n))


# -- one answer -------------------------------------------------------------------------------------


def test_the_answer_and_nothing_else_goes_to_standard_output(cluster: Cluster) -> None:
    done = cluster.run(QUESTION, "--max-tokens", "8", "--stats")
    assert (done.returncode, done.stdout) == (0, says(ids(5, 7, 11), 8))
    assert "as the plan says: layers a 0-1, b 2-3" in done.stderr
    assert re.search(r"4 prompt tokens \(\d+ cached\); 8 generated; the first after \d+ ms", done.stderr)
    assert "layers a 0-1, b 2-3" in done.stderr


def test_the_system_prompt_and_raw_text(cluster: Cluster) -> None:
    done = cluster.run(QUESTION, "--max-tokens", "4", "--system", "t9")
    assert done.stdout == says([9, *ids(5, 7, 11)], 4)
    done = cluster.run(QUESTION, "--max-tokens", "4", "--raw")
    assert done.stdout == says(ids(5, 7, 11, chat=False), 4)


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["-"], QUESTION, ids(5, 7, 11)),
        ([], QUESTION, ids(5, 7, 11)),
        ([QUESTION], "t3 t4\n", ids(3, 4, 5, 7, 11)),
        ([QUESTION, "--no-stdin"], "t3 t4\n", ids(5, 7, 11)),
        ([QUESTION], "", ids(5, 7, 11)),
        (["--prompt-file", "FILE"], "", ids(5, 7, 11)),
        (["--prompt-file", "-"], QUESTION, ids(5, 7, 11)),
    ],
    ids=["dash", "pipe", "both", "no-stdin", "empty", "file", "file-dash"],
)
def test_where_the_prompt_comes_from(
    cluster: Cluster, arguments: list[str], stdin: str, prompt: list[int], tmp_path: Path
) -> None:
    (tmp_path / "prompt").write_text(QUESTION)
    arguments = [str(tmp_path / "prompt") if word == "FILE" else word for word in arguments]
    done = cluster.run(*arguments, "--max-tokens", "4", input=stdin)
    assert (done.returncode, done.stdout) == (0, says(prompt, 4)), done.stderr


def test_a_file_beside_the_prompt_is_read_and_a_device_is_not(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "before").write_text("t3")
    with open(tmp_path / "before") as before:
        assert cluster.run("t4", "--max-tokens", "3", stdin=before).stdout == says(ids(3, 4), 3)
    with open("/dev/zero") as zeros:
        assert cluster.run("t4", "--max-tokens", "3", stdin=zeros).stdout == says(ids(4), 3)


def test_a_pipe_that_stays_open_is_waited_for_and_says_so(cluster: Cluster) -> None:
    read, write = os.pipe()
    child = subprocess.Popen(
        [*RUN, str(cluster.model), "--plan", str(cluster.plan), "t4", "--max-tokens", "3"],
        stdin=read,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environment,
    )
    os.close(read)
    assert child.stderr is not None
    assert "reading standard input as well" in child.stderr.readline()
    os.write(write, b"t3")
    os.close(write)
    out, _ = child.communicate(timeout=TIMEOUT_S)
    assert out == says(ids(3, 4), 3)


def test_events(cluster: Cluster) -> None:
    done = cluster.run(QUESTION, "--max-tokens", "5", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["token"] * 5 + ["summary"]
    assert all(list(line)[:2] == ["schema", "type"] and line["schema"] == "exo.run/1" for line in lines)
    assert "".join(line["text"] for line in lines[:-1]) == says(ids(5, 7, 11), 5)
    assert [line["id"] for line in lines[:-1]] == expected(2, ids(5, 7, 11), 5)
    summary = lines[-1]
    assert (summary["finish_reason"], summary["prompt_tokens"], summary["generated_tokens"]) == (
        "length",
        4,
        5,
    )
    assert summary["ttft_ms"] > 0
    if "run" in registry.names():
        assert all(problems(line, registry.json_schema("run")) == [] for line in lines)


def test_a_stop_string(cluster: Cluster) -> None:
    words = expected(2, ids(5, 7, 11), 8)
    done = cluster.run(QUESTION, "--max-tokens", "50", "--stop", f" t{words[3]} t{words[4]}", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(line["text"] for line in lines[:-1]) == toy_model.text(words[:3])
    assert lines[-1]["finish_reason"] == "stop"


def test_loaded_stages_are_used_again_without_a_plan(cluster: Cluster) -> None:
    assert cluster.run(QUESTION, "--max-tokens", "1").returncode == 0

    async def records() -> tuple[Node, ...]:
        source = KeyringSource()
        return tuple([await describe_at("127.0.0.1", node.port, source) for node in cluster.nodes])

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(cluster.home))
        found = asyncio.run(records())
        assert [node.stages[0].layers for node in found] == [(0, 2), (2, 4)]
        topology = cluster.home / "with-stages.json"
        TopologyFile(topology).update(lambda old: Topology(nodes=found))
    done = subprocess.run(
        [*RUN, str(cluster.model), QUESTION, "--max-tokens", "6", "--topology", str(topology)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        env=cluster.environment,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, says(ids(5, 7, 11), 6)), done.stderr
    assert "it is loaded already on a, b" in done.stderr


# -- what goes wrong --------------------------------------------------------------------------------


def last_error(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return error


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["hello", "--prompt-file", "x"], 2, "two prompts"),
        ([], 2, "the prompt is empty"),
        (["--no-stdin"], 2, "there is no prompt"),
        (["  "], 2, "the prompt is empty"),
        (["x", "--raw", "--system", "y"], 2, "--raw"),
        (["x", "--raw", "--no-think"], 2, "--raw"),
        (["x", "--top-p", "0"], 2, "--top-p 0"),
        (["x", "--stop", ""], 2, "stop string is empty"),
        (["x", "--temperature", "-1"], 2, "--temperature"),
        (["x", "--max-tokens", "0"], 2, "--max-tokens"),
        (["--prompt-file", "/does/not/exist"], 66, "no file"),
        (["x", "--max-tokens", "17000"], 65, "the model knows 16384"),
    ],
)
def test_bad_calls(cluster: Cluster, arguments: list[str], code: int, said: str) -> None:
    done = cluster.run(*arguments, "--json", input="")
    assert (done.returncode, done.stdout) == (code, "")
    assert said in last_error(done)["message"]


def test_a_model_that_is_not_there_and_one_without_a_tokenizer(cluster: Cluster, tmp_path: Path) -> None:
    cluster = Cluster(cluster.home, tmp_path / "nothing", cluster.plan, cluster.nodes, cluster.records)
    done = cluster.run("x", "--json")
    assert done.returncode == 66
    assert str(tmp_path / "nothing") in last_error(done)["message"]
    cluster.model = toy_model.write(tmp_path / "bare", tokenizer=False)
    done = cluster.run("x", "--json")
    assert done.returncode == 66
    assert "no tokenizer.json" in last_error(done)["message"]
    cluster.model = toy_model.write(tmp_path / "other", layers=3)
    done = cluster.run("x", "--json")
    assert done.returncode == 65
    assert "the plan is for another model" in last_error(done)["message"]


def test_a_node_that_dies_in_the_middle_is_named_and_what_came_is_kept(slow: Cluster) -> None:
    child = subprocess.Popen(
        [*RUN, str(slow.model), "--plan", str(slow.plan), QUESTION, "--max-tokens", "4000", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=slow.environment,
    )
    assert child.stdout is not None
    seen = [json.loads(child.stdout.readline()) for _ in range(5)]
    slow.nodes[1].child.kill()
    out, err = child.communicate(timeout=TIMEOUT_S)
    lines = [*seen, *(json.loads(line) for line in out.splitlines())]
    assert child.returncode == 69
    assert lines[-1]["type"] == "summary"
    assert lines[-1]["finish_reason"] == "error"
    got = [line["id"] for line in lines[:-1]]
    assert got == expected(2, ids(5, 7, 11), len(got))
    error = json.loads(err.splitlines()[-1])
    assert re.search("^b stopped answering, and the plan's nodes were tried again: .* b$", error["message"])
    assert "leave --plan out" in error["hint"]


def test_an_answer_goes_on_after_an_engine_ended(slow: Cluster) -> None:
    n = 200
    child = subprocess.Popen(
        [*RUN, str(slow.model), "--plan", str(slow.plan), QUESTION, "--max-tokens", str(n), "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=slow.environment,
    )
    assert child.stdout is not None
    seen = [json.loads(child.stdout.readline()) for _ in range(5)]
    slow.nodes[1].child.send_signal(signal.SIGUSR1)
    out, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0, err
    lines = [*seen, *(json.loads(line) for line in out.splitlines())]
    assert [line["id"] for line in lines[:-1]] == expected(2, ids(5, 7, 11), n)
    assert (lines[-1]["finish_reason"], lines[-1]["generated_tokens"]) == ("length", n)
    assert "the engine on b ended; going on on a and b\n" in err


def test_ctrl_c_ends_it_quickly_and_frees_the_chain(slow: Cluster) -> None:
    child = subprocess.Popen(
        [*RUN, str(slow.model), "--plan", str(slow.plan), QUESTION, "--max-tokens", "4000", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=slow.environment,
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["finish_reason"] == "cancelled"
    assert "Traceback" not in err


def test_a_reader_that_goes_away(slow: Cluster) -> None:
    child = subprocess.Popen(
        [*RUN, str(slow.model), "--plan", str(slow.plan), QUESTION, "--max-tokens", "4000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=slow.environment,
    )
    assert child.stdout is not None
    assert child.stdout.read(3)
    child.stdout.close()
    assert child.wait(TIMEOUT_S) == 141
    assert child.stderr is not None
    with closing(child.stderr):
        assert b"Traceback" not in child.stderr.read()


# -- at a terminal ----------------------------------------------------------------------------------


class Terminal:
    """A person's side of a terminal."""

    def __init__(self, cluster: Cluster, *arguments: str) -> None:
        self._us, theirs = pty.openpty()
        self.child = subprocess.Popen(
            [*RUN, str(cluster.model), "--plan", str(cluster.plan), *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**cluster.environment, "TERM": "xterm"},
            start_new_session=True,
            cwd=os.getcwd(),
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._us, text.encode())

    def until(self, text: str) -> str:
        """What came up to and with `text`, and is then forgotten."""
        give_up = time.monotonic() + TIMEOUT_S
        while text not in self.seen:
            assert time.monotonic() < give_up, f"no {text!r} in {self.seen!r}"
            readable, _, _ = select.select([self._us], [], [], 1.0)
            if readable:
                try:
                    self.seen += os.read(self._us, 65536).decode()
                except OSError:
                    raise AssertionError(f"it ended; no {text!r} in {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def interrupt_until(self, text: str) -> None:
        """Ctrl-C at the prompt; Python misses one that comes just before it waits for a key."""
        self._do_until(lambda: self.child.send_signal(signal.SIGINT), text)

    def say_until(self, line: str, text: str) -> None:
        """Type a line at the prompt; a Ctrl-C that came late takes what was typed with it."""
        self._do_until(lambda: self.type(line), text)

    def _do_until(self, act: Callable[[], None], text: str) -> None:
        give_up = time.monotonic() + TIMEOUT_S
        while text not in self.seen:
            assert time.monotonic() < give_up, f"no {text!r} in {self.seen!r}"
            act()
            if select.select([self._us], [], [], 0.5)[0]:
                self.seen += os.read(self._us, 65536).decode()
        self.until(text)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._us)


def test_a_chat(cluster: Cluster, tmp_path: Path) -> None:
    first, second = says(ids(5), 3), [1, 5, *expected(2, ids(5), 3), 1, 6]
    with closing(Terminal(cluster, "--max-tokens", "3")) as terminal:
        terminal.until(">>> ")
        terminal.type("t5\n")
        terminal.until(first)
        terminal.until(">>> ")
        terminal.type("t6\n")
        terminal.until(says(second, 3))  # it remembers
        terminal.until(">>> ")
        terminal.type(f"/save {tmp_path / 'chat.json'}\n")
        terminal.until("saved to")
        terminal.type("/save ~nobody-is-called-that/chat.json\n")
        terminal.until("cannot write")
        terminal.until(">>> ")
        terminal.type("/clear\n/system t9\n")
        terminal.until("system: t9")
        terminal.until(">>> ")
        terminal.type('"""t5\n')
        terminal.until("... ")
        terminal.type('t6"""\n')
        terminal.until(says([9, 1, 5, 6], 3))
        terminal.until(">>> ")
        terminal.type("/nonsense\n")
        terminal.until("there is no command /nonsense")
        terminal.until(">>> ")
        terminal.type("\x04")
        assert terminal.child.wait(TIMEOUT_S) == 0
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [message["content"] for message in saved["messages"]][:2] == ["t5", first]


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(slow: Cluster) -> None:
    with closing(Terminal(slow, "--max-tokens", "2000")) as terminal:
        terminal.until(">>> ")
        terminal.type("t5\n")
        terminal.until(says(ids(5), 4))
        terminal.child.send_signal(signal.SIGINT)
        terminal.until(">>> ")
        terminal.interrupt_until("Ctrl-D leaves")
        # Not the prompt: a second Ctrl-C just while it is written takes it from the screen.
        terminal.say_until("/clear\n", "forgotten")
        terminal.type("t7\n")
        terminal.until(says(ids(7), 4))
        terminal.child.send_signal(signal.SIGINT)
        terminal.until(">>> ")
        terminal.type("\x04")
        assert terminal.child.wait(TIMEOUT_S) == 0


def test_a_chat_goes_on_after_an_engine_ended(slow: Cluster) -> None:
    n = 200
    with closing(Terminal(slow, "--max-tokens", str(n))) as terminal:
        terminal.until(">>> ")
        terminal.type("t5\n")
        terminal.until(says(ids(5), 4))
        slow.nodes[1].child.send_signal(signal.SIGUSR1)
        terminal.until("the engine on b ended; going on on a and b\r\n")
        terminal.until(toy_model.text(expected(2, ids(5), n)[-5:]) + "\r\n")
        terminal.until(">>> ")
        terminal.type("t6\n")
        terminal.until(says([1, 5, *expected(2, ids(5), n), 1, 6], 4))  # it remembers all of it
        terminal.type("\x04")


def test_a_chat_goes_on_after_an_error(slow: Cluster) -> None:
    with closing(Terminal(slow, "--max-tokens", "2000")) as terminal:
        terminal.until(">>> ")
        terminal.type("t5\n")
        terminal.until(says(ids(5), 4))
        slow.nodes[1].child.kill()
        terminal.until("error: ")
        terminal.until(">>> ")
        terminal.type("t5\n")
        terminal.until("error: ")
        terminal.until(">>> ")
        terminal.type("\x04")
        assert terminal.child.wait(TIMEOUT_S) == 0


def test_an_answer_at_a_terminal_ends_its_line(cluster: Cluster) -> None:
    with closing(Terminal(cluster, QUESTION, "--max-tokens", "3")) as terminal:
        terminal.until(says(ids(5, 7, 11), 3) + "\r\n")
        assert terminal.child.wait(TIMEOUT_S) == 0


# -- pure -------------------------------------------------------------------------------------------


def test_a_models_text_does_nothing_to_the_screen() -> None:
    assert harmless("a\n\tb 👩\u200d💻 é") == "a\n\tb 👩\u200d💻 é"
    assert harmless("\x1b[31m\x07\x9b\r") == "\\x1b[31m\\x07\\x9b\\x0d"


def test_the_verb_imports_nothing_heavy() -> None:
    code = "import sys; from exo_cli.commands import run, run_chat, run_prompt, run_view; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"mlx", "mlx_lm", "transformers", "numpy", "grpc", "msgspec", "asyncio", "rich", "tokenizers"}
    assert heavy & {name.split(".")[0] for name in loaded.split()} == set()
    assert run_module.register is not None


def test_a_run_never_imports_mlx_or_transformers(cluster: Cluster) -> None:
    code = (
        "import sys; from exo_cli import cli; from exo_cli.commands import run;"
        "'run' in [c.name for c in cli.app.registered_commands] or run.register(cli.app);"
        "code = cli.run(sys.argv[1:]); print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "run",
            str(cluster.model),
            "--plan",
            str(cluster.plan),
            "--max-tokens=2",
            "t5",
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        env=cluster.environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stderr.splitlines()[-1].split()}
    assert "grpc" in loaded
    assert (
        loaded & {"mlx", "mlx_lm", "transformers", "numpy", "numba", "huggingface_hub", "pydantic"} == set()
    )
