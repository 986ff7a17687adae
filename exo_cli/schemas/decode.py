"""From bytes to a checked record, or one sentence that says what is wrong and where.

First the document's own word about what it is (`schema`), then its shape, then what a shape cannot
say: sizes and times are not negative, ids are unique. Unknown keys are accepted. Knows nothing of
files, and nothing of what the numbers are for.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from exo_cli.errors import BadData, VersionMismatch
from exo_cli.schemas.first_use import shared
from exo_cli.schemas.topology import Node, Topology

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""Ten thousand nodes fit; whoever reads a document from outside stops here."""

MAX_RECORD_BYTES = 256 * 1024

T = TypeVar("T")

_LIMIT = 2**63
_SCHEMA = re.compile(r"([a-z][a-z.-]{0,40})/([0-9]{1,6})")
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Head(msgspec.Struct):
    schema: str


def decode(data: bytes, kind: type[T], *, schema: str, where: str, hint: str | None = None) -> T:
    """`data` as a `kind`, which must call itself `schema`; `where` names its origin in errors."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise too_large(where, hint=hint)
    try:
        head = msgspec.json.decode(data, type=shared(_Head))
    except msgspec.ValidationError:
        raise BadData(
            f"{where} does not say which 'schema' it is; {schema} was expected", hint=hint
        ) from None
    except _NOT_JSON as error:
        raise BadData(f"{where} is not JSON: {_because(error)}", hint=hint) from error
    _check_schema(head.schema, schema, where, hint)
    try:
        value = msgspec.json.decode(data, type=shared(kind))
    except _NOT_JSON as error:
        raise BadData(f"{where} is not a valid {schema}: {_because(error)}", hint=hint) from error
    problem = next(_problems(value), None)
    if problem is not None:
        raise BadData(f"{where} is not a valid {schema}: {problem}", hint=hint)
    return value


def decode_node(data: bytes, *, where: str) -> Node:
    """A node's record, as a peer sent it: claims of a member, so checked like a file from outside."""
    if len(data) > MAX_RECORD_BYTES:
        raise BadData(f"{where} is larger than {MAX_RECORD_BYTES // 2**10} KiB")
    try:
        node = msgspec.json.decode(data, type=shared(Node))
    except _NOT_JSON as error:
        raise BadData(f"{where} is not a node's record: {_because(error)}") from error
    problem = next(_bad_numbers(msgspec.to_builtins(node), "$"), None)
    if problem is None and not re.fullmatch(r"[0-9a-f]{32}", node.id):
        problem = "the id is not 32 hexadecimal digits"
    if problem is not None:
        raise BadData(f"{where} is not a node's record: {problem}")
    return node


def too_large(where: str, *, hint: str | None = None) -> BadData:
    """What is said of a document over the bound, before it is read."""
    return BadData(f"{where} is larger than {MAX_DOCUMENT_BYTES // 2**20} MiB; nothing of ours is", hint=hint)


def _check_schema(found: str, expected: str, where: str, hint: str | None) -> None:
    if found == expected:
        return
    family, version = expected.split("/")
    match = _SCHEMA.fullmatch(found)
    if match is None or match[1] != family:
        raise BadData(f"{where} is {_name(found)}, not {_name(expected)}", hint=hint)
    if int(match[2]) > int(version):
        raise VersionMismatch(
            f"{where} is {_name(found)}; this exo reads {expected}",
            hint="Update exo on this machine, or name another file.",
        )
    raise VersionMismatch(
        f"{where} is {_name(found)}, too old for this exo, which reads {expected}", hint=hint
    )


def _name(schema: str) -> str:
    if _SCHEMA.fullmatch(schema) is None:
        return f"of an unknown schema ({schema[:40]!a})"
    return f"an {schema}" if schema[0] in "aeiou" else f"a {schema}"


def _because(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    # A capital begins the library's sentences; it stays where a name such as JSON does.
    text = str(error)
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def _problems(value: object) -> Iterator[str]:
    yield from _bad_numbers(msgspec.to_builtins(value), "$")
    if isinstance(value, Topology):
        yield from _repeated("node", (node.id for node in value.nodes))
        yield from _repeated("link", (f"{link.from_} to {link.to}" for link in value.links))


def _bad_numbers(value: object, path: str) -> Iterator[str]:
    """Every number of ours counts something: none is negative, infinite or beyond 63 bits."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _bad_numbers(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _bad_numbers(inner, f"{path}[{index}]")
    elif isinstance(value, int | float) and not 0 <= value < _LIMIT:
        yield f"number out of range - at `{path}`"


def _repeated(what: str, names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"the {what} {name[:80]!a} is in it twice"
        seen.add(name)
