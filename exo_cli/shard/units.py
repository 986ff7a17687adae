"""Units that start a node at boot, for systemd and launchd. Pure: words in, text out.

Knows nothing of which options there are.
"""

import plistlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from exo_cli.errors import UsageProblem

NAME: Final = "exo-serve-shard"
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class Unit:
    """What is started, and how long it may take to end."""

    words: Sequence[str]
    home: Path
    directory: Path | None
    """Where it runs, if that matters."""
    stop_s: int
    environment: Mapping[str, str] = field(default_factory=dict)


def systemd(unit: Unit) -> str:
    """A user unit."""
    # systemd looks for specifiers everywhere, and for variables in the words after the first.
    program, *arguments = map(_quoted, unit.words)
    words = " ".join((program, *(word.replace("$", "$$") for word in arguments)))
    settings = [f"Environment={_quoted(f'{name}={value}')}" for name, value in unit.environment.items()]
    if unit.directory is not None:
        settings.append(f"WorkingDirectory={_percent(str(unit.directory))}")
    return "\n".join(
        (
            f"# Save it as ~/.config/systemd/user/{NAME}.service, then type",
            f"#   systemctl --user daemon-reload && systemctl --user enable --now {NAME}.service",
            '#   loginctl enable-linger "$USER"',
            "# The last line starts it at boot, and not only when you log in.",
            "[Unit]",
            "Description=exo serve-shard: this machine as a node of the cluster",
            "Wants=network-online.target",
            "After=network-online.target",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={words}",
            *settings,
            "Restart=on-failure",
            "RestartSec=2",
            # The engines end with the node, after their last request.
            "KillMode=mixed",
            "KillSignal=SIGTERM",
            f"TimeoutStopSec={unit.stop_s}",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        )
    )


def launchd(unit: Unit) -> str:
    """An agent's property list."""
    log = str(unit.home / "Library" / "Logs" / f"{NAME}.log")
    body: dict[str, object] = {
        "Label": NAME,
        "ProgramArguments": list(unit.words),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Interactive",
        "ExitTimeOut": unit.stop_s,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    if unit.directory is not None:
        body["WorkingDirectory"] = str(unit.directory)
    if unit.environment:
        body["EnvironmentVariables"] = dict(unit.environment)
    try:
        text = plistlib.dumps(body, sort_keys=False).decode()
    except ValueError as error:
        raise UsageProblem(
            "a property list cannot hold control characters", hint="Choose other names and paths."
        ) from error
    where = f"~/Library/LaunchAgents/{NAME}.plist"
    note = (
        f"<!-- Save it as {where}, then type\n"
        f"       launchctl bootstrap gui/$(id -u) {where}\n"
        "     It starts whenever you log in. To start it at boot, without anybody logged in, save it in\n"
        "     /Library/LaunchDaemons with a UserName, and bootstrap it as root into the domain system. -->\n"
    )
    head, doctype, rest = text.partition("<plist ")
    return head + note + doctype + rest


def _quoted(word: str) -> str:
    """One word in systemd's quoting, which is C's, with its percent specifiers switched off."""
    escaped = "".join(_ESCAPES.get(char, char) for char in word)
    escaped = re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", escaped)
    plain = word and escaped == word and re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", word)
    return _percent(escaped if plain else f'"{escaped}"')


def _percent(text: str) -> str:
    return text.replace("%", "%%")
