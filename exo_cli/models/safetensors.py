"""The header of a safetensors file, read and checked before anybody believes it.

A file is eight bytes of length, that many bytes of JSON, and the tensors' bytes. Every tensor's range
must lie inside the file, have the size that its dtype and shape say, and follow the one before it
without a hole or an overlap, as the format's own reference reader asks. Reads no tensor and knows
nothing of models or of what the tensors are for.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from exo_cli.errors import BadData, InputOutput, NotFound

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own bound. The largest published models need about 2 MB a file."""
MAX_RANK: Final = 8
MAX_DIMENSION: Final = 2**31 - 1
MAX_NAME_CHARACTERS: Final = 512
_LENGTH_BYTES: Final = 8

BITS: Final[dict[str, int]] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_AGAIN: Final = "Fetch the file again; it may have been cut off or changed on the way."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: bytes `start` to `end` of the file, counted from the file's first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    file: str

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header; `sha256` is over its length and its JSON as they stand in the file."""

    file: str
    size: int
    data_start: int
    sha256: bytes
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path) -> Header:
    """The header of the file at `path`, which errors call by its last part."""
    file = path.name
    try:
        with open(path, "rb", opener=_without_waiting) as source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadData(f"{file} is not a regular file")
            prefix = source.read(_LENGTH_BYTES)
            length = header_length(prefix, file=file, size=status.st_size)
            body = source.read(length)
    except FileNotFoundError as error:
        raise NotFound(f"{file} is not in {path.parent}") from error
    except OSError as error:
        raise InputOutput(f"{file} cannot be read: {error.strerror}") from error
    return parse_header(prefix + body, file=file, size=status.st_size)


def header_length(prefix: bytes, *, file: str, size: int) -> int:
    """How many bytes of JSON follow the first eight; refused before they are read."""
    if len(prefix) < _LENGTH_BYTES or size < _LENGTH_BYTES:
        raise BadData(f"{file} is {size} bytes long, too short for a safetensors file", hint=_AGAIN)
    length = int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise BadData(f"{file} says its header has {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if length > size - _LENGTH_BYTES:
        raise BadData(
            f"{file} ends inside its header ({length} bytes were announced, the file has {size})", hint=_AGAIN
        )
    return length


def parse_header(data: bytes, *, file: str, size: int) -> Header:
    """`data` is the file's beginning, up to the end of the header; `size` is the whole file's."""
    length = header_length(data[:_LENGTH_BYTES], file=file, size=size)
    body = data[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if len(body) < length:
        raise BadData(f"{file} ends inside its header", hint=_AGAIN)
    start = _LENGTH_BYTES + length
    entries = _entries(body, file)
    tensors = tuple(
        _tensor(name, entry, file=file, data_start=start, size=size) for name, entry in entries.items()
    )
    _check_layout(tensors, file=file, data_start=start, size=size)
    return Header(file, size, start, hashlib.sha256(data[:start]).digest(), tensors)


def _without_waiting(path: str, flags: int) -> int:
    """A FIFO in the place of a file is refused, not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _entries(body: bytes, file: str) -> dict[str, Any]:
    if not body.startswith(b"{"):
        raise BadData(f"{file} is not a safetensors file: its header is not a JSON object", hint=_AGAIN)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise BadData(f"{file}: the header names {shown(repeated)} twice")
        return found

    try:
        entries = json.loads(body.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise BadData(f"{file}: the header is nested too deeply") from None
    except ValueError as error:
        raise BadData(f"{file}: the header is not JSON: {error}"[:300], hint=_AGAIN) from error
    if not isinstance(entries, dict):
        raise BadData(f"{file}: the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadData(f"{file}: the header's __metadata__ is not a map of text to text")
    return entries


def _tensor(name: str, entry: object, *, file: str, data_start: int, size: int) -> TensorInfo:
    where = f"{file}: tensor {shown(name)}"
    if not (0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable()):
        raise BadData(f"{where} has a name that no model uses")
    if not isinstance(entry, dict):
        raise BadData(f"{where} is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise BadData(f"{where} has the unknown dtype {shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_dimension, shape)):
        raise BadData(f"{where} has no usable shape: {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(end) is int for end in offsets):
        raise BadData(f"{where} does not say where its bytes are")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise BadData(f"{where} goes from byte {begin} to byte {end}")
    if end > size - data_start:
        raise BadData(
            f"{where} ends at byte {data_start + end}, but the file has {size}: it is cut off", hint=_AGAIN
        )
    bits = BITS[dtype]
    for dimension in shape:
        bits *= dimension
    if bits != (end - begin) * 8:
        raise BadData(
            f"{where} has {end - begin} bytes where {dtype} {shape} needs {-(-bits // 8)}"[:300], hint=_AGAIN
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + begin, data_start + end, file)


def _is_dimension(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_DIMENSION


def _check_layout(tensors: tuple[TensorInfo, ...], *, file: str, data_start: int, size: int) -> None:
    at = data_start
    for tensor in sorted(tensors, key=_position):
        if tensor.start < at:
            raise BadData(f"{file}: tensor {shown(tensor.name)} overlaps the one before it")
        if tensor.start > at:
            raise BadData(
                f"{file}: {tensor.start - at} bytes before tensor {shown(tensor.name)} are nobody's"
            )
        at = tensor.end
    if at != size:
        raise BadData(f"{file} is {size - at} bytes longer than its tensors", hint=_AGAIN)


def _position(tensor: TensorInfo) -> tuple[int, int]:
    return tensor.start, tensor.end


def shown(value: object) -> str:
    """Something from outside, short and without control characters, for a message."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def iter_tensors(headers: tuple[Header, ...]) -> Iterator[TensorInfo]:
    """Every tensor of several files, in the order of the files."""
    for header in headers:
        yield from header.tensors
