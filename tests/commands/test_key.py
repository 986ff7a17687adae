import base64
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exo_cli import config
from exo_cli.cli import run
from exo_cli.trust import keyfile
from exo_cli.trust.derive import fingerprint

CANARY = b"canary-secret-of-thirty-2-bytes!"
OLD, ELSE = CANARY, bytes(range(32))
TOLD = [
    CANARY.decode(), CANARY.hex(), base64.b64encode(CANARY).decode()[:20],
    base64.urlsafe_b64encode(CANARY).decode()[:20], repr(CANARY)[2:20],
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.out)
        assert list(said)[:2] == ["schema", "type"]
        assert said["schema"] == "exo.key/1"
        assert self.out.count("\n") == 1
        return said


Exo = Callable[..., Done]


@pytest.fixture
def exo(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Exo:
    """`exo key …` in this process; what it writes is also searched for the canary unless `secret` is set."""

    def call(*arguments: str, stdin: bytes = b"", secret: bool = False) -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        code = int(run(["key", *arguments]))
        done = Done(code, *capfd.readouterr())
        if not secret:
            assert not any(text in done.out + done.err for text in TOLD)
        return done

    return call


@pytest.fixture
def key(clean_environment: Path) -> Path:
    """This machine has the canary as its cluster key."""
    keyfile.create(config.cluster_key_path(), [CANARY])
    return config.cluster_key_path()


def bundle(*secrets: bytes) -> bytes:
    return keyfile.encode(secrets)


# -- new -------------------------------------------------------------------------------------------


def test_new(exo: Exo) -> None:
    first = exo("new")
    path = config.cluster_key_path()
    assert (first.code, first.out) == (0, fingerprint(keyfile.read(path)[0]) + "\n")
    assert "hint: " in first.err
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    again = exo("new")
    assert (again.code, again.out) == (73, "")
    assert "exo key rotate" in again.err
    kept = exo("new", "--if-missing", "--json")
    assert (kept.code, kept.json["changed"], kept.json["fingerprints"]) == (0, False, [first.out.strip()])


def test_new_as_json(exo: Exo) -> None:
    made = exo("new", "--json")
    assert (made.code, made.err) == (0, "")
    assert made.json == {
        "schema": "exo.key/1",
        "type": "change",
        "verb": "new",
        "changed": True,
        "path": str(config.cluster_key_path()),
        "fingerprints": [fingerprint(keyfile.read(config.cluster_key_path())[0])],
        "dropped": [],
    }


def test_quiet_prints_the_id_alone(exo: Exo) -> None:
    done = exo("new", "-q")
    assert (len(done.out), done.err) == (17, "")


# -- export ----------------------------------------------------------------------------------------


def test_what_is_exported_is_joined(exo: Exo, key: Path) -> None:
    written = exo("export", secret=True)
    assert (written.code, written.err) == (0, "")
    assert keyfile.decode(written.out.encode(), "it") == (CANARY,)
    key.unlink()
    joined = exo("join", "-", stdin=written.out.encode())
    assert (joined.code, joined.out) == (0, fingerprint(CANARY) + "\n")
    assert keyfile.read(key) == (CANARY,)


def test_export_carries_both_keys_of_a_rotation(exo: Exo, key: Path) -> None:
    exo("rotate")
    assert keyfile.decode(exo("export", secret=True).out.encode(), "it") == keyfile.read(key)
    assert keyfile.read(key)[1] == CANARY


def test_export_to_a_file(exo: Exo, key: Path, tmp_path: Path) -> None:
    to = tmp_path / "bundle"
    done = exo("export", "-o", str(to), "--json")
    assert (done.code, done.json["path"], done.json["bundle"]) == (0, str(to), None)
    assert to.stat().st_mode & 0o777 == 0o600
    assert keyfile.read(to) == (CANARY,)
    assert exo("export", "-o", str(to)).code == 0
    exo("rotate")
    other = exo("export", "-o", str(to))
    assert (other.code, keyfile.read(to)) == (73, (CANARY,))


def test_export_as_json(exo: Exo, key: Path) -> None:
    said = exo("export", "--json", secret=True).json
    assert keyfile.decode(said["bundle"].encode(), "it") == (CANARY,)
    assert (said["path"], said["fingerprints"]) == (None, [fingerprint(CANARY)])


def test_there_is_nothing_to_export_without_a_key(exo: Exo) -> None:
    exo("show")
    done = exo("export")
    assert (done.code, done.out) == (66, "")
    assert "exo key new" in done.err


def in_a_terminal(*arguments: str, stdin: bool = False, stdout: bool = False) -> Done:
    """`exo key …` as a process with a terminal at one end."""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "exo_cli", "key", *arguments],
            stdin=theirs if stdin else subprocess.DEVNULL,
            stdout=theirs if stdout else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
        os.set_blocking(ours, False)
        try:
            shown = os.read(ours, 65536)
        except BlockingIOError:
            shown = b""
    finally:
        os.close(ours)
        os.close(theirs)
    return Done(done.returncode, (done.stdout or b"").decode() + shown.decode(), done.stderr.decode())


