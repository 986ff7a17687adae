"""Event lines: schema first, then type, one line each, null rather than absent."""

import json

import pytest

from exo_cli.schemas.events import (
    ErrorLine,
    Event,
    NodeLine,
    ReadyLine,
    RunSummary,
    StoppedLine,
    TokenLine,
    TopologyLine,
    line,
)
from exo_cli.schemas.findings import Explanation, Finding, InterfaceCount, Stranger
from exo_cli.schemas.topology import Topology
from tests.support.records import node

EXAMPLES: list[tuple[str, Event]] = [
    ('{"schema":"exo.error/1","type":"error",', ErrorLine(code="c", message="m\n\u2028", hint=None, exit=66)),
    ('{"schema":"exo.run/1","type":"token",', TokenLine(id=5, text='a"b\nc')),
    (
        '{"schema":"exo.run/1","type":"summary",',
        RunSummary(
            finish_reason="stop",
            prompt_tokens=1,
            cached_tokens=0,
            generated_tokens=2,
            ttft_ms=None,
            decode_tokens_per_s=None,
        ),
    ),
    ('{"schema":"exo.discover/1","type":"topology",', TopologyLine(topology=Topology(nodes=(node("a"),)))),
    ('{"schema":"exo.discover/1","type":"node",', NodeLine(change="joined", id="a", name="mac")),
    (
        '{"schema":"exo.serve-shard/1","type":"ready",',
        ReadyLine(id="a", name="mac", endpoint="192.168.1.7:52416", pid=1),
    ),
    ('{"schema":"exo.serve-shard/1","type":"stopped",', StoppedLine(reason="SIGTERM")),
    (
        '{"schema":"exo.explain/1","type":"explanation",',
        Explanation(
            interfaces=(
                InterfaceCount(
                    interface="en5",
                    kind="ethernet",
                    addresses=(),
                    sent=1,
                    send_errors={},
                    received=0,
                    accepted=0,
                    dropped={"replay": 1},
                ),
            ),
            strangers=(Stranger(address="a", fingerprint="f", reason="r", name="n", packets=1),),
            findings=(Finding(id="i", level="ok", about="en5", seen="1 sent"),),
        ),
    ),
]


@pytest.mark.parametrize(("start", "event"), EXAMPLES, ids=[type(event).__name__ for _, event in EXAMPLES])
def test_a_line_starts_with_schema_then_type(start: str, event: Event) -> None:
    text = line(event)
    assert text.startswith(start)
    assert "\n" not in text
    document = json.loads(text)
    assert list(document)[:2] == ["schema", "type"]
    assert set(document) == {"schema", "type", *event.__struct_fields__}


def test_every_event_has_an_example_here() -> None:
    # Of these two modules: which others are imported depends on the tests that ran before.
    here = (ErrorLine.__module__, Explanation.__module__)
    known = {kind for kind in Event.__subclasses__() if kind.__module__ in here}
    assert known == {type(event) for _, event in EXAMPLES}


def test_the_text_of_a_token_survives() -> None:
    assert json.loads(line(TokenLine(id=1, text="\x00 é\U0001f600\\")))["text"] == "\x00 é\U0001f600\\"
