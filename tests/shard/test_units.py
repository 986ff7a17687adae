import configparser
import os
import plistlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.errors import UsageProblem
from exo_cli.shard.units import Unit, launchd, systemd

AWKWARD = [
    "/opt/my apps/exo",
    "serve-shard",
    "--name",
    "100% $HOME",
    "--peer",
    'it\'s "so"\\',
    "",
    "tab\tend",
]


def unit(words: list[str], **changes: object) -> Unit:
    settings: dict[str, object] = {"home": Path("/home/u"), "directory": None, "stop_s": 45}
    return Unit(words=words, **{**settings, **changes})  # type: ignore[arg-type]


def sections(text: str) -> configparser.RawConfigParser:
    parsed = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(text)
    return parsed


def words_of(line: str, variables: bool = True) -> list[str]:
    """An ExecStart line as systemd reads it: C quotes, %% for %, $$ for $."""
    found: list[str] = []
    at = 0
    plain = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}
    while at < len(line):
        if line[at] == " ":
            at += 1
            continue
        word, quoted = "", line[at] == '"'
        at += quoted
        while at < len(line) and line[at] != ('"' if quoted else " "):
            if line[at] == "\\" and line[at + 1] == "x":
                word += chr(int(line[at + 2 : at + 4], 16))
                at += 4
            elif line[at] == "\\":
                word += plain[line[at + 1]]
                at += 2
            else:
                word += line[at]
                at += 1
        at += quoted
        assert "%" not in word.replace("%%", "")
        word = word.replace("%%", "%")
        if found and variables:
            assert "$" not in word.replace("$$", "")
            word = word.replace("$$", "$")
        found.append(word)
    return found


def test_a_systemd_unit_says_how_it_starts_and_ends() -> None:
    parsed = sections(systemd(unit(["/bin/exo", "serve-shard"], environment={"XDG_CONFIG_HOME": "/a b/%c"})))
    assert parsed["Unit"]["After"] == "network-online.target"
    service = parsed["Service"]
    assert service["ExecStart"] == "/bin/exo serve-shard"
    assert service["Restart"] == "on-failure"
    assert (service["KillSignal"], service["KillMode"], service["TimeoutStopSec"]) == (
        "SIGTERM",
        "mixed",
        "45",
    )
    assert service["Environment"] == '"XDG_CONFIG_HOME=/a b/%%c"'
    assert "WorkingDirectory" not in service
    assert parsed["Install"]["WantedBy"] == "default.target"


def test_it_says_where_it_goes() -> None:
    text = systemd(unit(["/bin/exo"]))
    assert text.startswith("# Save it as ~/.config/systemd/user/exo-serve-shard.service")
    assert "systemctl --user enable --now exo-serve-shard.service" in text
    assert "launchctl bootstrap" in launchd(unit(["/bin/exo"]))
    assert "~/Library/LaunchAgents/exo-serve-shard.plist" in launchd(unit(["/bin/exo"]))


def test_words_survive_systemds_quoting() -> None:
    line = sections(systemd(unit(AWKWARD)))["Service"]["ExecStart"]
    assert words_of(line) == AWKWARD


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), max_size=4))
def test_any_word_survives(words: list[str]) -> None:
    # configparser ends lines where systemd does not.
    text = systemd(unit(["/bin/exo", *words]))
    (line,) = (each.partition("=")[2] for each in text.split("\n") if each.startswith("ExecStart="))
    assert words_of(line) == ["/bin/exo", *words]


def test_a_launchd_agent_is_a_property_list() -> None:
    told = unit(AWKWARD, environment={"HF_HOME": "/models"}, directory=Path("/work dir"))
    parsed = plistlib.loads(launchd(told).encode())
    assert parsed["ProgramArguments"] == AWKWARD
    assert parsed["RunAtLoad"] is True
    assert parsed["KeepAlive"] == {"SuccessfulExit": False}
    assert parsed["ExitTimeOut"] == 45
    assert parsed["StandardErrorPath"] == "/home/u/Library/Logs/exo-serve-shard.log"
    assert parsed["EnvironmentVariables"] == {"HF_HOME": "/models"}
    assert parsed["WorkingDirectory"] == "/work dir"


def test_what_a_property_list_cannot_hold_is_said() -> None:
    with pytest.raises(UsageProblem, match="control characters"):
        launchd(unit(["/bin/exo", "\x1b"]))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="where systemd is, it reads the unit too")
def test_systemd_takes_it(tmp_path: Path) -> None:
    program = tmp_path / "my exo"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    told = unit([str(program), *AWKWARD[1:]], directory=tmp_path, environment={"A": "b c"})
    (tmp_path / "exo.service").write_text(systemd(told))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(tmp_path / "exo.service")],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
