"""`exo __complete KIND`: the values that stand in no script, one a line, for the shells.

Called at every press of TAB, so it is fast, silent, and has no way to fail: what cannot be read
gives no values. Names in the topology were written by other machines: what a shell could take for
more than a word is left out.
"""

import os
import string

_MOST_BYTES = 8 * 1024 * 1024
_PLAIN = frozenset(string.ascii_letters + string.digits + "._-:@%+")


def complete(arguments: list[str]) -> int:
    """Print the values of the kind that is named; 0 whatever happens."""
    kind = arguments[0] if arguments else ""
    try:
        values = {"nodes": _nodes, "interfaces": _interfaces, "models": _models}.get(kind, _nothing)()
        # Not through sys.stdout, which would complain at exit about a reader that has gone.
        os.write(1, "".join(f"{value}\n" for value in values if _is_plain(value)).encode())
    except OSError:
        pass
    return 0


def _is_plain(value: str) -> bool:
    return 0 < len(value) <= 255 and value[0] != "-" and _PLAIN.issuperset(value)


def _nodes() -> list[str]:
    import json

    try:
        with open(_topology_path(), "rb") as file:
            document = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    nodes = document.get("nodes") if isinstance(document, dict) else None
    names = [node.get("name") for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    return sorted({name for name in names if isinstance(name, str)})


def _topology_path() -> str:
    from exo_cli import config
    from exo_cli.errors import ExoError

    if from_environment := os.environ.get("EXO_TOPOLOGY"):
        return from_environment
    try:
        for file in config.read_files():
            if isinstance(from_file := file.tables.get((), {}).get("topology"), str):
                return from_file
        return str(config.topology_path())
    except ExoError:
        return os.devnull


def _interfaces() -> list[str]:
    import socket

    return sorted(name for _, name in socket.if_nameindex())


def _models() -> list[str]:
    from exo_cli.models.catalogue import names

    return names()


def _nothing() -> list[str]:
    return []