@pytest.mark.process
def test_a_terminal_is_neither_shown_nor_asked_for_the_key(key: Path) -> None:
    hint = "exo key export | ssh HOST exo key join -"
    for done in (
        in_a_terminal("export", stdout=True),
        in_a_terminal("export", "--json", stdout=True),
        in_a_terminal("join", "-", stdin=True),
    ):
        assert (done.code, done.out) == (2, "")
        assert hint in done.err
    assert in_a_terminal("show", stdout=True).code == 0


# -- join ------------------------------------------------------------------------------------------


def test_join_a_file(exo: Exo, tmp_path: Path) -> None:
    file = tmp_path / "my bundle"
    keyfile.create(file, [OLD])
    assert exo("join", str(file), "--json").json["changed"] is True
    again = exo("join", str(file), "--json").json
    assert (again["verb"], again["changed"], again["fingerprints"]) == ("join", False, [fingerprint(OLD)])
    file.chmod(0o644)
    exposed = exo("join", str(file))
    assert exposed.code == 77
    assert f"chmod 600 '{file}'" in exposed.err
    assert f"exo key join - < '{file}'" in exposed.err
    assert exo("join", str(tmp_path / "none")).code == 66


def test_another_cluster_is_not_joined_by_accident(exo: Exo, key: Path) -> None:
    done = exo("join", "-", stdin=bundle(ELSE))
    assert (done.code, done.out) == (73, "")
    assert "--replace" in done.err
    assert keyfile.read(key) == (CANARY,)
    replaced = exo("join", "-", "--replace", "--json", stdin=bundle(ELSE)).json
    assert (replaced["changed"], replaced["dropped"]) == (True, [fingerprint(CANARY)])
    assert keyfile.read(key) == (ELSE,)


def test_a_rotation_is_joined_and_finished(exo: Exo, key: Path) -> None:
    done = exo("join", "-", stdin=bundle(ELSE, OLD))
    assert (done.code, done.out) == (0, fingerprint(ELSE) + "\n")
    assert keyfile.read(key) == (ELSE, OLD)
    finished = exo("rotate", "--finish", "--json").json
    assert (finished["verb"], finished["changed"], finished["dropped"]) == (
        "finish",
        True,
        [fingerprint(OLD)],
    )
    assert exo("rotate", "--finish", "--json").json["changed"] is False
    assert keyfile.read(key) == (ELSE,)


@pytest.mark.parametrize(
    ("stdin", "code"),
    [(b"", 65), (b"hello\n", 65), (b"exo.key/1\n", 65), (b"exo.key/2\nA\n", 76), (b"\xff" * 9000, 65)],
)
def test_join_garbage(exo: Exo, stdin: bytes, code: int) -> None:
    done = exo("join", "-", stdin=stdin)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: standard input ")
    assert not config.cluster_key_path().exists()


# -- show ------------------------------------------------------------------------------------------


def test_show_without_a_key_says_local_and_makes_nothing(exo: Exo, clean_environment: Path) -> None:
    done = exo("show")
    assert done.code == 0
    assert "kind\tlocal\n" in done.out
    assert "loopback" in done.out
    assert "exo key new" in done.err
    assert os.listdir(clean_environment) == []
    keyfile.create(config.local_key_path(), [CANARY])
    said = exo("show", "--json").json
    assert (said["kind"], said["mode"], said["fingerprints"]) == ("local", "0600", [fingerprint(CANARY)])


