"""What is wrong with a call is said in one sentence, with a hint and the documented exit code.

The table below is the documentation: what was typed, in which surroundings, and what comes of it.
Every row runs twice as a real process: once for a person, once for a program (--json).
"""

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from exo_cli import config
from exo_cli.errors import MEANINGS, Exit
from exo_cli.trust import keyfile
from tests.support.cli import exo

pytestmark = pytest.mark.process


@dataclass
class Surroundings:
    """Where a row runs: an empty home; `port` is held by another program."""

    here: Path
    port: int

    def topology(self, text: str) -> None:
        path = config.topology_path()
        path.parent.mkdir(parents=True)
        path.write_text(text)


Prepare = Callable[[Surroundings], None]


def nothing(_: Surroundings) -> None:
    pass


def topology(text: str) -> Prepare:
    return lambda at: at.topology(text)


def directory_for_topology(_: Surroundings) -> None:
    config.topology_path().mkdir(parents=True)


def open_key(_: Surroundings) -> None:
    keyfile.create(config.cluster_key_path(), (keyfile.new_secret(),))
    config.cluster_key_path().chmod(0o644)


def torn_key(_: Surroundings) -> None:
    config.cluster_key_path().parent.mkdir(parents=True, mode=0o700)
    config.cluster_key_path().write_text("exo-key-1\n")
    config.cluster_key_path().chmod(0o600)


def file_for_state(at: Surroundings) -> None:
    at.here.joinpath("home", ".local").write_text("a file is in the way")


def file_for_nodes(at: Surroundings) -> None:
    config.state_dir().mkdir(parents=True)
    config.nodes_dir().write_text("a file is in the way")


def file_for_config(at: Surroundings) -> None:
    at.here.joinpath("home", ".config").write_text("a file is in the way")


def odd_settings(at: Surroundings) -> None:
    at.here.joinpath("exo.toml").write_text("[discover]\nfour = 4\n")


def torn_identity(_: Surroundings) -> None:
    identity = config.nodes_dir() / "studio" / "node.json"
    identity.parent.mkdir(parents=True)
    identity.write_text('{"id":')


def node_without_endpoint(at: Surroundings) -> None:
    from exo_cli.cluster.topology_file import encode
    from exo_cli.schemas.topology import Topology
    from tests.support.records import node

    at.topology(encode(Topology(nodes=(node("a" * 32, name="studio", endpoint="nowhere"),))).decode())


TABLE = r"""
what                       | typed                                    | around                | code | sentence                                                          | hint
unknown option             | discover --wacht                         | nothing               |  2 | no such option '--wacht'; did you mean '--watch'\?                  | exo discover --help
unknown verb               | dicsover                                 | nothing               |  2 | no such verb 'dicsover'; did you mean 'discover'\?                  | exo --help
an argument too many       | discover studio                          | nothing               |  2 | 'exo discover' does not take the argument 'studio'                  | exo discover --help
no value                   | discover --for                           | nothing               |  2 | --for                                                               | exo discover --help
a duration that is none    | discover --for soon                      | nothing               |  2 | 'soon' is no duration for --for                                     | 30s
a negative duration        | discover --wait nodes=1 --timeout -3s    | nothing               |  2 | '-3s' is no duration for --timeout                                  | 30s
nothing to wait for        | discover --wait three                    | nothing               |  2 | 'three' is nothing to wait for                                      | --wait nodes=3
a negative number          | discover --wait nodes=-1                 | nothing               |  2 | 'nodes=-1' is nothing to wait for                                   | --wait nodes=3
unknown format             | discover --format png                    | nothing               |  2 | invalid value for --format: 'png'                                   | exo discover --help
unknown colour             | discover --color blue                    | nothing               |  2 | invalid value for --color: 'blue'                                   | exo discover --help
unknown measure            | discover --measure some                  | nothing               |  2 | invalid value for --measure: 'some'                                 | exo discover --help
no such interface          | discover --interface wlan99              | nothing               |  2 | there is no interface 'wlan99'                                      | This machine has: .*lo
no such interface          | serve-shard --interface wlan99           | nothing               |  2 | there is no interface 'wlan99'                                      | This machine has: .*lo
a port for no host         | discover --peer :52416                   | nothing               |  2 | ':52416' names no host                                              | --peer HOST
a port out of range        | discover --peer 127.0.0.1:70000          | nothing               |  2 | '127.0.0.1:70000' is no address                                     | HOST:PORT
a name that cannot be      | discover --peer LONG                     | nothing               |  2 | cannot find a host named 'x+'                                       | give the address
a name that cannot be      | serve-shard --peer LONG                  | nothing               |  2 | cannot find a host named 'x+'                                       | give the address
contradictions             | discover --watch --explain               | nothing               |  2 | --explain and --watch do not go together                            | Leave one of them out
an odd name                | serve-shard --name a/b                   | nothing               |  2 | 'a/b' is no name for a node                                         | letters, digits
an odd place to listen     | serve-shard --listen 127.0.0.1:http      | nothing               |  2 | '127.0.0.1:http' is no address to listen on                         | 0.0.0.0:52416
not without a key          | serve-shard --listen 0.0.0.0:52416       | nothing               | 77 | without a cluster key a node listens on this machine only           | exo key new
port taken                 | serve-shard --listen 127.0.0.1:PORT      | nothing               | 71 | port \d+ is taken by .* \(process \d+\)                             | another --listen
port taken                 | discover --announce --listen :PORT       | nothing               | 71 | port \d+ is taken by .* \(process \d+\)                             | another --listen
unreadable topology        | discover                                 | directory_for_topology| 74 | cannot read .*/topology.json: is a directory                        | ls -ld
unreadable topology        | serve-shard                              | directory_for_topology| 74 | cannot read .*/topology.json: is a directory                        | ls -ld
foreign JSON               | discover                                 | topology({"a":1})     | 65 | topology.json does not say which 'schema' it is                     | rm .*topology.json
foreign JSON               | serve-shard                              | topology({"a":1})     | 65 | topology.json does not say which 'schema' it is                     | rm .*topology.json
no JSON                    | discover                                 | topology(nodes: [])   | 65 | topology.json is not JSON                                           | rm .*topology.json
an empty file              | discover                                 | topology()            | 65 | topology.json is not JSON                                           | rm .*topology.json
another of our files       | discover                                 | topology({"schema":"exo.plan/1"})     | 65 | topology.json is an exo.plan/1, not an exo.topology/1 | rm .*topology.json
newer schema               | discover                                 | topology({"schema":"exo.topology/9"}) | 76 | is an exo.topology/9; this exo reads exo.topology/1   | Update exo
newer schema               | serve-shard                              | topology({"schema":"exo.topology/9"}) | 76 | is an exo.topology/9; this exo reads exo.topology/1   | Update exo
half a node                | discover                                 | topology({"schema":"exo.topology/1","nodes":[{}]}) | 65 | not a valid exo.topology/1.*missing required | rm .*topology.json
a node that is nowhere     | discover                                 | node_without_endpoint | 65 | the endpoint of studio is no address with a port                    | rm .*topology.json
key for all to read        | discover                                 | open_key              | 77 | cluster.key .*0644                                                  | chmod 600
key for all to read        | serve-shard                              | open_key              | 77 | cluster.key .*0644                                                  | chmod 600
half a key                 | discover                                 | torn_key              | 65 | cluster.key                                                         | .
no place for state         | serve-shard                              | file_for_nodes        | 73 | cannot keep this node's identity in .*: not a directory|file exists | XDG_STATE_HOME
no place for state         | discover                                 | file_for_state        | 74 | cannot read .*/topology.json: not a directory                       | ls -ld
no place for settings      | discover                                 | file_for_config       | 78 | cannot read .*config.toml: not a directory                          | remove the file
half an identity           | serve-shard --name studio                | torn_identity         | 65 | studio/node.json does not hold a node's identity                    | Remove it
log file in a missing place| discover --log-file missing/log          | nothing               | 73 | cannot write the log file missing/log: no such file or directory    | another --log-file
log file in a missing place| serve-shard --log-file missing/log       | nothing               | 73 | cannot write the log file missing/log: no such file or directory    | another --log-file
ready file in a missing place| serve-shard --ready-file missing/ready | nothing               | 73 | cannot write missing/ready: no such file or directory               | mkdir -p missing
wrong settings             | discover                                 | odd_settings          | 78 | ./exo.toml                                                          | .
"""  # noqa: E501


