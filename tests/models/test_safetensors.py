"""Safetensors headers: what is read, and a corpus of files that must be refused with one sentence."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.errors import BadData, NotFound
from exo_cli.models.safetensors import MAX_HEADER_BYTES, Header, parse_header, read_header

GOOD: dict[str, Any] = {
    "__metadata__": {"format": "mlx"},
    "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [16, 28]},
    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    "empty": {"dtype": "U32", "shape": [0, 8], "data_offsets": [28, 28]},
    "one": {"dtype": "I64", "shape": [], "data_offsets": [28, 36]},
}


def file_of(header: object, data_bytes: int = 36) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def changed(**entry: Any) -> bytes:
    return file_of({**GOOD, "a": {**GOOD["a"], **entry}})


def test_a_good_file_says_where_every_tensor_lies(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(GOOD))
    header = read_header(path)
    found = {info.name: info for info in header.tensors}
    assert set(found) == {"a", "b", "empty", "one"}
    assert (found["b"].dtype, found["b"].shape) == ("BF16", (2, 3))
    assert (found["b"].start, found["b"].end) == (header.data_start + 16, header.data_start + 28)
    assert found["b"].nbytes == 12
    assert found["one"].shape == ()
    assert {info.file for info in header.tensors} == {"model.safetensors"}


def test_the_hash_is_of_the_header_alone() -> None:
    one, other = file_of(GOOD), bytearray(file_of(GOOD))
    other[-1] = 9
    assert parsed(one).sha256 == parsed(bytes(other)).sha256
    assert parsed(one).sha256 != parsed(changed(dtype="I32")).sha256


def parsed(data: bytes) -> Header:
    return parse_header(data, file="model.safetensors", size=len(data))


BAD: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes long"),
    "shorter than its length": (b"\x01\x02", "2 bytes long"),
    "a header as long as memory": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "at most"),
    "a header of 2**63": (struct.pack("<Q", 2**63) + b"{}", "at most"),
    "cut off in the header": (file_of(GOOD)[:40], "ends inside its header"),
    "cut off in a tensor": (file_of(GOOD)[:-1], "tensor 'one' ends at byte"),
    "not JSON": (file_of(b"{,}"), "not JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not JSON"),
    "a list": (file_of(b"[1]"), "not a JSON object"),
    "spaces first": (file_of(b" {}"), "not a JSON object"),
    "nested too deeply": (file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
    "a number of many digits": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "a name twice": (file_of(b'{"a":{"dtype":"U8"},"a":{}}'), "'a' twice"),
    "metadata of numbers": (file_of({**GOOD, "__metadata__": {"n": 1}}), "__metadata__"),
    "no description": (file_of({**GOOD, "a": 3}), "tensor 'a' is not described"),
    "unknown dtype": (changed(dtype="F7"), "tensor 'a' has the unknown dtype 'F7'"),
    "dtype of another type": (changed(dtype=["F32"]), "unknown dtype"),
    "no shape": (changed(shape=None), "tensor 'a' has no usable shape"),
    "a negative dimension": (changed(shape=[-4]), "no usable shape"),
    "a dimension of 2**40": (changed(shape=[2**40]), "no usable shape"),
    "a dimension that is a truth value": (changed(shape=[True]), "no usable shape"),
    "a fraction of a dimension": (changed(shape=[4.0]), "no usable shape"),
    "nine dimensions": (changed(shape=[1] * 9), "no usable shape"),
    "sizes that overflow": (changed(shape=[2**31 - 1] * 8), "tensor 'a' has 16 bytes"),
    "fewer bytes than the shape": (changed(shape=[5]), "16 bytes where F32 [5] needs 20"),
    "offsets the wrong way": (changed(data_offsets=[16, 0]), "from byte 16 to byte 0"),
    "negative offsets": (changed(data_offsets=[-16, 0]), "from byte -16"),
    "one offset": (changed(data_offsets=[0]), "does not say where"),
    "offsets as text": (changed(data_offsets=["0", "16"]), "does not say where"),
    "beyond the file": (changed(data_offsets=[2**40, 2**40 + 16]), "ends at byte"),
    "over another tensor": (changed(data_offsets=[8, 24]), "tensor 'a' are nobody's"),
    "the same place twice": (
        file_of({"a": GOOD["a"], "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, 16),
        "tensor 'b' overlaps",
    ),
    "bytes that are nobody's": (file_of(GOOD, 40), "4 bytes longer"),
    "a name with a newline": (file_of({"a\nb": GOOD["a"]}, 16), "a name that no model uses"),
    "an empty name": (file_of({"": GOOD["a"]}, 16), "a name that no model uses"),
    "a very long name": (file_of({"n" * 600: GOOD["a"]}, 16), "a name that no model uses"),
    "half a byte": (
        file_of({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, 1),
        "1 bytes where F4 [3] needs 2",
    ),
}


@pytest.mark.parametrize(("data", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_in_one_sentence(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00002.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadData) as refused:
        read_header(path)
    message = refused.value.message
    assert says in message
    assert message.startswith("model-00001-of-00002.safetensors")
    assert "\n" not in message
    assert len(message) < 400


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.safetensors is not in"):
        read_header(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(BadData, match="not a regular file"):
        read_header(tmp_path / "pipe.safetensors")


def test_a_header_that_is_a_lie_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES) + b"{}")
    with pytest.raises(BadData, match="ends inside its header"):
        read_header(path)


@given(st.data())
def test_any_flipped_byte_of_the_header_is_read_or_refused(data: st.DataObject) -> None:
    file = bytearray(file_of(GOOD))
    end = len(file) - 36
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parsed(bytes(file))
    except BadData:
        return
    for info in header.tensors:
        assert header.data_start <= info.start <= info.end <= len(file)
