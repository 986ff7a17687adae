"""topology.json's contract: the keys and their order, round trips, and what is refused with which words."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given

from exo_cli.errors import BadData, ExoError, VersionMismatch
from exo_cli.schemas.decode import MAX_DOCUMENT_BYTES, decode
from exo_cli.schemas.topology import SCHEMA, LoadedStage, Rate, Topology
from tests.support.records import link, node
from tests.support.strategies import TOPOLOGIES


def _decode(data: bytes) -> Topology:
    return decode(data, Topology, schema=SCHEMA, where="t.json", hint="rm t.json")


def _document(**changes: Any) -> dict[str, Any]:
    rate = Rate(format="affine4", decode_bytes_per_s=1e11, prefill_flop_per_s=1e13, measured_unix_ms=1)
    stage = LoadedStage(model="m", layers=(0, 8), state="ready", kv_free_bytes=5)
    whole = Topology(
        generation=7,
        nodes=(node("a", rates=(rate,), stages=(stage,)), node("b")),
        links=(link("a", "b"),),
    )
    return json.loads(msgspec.json.encode(whole)) | changes  # type: ignore[no-any-return]


def _in_order(expected: str, found: dict[str, Any]) -> bool:
    """Whether the keys of the design stand there in its order; keys added since may stand between."""
    keys = iter(found)
    return all(name in keys for name in expected.split())


def test_the_keys_are_the_designs_in_its_order() -> None:
    document = _document()
    assert list(document) == ["schema", "generation", "nodes", "links"]
    assert document["schema"] == "exo.topology/1"
    first = document["nodes"][0]
    assert _in_order(
        "id name state endpoint boot seq version addresses os chip cores backend memory rates stages"
        " seen_unix_ms",
        first,
    )
    assert list(first["addresses"][0]) == ["interface", "kind", "ip"]
    assert list(first["memory"]) == ["ram_bytes", "limit_bytes", "free_bytes"]
    assert _in_order("format decode_bytes_per_s prefill_flop_per_s measured_unix_ms", first["rates"][0])
    assert _in_order("model layers state kv_free_bytes", first["stages"][0])
    assert _in_order(
        "from to interface kind rtt_us_p50 rtt_us_p99 bytes_per_s limited_by measured_unix_ms",
        document["links"][0],
    )


def test_null_rather_than_absent() -> None:
    bare = json.loads(
        msgspec.json.encode(Topology(nodes=(node("a"),), links=(link("a", "a", bytes_per_s=None),)))
    )
    assert bare["nodes"][0]["loopback_bytes_per_s"] is None
    assert {"limited_by", "error", "bytes_per_s"} <= {
        key for key, value in bare["links"][0].items() if value is None
    }


@given(TOPOLOGIES)
def test_what_is_written_is_read_back(topology: Topology) -> None:
    assert _decode(msgspec.json.encode(topology)) == topology


def test_unknown_keys_are_accepted() -> None:
    document = _document(added="later")
    document["nodes"][0]["added"] = {"deep": [1, -2]}
    assert _decode(json.dumps(document).encode()).generation == 7


def _with(path: list[str | int], value: object) -> bytes:
    document: Any = _document()
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(document).encode()


REFUSED: list[tuple[str, bytes, type[ExoError], str]] = [
    ("empty", b"", BadData, "not JSON"),
    ("binary", bytes(range(256)) * 4, BadData, "not JSON"),
    ("truncated", json.dumps(_document()).encode()[:-9], BadData, "not JSON"),
    ("two documents", json.dumps(_document()).encode() * 2, BadData, "not JSON"),
    ("byte order mark", b"\xef\xbb\xbf{}", BadData, "not JSON"),
    ("nested too deeply", b'{"x":' + b"[" * 400_000, BadData, "nested too deeply"),
    ("not UTF-8", b'{"schema":"\xff"}', BadData, "not UTF-8"),
    ("lone surrogate", _with(["nodes", 0, "name"], "\ud800"), BadData, "not JSON|not a valid"),
    ("an array", b"[1,2]", BadData, "does not say which 'schema'"),
    ("no schema", b'{"name":"left-pad","version":"1.0.0"}', BadData, "does not say which 'schema'"),
    ("schema is a number", b'{"schema":1}', BadData, "does not say which 'schema'"),
    ("a plan", b'{"schema":"exo.plan/1"}', BadData, "is an exo.plan/1, not an exo.topology/1"),
    ("foreign", b'{"schema":"https://json-schema.org/draft"}', BadData, "unknown schema"),
    ("control characters", b'{"schema":"\\u001b[2J"}', BadData, r"unknown schema \('\\x1b\[2J'\)"),
    ("newer", b'{"schema":"exo.topology/2"}', VersionMismatch, "exo.topology/2; this exo reads"),
    ("much newer", b'{"schema":"exo.topology/12"}', VersionMismatch, "exo.topology/12"),
    ("older", b'{"schema":"exo.topology/0"}', VersionMismatch, "too old"),
    ("nodes is an object", _with(["nodes"], {}), BadData, r"array.*`\$\.nodes`"),
    ("a string for a number", _with(["nodes", 1, "cores"], "8"), BadData, r"`\$\.nodes\[1?.*\]\.cores`"),
    ("an unknown state", _with(["nodes", 0, "state"], "asleep"), BadData, r"'asleep'.*state`"),
    ("a missing key", json.dumps(_document(links=[{"from": "a"}])).encode(), BadData, r"`to`.*\$\.links"),
    ("link from a number", _with(["links", 0, "from"], 3), BadData, r"\.from`"),
    (
        "negative size",
        _with(["nodes", 1, "memory", "free_bytes"], -1),
        BadData,
        r"\$\.nodes\[1\]\.memory\.free_bytes",
    ),
    ("size of 2**63", _with(["nodes", 0, "memory", "ram_bytes"], 2**63), BadData, "out of range.*ram_bytes"),
    ("huge integer", _with(["nodes", 0, "memory", "ram_bytes"], 10**400), BadData, "out of range.*ram_bytes"),
    ("negative speed", _with(["links", 0, "bytes_per_s"], -0.5), BadData, "out of range.*bytes_per_s"),
    (
        "infinite",
        _with(["links", 0, "bytes_per_s"], 1).replace(b'_per_s": 1,', b'_per_s": 1e999,'),
        BadData,
        "range",
    ),
    ("not a number", _with(["links", 0, "rtt_us_p50"], float("nan")), BadData, "not JSON"),
    ("negative generation", json.dumps(_document(generation=-1)).encode(), BadData, r"\$\.generation"),
    ("one id twice", _with(["nodes", 1, "id"], "a"), BadData, "the node 'a' is in it twice"),
    (
        "one link twice",
        json.dumps(_document(links=_document()["links"] * 2)).encode(),
        BadData,
        "'a to b'.*twice",
    ),
    ("too large", b" " * (MAX_DOCUMENT_BYTES + 1), BadData, "larger than 16 MiB"),
]


@pytest.mark.parametrize(
    ("data", "error", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_is_refused_and_how(data: bytes, error: type[ExoError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        _decode(data)
    assert type(caught.value) is error
    assert caught.value.message.startswith("t.json ")
    assert "\n" not in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint
    if error is VersionMismatch and b"/0" not in data:
        assert "Update exo" in caught.value.hint


def test_the_largest_numbers_are_accepted() -> None:
    assert (
        _decode(_with(["nodes", 0, "memory", "ram_bytes"], 2**63 - 1)).nodes[0].memory.ram_bytes == 2**63 - 1
    )
