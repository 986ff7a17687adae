"""The doctor's fixtures, and the diagnosis that each has to reach."""

import json
from pathlib import Path
from typing import Any

from exo_cli.rdma.capture import Capture, Said
from exo_cli.schemas.doctor import RdmaCheck
from exo_cli.schemas.findings import Finding

CAPTURES = Path(__file__).parents[1] / "rdma" / "captures"
ALL = sorted(path.name for path in CAPTURES.iterdir() if path.is_dir())
READABLE = [name for name in ALL if not name.startswith("manifest-")]


def expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CAPTURES / name / "expected.json").read_text())
    assert found["schema"] == "exo.capture-expected/1"
    return found


def troubles(check: RdmaCheck) -> list[Finding]:
    """What is not ok, in order."""
    return [finding for finding in check.findings if finding.level in ("failure", "warning")]


def slugs(check: RdmaCheck) -> set[str]:
    return {finding.id for finding in troubles(check)}


def steps(finding: Finding) -> str:
    return " ".join(filter(None, (finding.do, *finding.then)))


def with_text(capture: Capture, name: str, output: bytes, *, exit_code: int | None = None) -> Capture:
    """The capture with another text of that name."""
    old = capture.texts.get(name, Said(0))
    said = Said(old.exit if exit_code is None else exit_code, output, old.error)
    return Capture(capture.platform, capture.node, {**capture.texts, name: said})


def replaced(capture: Capture, name: str, old: str, new: str) -> Capture:
    text = capture.texts[name].output.decode()
    assert old in text, (name, old)
    return with_text(capture, name, text.replace(old, new).encode())