def test_show(exo: Exo, key: Path) -> None:
    assert exo("show", "--json").json == {
        "schema": "exo.key/1",
        "type": "key",
        "kind": "cluster",
        "path": str(key),
        "mode": "0600",
        "fingerprints": [fingerprint(CANARY)],
        "rotating": False,
    }
    rows = dict(line.split("\t") for line in exo("show").out.splitlines())
    assert (rows["kind"], rows["fingerprint"], rows["mode"]) == ("cluster", fingerprint(CANARY), "0600")
    assert exo("show", "-q").out == fingerprint(CANARY) + "\n"
    exo("rotate")
    rows = dict(line.split("\t") for line in exo("show").out.splitlines())
    assert (rows["previous"], rows["rotating"]) == (fingerprint(CANARY), "yes")
    assert exo("show", "-q").out.splitlines()[1] == fingerprint(CANARY)


# -- rotate ----------------------------------------------------------------------------------------


def test_rotate(exo: Exo, key: Path) -> None:
    done = exo("rotate", "--json").json
    assert (done["verb"], done["changed"], done["fingerprints"][1]) == ("rotate", True, fingerprint(CANARY))
    again = exo("rotate")
    assert (again.code, again.out) == (73, "")
    assert "exo key rotate --finish" in again.err


@pytest.mark.parametrize("arguments", [("rotate",), ("rotate", "--finish")])
def test_there_is_nothing_to_rotate_without_a_key(exo: Exo, arguments: tuple[str, ...]) -> None:
    done = exo(*arguments)
    assert (done.code, "exo key new" in done.err) == (66, True)


# -- all of them -----------------------------------------------------------------------------------

VERBS = [
    ("new",),
    ("new", "--if-missing"),
    ("export",),
    ("export", "-o", "bundle"),
    ("join", "-"),
    ("join", "--replace", "-"),
    ("show",),
    ("rotate",),
    ("rotate", "--finish"),
]


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_an_exposed_key_is_refused_by_every_verb(exo: Exo, key: Path, arguments: tuple[str, ...]) -> None:
    key.chmod(0o644)
    done = exo(*arguments, stdin=bundle(ELSE))
    assert (done.code, done.out) == (77, "")
    assert f"hint: chmod 600 {key}" in done.err
    said = json.loads(exo(*arguments, "--json", stdin=bundle(ELSE)).err)
    assert (said["schema"], said["exit"], said["hint"]) == ("exo.error/1", 77, f"chmod 600 {key}")


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_the_secret_is_in_no_output_log_or_traceback(
    exo: Exo, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXO_DEBUG", "1")
    log = tmp_path / "log"
    good = bundle(CANARY)
    # As it should be; then a file with the key and damage, and the same on standard input; then a bug.
    for content in (good, good + good, good[:-2], good.replace(b"exo.key/1", b"exo.key/9")):
        key.write_bytes(content)
        exports = content is good and arguments == ("export",)
        exo(*arguments, "-vv", "--log-file", str(log), stdin=content, secret=exports)
        exo(*arguments, "--json", stdin=content, secret=exports)
    key.write_bytes(good)

    def broken(secrets: object) -> bytes:
        raise RuntimeError("a bug while a secret is at hand")

    monkeypatch.setattr(keyfile, "encode", broken)
    for _ in range(2):
        exo(*arguments, "-vv", "--log-file", str(log), stdin=good)
    assert not any(text in log.read_text() for text in TOLD)


HEAVY = {
    "grpc",
    "cryptography",
    "msgspec",
    "numpy",
    "mlx",
    "transformers",
    "pydantic",
    "huggingface_hub",
    "asyncio",
}


@pytest.mark.process
def test_help_starts_light_with_examples_first() -> None:
    for verb in ("", "new", "export", "join", "show", "rotate"):
        program = "import sys; from exo_cli.cli import run; run(sys.argv[1:]); print(*sys.modules)"
        arguments = [word for word in ("key", verb, "--help") if word]
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        text, _, modules = done.stdout.rstrip("\n").rpartition("\n")
        assert not HEAVY & set(modules.split())
        assert text.index("Examples:") < text.index("Options:")
        assert "--json" in text or not verb
