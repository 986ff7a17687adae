"""What a type is made of, looked up by one thread at a time.

msgspec does that at a type's first use and shows the half-made answer to other threads that use the type
meanwhile: they crash. Whoever decodes says `shared(TYPE)`. Knows nothing of what is decoded.
"""

import threading
from typing import Any, Final, TypeVar, overload

import msgspec

T = TypeVar("T")
_LOOKING: Final = threading.Lock()
_KNOWN: Final[set[Any]] = set()


@overload
def shared(kind: type[T]) -> type[T]: ...
@overload
def shared(kind: Any) -> Any: ...
def shared(kind: Any) -> Any:
    """The same type, which any thread may use from now on."""
    if kind not in _KNOWN:
        with _LOOKING:
            msgspec.json.Decoder(kind)
            _KNOWN.add(kind)
    return kind
