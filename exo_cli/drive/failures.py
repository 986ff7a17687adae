"""Errors that nodes send as fields of a message, as errors of ours again, with the node's name.

Knows nothing of gRPC's statuses (wire.status does).
"""

from typing import Final

from exo_cli import errors
from exo_cli.errors import ExoError, Internal
from exo_cli.wire import exo_pb2 as pb

_KINDS: Final = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ExoError) and kind is not ExoError
]
_BY_CODE: Final[dict[str, type[ExoError]]] = {kind.code: kind for kind in _KINDS}
_BY_EXIT: Final[dict[int, type[ExoError]]] = {int(kind.exit): kind for kind in _KINDS}
_MAX_TEXT: Final = 1000


def refusal(refused: pb.Refused) -> ExoError:
    """Why a stage said no to a request, or to a step of it."""
    kind = _BY_CODE.get(refused.code) or _BY_EXIT.get(refused.exit) or Internal
    return _made(kind, refused.code, f"{refused.node}: {refused.message}", refused.hint or None)


def load_failure(failed: pb.LoadFailed, node: str) -> ExoError:
    """Why a node did not load its stage."""
    kind = _BY_CODE.get(failed.code) or _BY_EXIT.get(failed.exit) or Internal
    message = f"{node}: {failed.message}"
    if failed.holders and "held by" not in message:
        message += f" (held by {', '.join(failed.holders)})"
    return _made(kind, failed.code, message, failed.hint or None)


def at_node(error: ExoError, node: str) -> ExoError:
    """The same error, with the name of the node in front."""
    if error.message.startswith(node):
        return error
    kind = _BY_CODE.get(error.code) or _BY_EXIT.get(int(error.exit)) or Internal
    return _made(kind, error.code, f"{node}: {error.message}", error.hint)


def _made(kind: type[ExoError], code: str, message: str, hint: str | None) -> ExoError:
    error = kind(message[:_MAX_TEXT], hint=hint[:_MAX_TEXT] if hint else None)
    error.code = code[:40] or kind.code
    return error
