"""The first words of every call: which protocol, which version, who. Knows nothing of transports."""

from exo_cli import __version__
from exo_cli.errors import VersionMismatch
from exo_cli.wire import exo_pb2 as pb

PROTOCOL = 1


def hello(node_id: str = "", boot: int = 0) -> pb.Hello:
    """Who we are; a driver has no node id."""
    return pb.Hello(protocol=PROTOCOL, version=__version__, node_id=node_id, boot=boot)


def check_hello(theirs: pb.Hello, who: str) -> None:
    """Refuse a peer of another protocol before anything else happens."""
    if theirs.protocol != PROTOCOL:
        raise VersionMismatch(
            f"{who} speaks exo protocol {theirs.protocol} (version {theirs.version[:40] or 'unknown'}); "
            f"this one speaks {PROTOCOL} (version {__version__})",
            hint="Install the same version of exo on every machine.",
        )
