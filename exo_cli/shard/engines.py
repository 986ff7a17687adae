"""The engines of a node and the memory they share: leases, eviction, and what is said when full.

The parent's alone: no engine knows of the others. Knows nothing of gRPC or of where weights come from.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from exo_cli.errors import TryAgain
from exo_cli.schemas.topology import LoadedStage
from exo_cli.shard.ahead import Ahead
from exo_cli.shard.engine import Engine, Surroundings
from exo_cli.shard.messages import Progress, Ready, Start

DEFAULT_KEEP_ALIVE_S = 600.0
FIRST_REQUEST_S = 600.0
"""Whoever asked for a stage has so long for the first request, whatever its lease says: the other stages
may take their time."""
LOOK_S = 0.05


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """A stage, and what it has to do."""

    digest: str
    layers: tuple[int, int]
    layers_in_model: int
    memory_bytes: int
    wire_dtype: str
    numerics: str
    kv_bits: int | None
    context: int
    concurrency: int


@dataclass(slots=True)
class Lease:
    """A stage that this node holds, and for how long without use."""

    model: str
    digest: str
    engine: Engine
    keep_alive_s: float
    memory_bytes: int
    pinned: bool = False
    """A plan gave it to this node: nobody else's load makes it go."""
    let_go: bool = False
    """Somebody said that it shall go."""
    _asked_s: float = field(default_factory=time.monotonic)
    _asked_steps: int = 0

    def asked(self) -> None:
        """Somebody is about to use it."""
        self._asked_s = time.monotonic()
        self._asked_steps = self.engine.beat.steps if self.engine.beat else 0

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
    def is_over(self) -> bool:
        """Whether nobody used it for longer than it says."""
        idle_s, beat = self.idle_s, self.engine.beat
        if beat is not None and beat.steps == self._asked_steps:
            return idle_s > self.keep_alive_s and time.monotonic() - self._asked_s > FIRST_REQUEST_S
        return idle_s > self.keep_alive_s

    def is_slice(self, wanted: Wanted) -> bool:
        """Whether it is ready and has those weights, whatever it was made for."""
        line = self.engine.start_line
        same = (self.digest, (line.first_layer, line.last_layer), line.layers_in_model)
        return self.engine.state == "ready" and same == (wanted.digest, wanted.layers, wanted.layers_in_model)

    def serves(self, wanted: Wanted) -> bool:
        """Whether it does for that; one that a plan made is as large as it shall be."""
        line = self.engine.start_line
        if not self.is_slice(wanted):
            return False
        if line.wire_dtype != wanted.wire_dtype or wanted.numerics not in self._numerics:
            return False
        if line.kv_bits != wanted.kv_bits and (wanted.kv_bits is not None or not self.pinned):
            return False
        if self.pinned:
            return True
        # No context: one request may take all that there is.
        long = not line.context or 0 < wanted.context <= line.context
        many = max(1, line.concurrency) * line.context >= max(1, wanted.concurrency) * wanted.context
        return long and ((many and line.context > 0) or self.memory_bytes >= wanted.memory_bytes)

    @property
    def _numerics(self) -> set[str]:
        """What was asked of it, and what it does: the same, or `exact` where `fast` is not to be had."""
        ready = self.engine.ready_line
        return {self.engine.start_line.numerics, *([] if ready is None else [ready.numerics])}

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
            numerics=None if ready is None else ready.numerics,
            pinned=self.pinned,
        )


class Engines:
    """All of a node's engines."""

    def __init__(self, limit_bytes: Callable[[], int], ahead: Ahead | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._capacity_bytes = 0
        self._leases: dict[str, Lease] = {}
        self._ahead = ahead
        """What the first engine may have, if it was started by now."""
        self.surroundings: Callable[[], Surroundings] = Surroundings
        """Those of the engine that is started next."""
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
            idle = [each for each in self.leases if each.idle_s > 0 and not each.pinned]
            idle.sort(key=lambda each: -each.idle_s)
            if not evict or not idle:
                raise NodeFull(needed, self.free_bytes, [lease.name for lease in self.leases])
            await self.unload(idle[0])

    async def load(
        self, start: Start, *, model: str, digest: str, keep_alive_s: float, pinned: bool = False
    ) -> AsyncGenerator[Progress | Ready, None]:
        """Start an engine; its progress, then its figures. What fails leaves nothing behind."""
        surroundings = self.surroundings()
        process = None if self._ahead is None else await self._ahead.take(surroundings)
        engine = Engine(start, surroundings=surroundings, process=process, on_end=self._ended)
        lease = Lease(model, digest, engine, keep_alive_s, start.memory_bytes, pinned)
        self._leases[start.stage_id] = lease
        self.on_change()
        try:
            await engine.start()
            while (line := await engine.progress.get()) is not None:
                yield line
            yield await engine.wait_ready()
            lease.asked()
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
            if lease.is_over:
                await self.unload(lease)

    async def drain(self, within_s: float) -> int:
        """Let no new request in and wait for those that run; how many still run after so long."""
        for lease in self.leases:
            lease.engine.leave()
        end_s = time.monotonic() + within_s
        while True:
            working = [lease.engine for lease in self.leases if lease.engine.working]
            if not working or time.monotonic() > end_s:
                return sum(engine.beat.requests if engine.beat else 0 for engine in working)
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        for lease in self.leases:
            await self.unload(lease)

    def _ended(self, _: Engine) -> None:
        self.on_change()
