"""What somebody wants fetched, and how. Knows nothing of how that is done."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exo_cli.errors import ExoError
from exo_cli.fetch.limit import Limit
from exo_cli.fetch.transfer import CONNECTIONS, Pace

if TYPE_CHECKING:
    from exo_cli.fetch.swarm import Peer
    from exo_cli.trust.keyring import KeyringSource


@dataclass(frozen=True, slots=True)
class Order:
    """One fetch."""

    layers: tuple[int, int] | None = None
    """None: the whole model."""
    offline: bool = False
    limit_bytes_per_s: int | None = None
    connections: int = CONNECTIONS
    on_wait: Callable[[ExoError, float], None] = lambda error, wait_s: None
    peers: "Sequence[Peer]" = ()
    """Neighbours that may have some of it."""
    keyring: "KeyringSource | None" = None
    """For them."""
    note: Callable[[str], None] = lambda text: None
    limit: Limit = field(init=False)
    """One for all that comes, from wherever."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", Limit(self.limit_bytes_per_s))

    def pace(self, stopped: threading.Event) -> Pace:
        return Pace(stopped, self.limit, self.connections, self.on_wait)