@dataclass(frozen=True)
class Row:
    what: str
    typed: tuple[str, ...]
    prepare: Prepare
    code: int
    sentence: str
    hint: str


def rows() -> Iterator[Row]:
    for line in TABLE.strip().splitlines()[1:]:
        # A bar without a space behind it belongs to a pattern.
        what, typed, around, code, sentence, hint = re.split(r"\s*\|\s+", line.strip())
        text = re.fullmatch(r"topology\((.*)\)", around)
        prepare: Prepare = topology(text[1]) if text else globals()[around]
        yield Row(what, tuple(typed.split()), prepare, int(code), sentence, hint)


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield Surroundings(tmp_path, held.getsockname()[1])


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: f"{row.typed[0]}: {row.what}")
def test_a_wrong_call_is_answered_with_a_sentence_a_hint_and_a_code(row: Row, at: Surroundings) -> None:
    row.prepare(at)
    typed = [word.replace("PORT", str(at.port)).replace("LONG", "x" * 70) for word in row.typed]

    told = exo(*typed)
    assert told.returncode == row.code, told.stderr
    assert told.stdout == ""
    error, hint = told.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert re.search(row.sentence, error, flags=re.IGNORECASE), error
    assert re.search(row.hint, hint), hint
    assert not error.endswith(".")

    answered = exo(typed[0], "--json", *typed[1:])
    assert answered.returncode == row.code
    assert answered.stdout == ""
    (line,) = answered.stderr.splitlines()
    event = json.loads(line)
    assert list(event)[:2] == ["schema", "type"]
    assert (event["schema"], event["type"], event["exit"]) == ("exo.error/1", "error", row.code)
    assert re.search(row.sentence, event["message"], flags=re.IGNORECASE)
    assert re.search(row.hint, event["hint"])


def test_every_code_of_the_table_is_a_documented_one() -> None:
    assert {Exit(row.code) for row in rows()} <= set(MEANINGS)


@pytest.mark.parametrize(
    ("variable", "value"), [("EXO_COLOR", "blue"), ("EXO_JSON", "perhaps"), ("EXO_INSECURE", "perhaps")]
)
def test_a_wrong_value_in_the_environment_names_the_variable(variable: str, value: str) -> None:
    done = exo("discover", env={**os.environ, variable: value})
    assert (done.returncode, done.stdout) == (78, "")
    assert f"the environment variable {variable}" in done.stderr
    assert "Traceback" not in done.stderr
