"""The engines of a node and the memory they share: leases, eviction, and what is said when full.

The parent's alone: no engine knows of the others. Knows nothing of gRPC or of where weights come from.
"""

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from exo_cli.errors import TryAgain
from exo_cli.schemas.topology import LoadedStage
from exo_cli.shard.engine import Engine
from exo_cli.shard.messages import Progress, Ready, Start

DEFAULT_KEEP_ALIVE_S = 600.0


class NodeFull(TryAgain):
    """There is no room, and nothing idle to let go."""

    code = "node-full"

    def __init__(self, needed: int, free: int, holders: list[str]) -> None:
        held = f"; held by {', '.join(holders)}" if holders else ""
        super().__init__(
            f"the stage needs {needed} bytes and {free} are free{held}",
            hint="exo unload MODEL lets go of one, or wait until its requests end.",
        )
        self.needed_bytes, self.free_bytes, self.holders = needed, free, holders


@dataclass(slots=True)
class Lease:
    """A stage that this node holds, and for how long without use."""

    model: str
    digest: str
    engine: Engine
    keep_alive_s: float
    memory_bytes: int
    loaded_s: float = field(default_factory=time.monotonic)

    @property
    def stage_id(self) -> str:
        return self.engine.start_line.stage_id

    @property
    def idle_s(self) -> float:
        """Since when nobody used it; 0 while it loads or works."""
        beat = self.engine.beat
        if self.engine.state != "ready" or beat is None or beat.requests:
            return 0.0
        return beat.idle_ms / 1000

    @property
    def name(self) -> str:
        line = self.engine.start_line
        return f"{self.model} layers {line.first_layer}-{line.last_layer - 1}"

    def as_stage(self) -> LoadedStage:
        line, ready, beat = self.engine.start_line, self.engine.ready_line, self.engine.beat
        free = None if ready is None else ready.kv_budget_bytes - (beat.kv_used_bytes if beat else 0)
        return LoadedStage(
            model=self.model,
            layers=(line.first_layer, line.last_layer),
            state=self.engine.state,
            kv_free_bytes=free,
        )


class Engines:
    """All of a node's engines."""

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._capacity_bytes = 0
        self._leases: dict[str, Lease] = {}
        self.on_change: Callable[[], None] = lambda: None

    @property
    def leases(self) -> list[Lease]:
        return list(self._leases.values())

    @property
    def busy(self) -> bool:
        """Whether requests run: then nothing is measured."""
        return any(lease.engine.beat is not None and lease.engine.beat.requests for lease in self.leases)

    @property
    def held_bytes(self) -> int:
        return sum(lease.memory_bytes for lease in self.leases if lease.engine.state != "failed")

    @property
    def free_bytes(self) -> int:
        if not self._leases:
            # Looked at only while nothing is loaded: afterwards what is free is what we left.
            self._capacity_bytes = self._limit_bytes()
        return max(0, self._capacity_bytes - self.held_bytes)

    def stages(self) -> tuple[LoadedStage, ...]:
        return tuple(lease.as_stage() for lease in self.leases)

    def find(self, stage_id: str) -> Lease | None:
        return self._leases.get(stage_id)

    async def make_room(self, needed: int, *, evict: bool) -> None:
        """Let idle leases go, the longest unused first, until there is room; else say who holds it."""
        for lease in [each for each in self.leases if each.engine.state == "failed"]:
            await self.unload(lease)
        while self.free_bytes < needed:
            idle = sorted((each for each in self.leases if each.idle_s > 0), key=lambda each: -each.idle_s)
            if not evict or not idle:
                raise NodeFull(needed, self.free_bytes, [lease.name for lease in self.leases])
            await self.unload(idle[0])

    async def load(
        self, start: Start, *, model: str, digest: str, keep_alive_s: float
    ) -> AsyncGenerator[Progress | Ready, None]:
        """Start an engine; its progress, then its figures. What fails leaves nothing behind."""
        engine = Engine(start, on_end=self._ended)
        lease = Lease(model, digest, engine, keep_alive_s, start.memory_bytes)
        self._leases[start.stage_id] = lease
        self.on_change()
        try:
            await engine.start()
            while (line := await engine.progress.get()) is not None:
                yield line
            yield await engine.wait_ready()
        except BaseException:
            await self.unload(lease)
            raise
        self.on_change()

    async def unload(self, lease: Lease) -> int:
        """End an engine; how many bytes that frees."""
        if self._leases.pop(lease.stage_id, None) is None:
            return 0
        if not lease.engine.ended.is_set():
            await lease.engine.stop()
        self.on_change()
        return lease.memory_bytes

    async def expire(self) -> None:
        """Let go of what nobody used for longer than its lease says."""
        for lease in self.leases:
            if lease.idle_s > lease.keep_alive_s:
                await self.unload(lease)

    async def close(self) -> None:
        for lease in self.leases:
            await self.unload(lease)

    def _ended(self, _: Engine) -> None:
        self.on_change()
