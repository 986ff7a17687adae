"""The control service of serve-shard: what every node answers, and Load, Unload and Stats.

Knows nothing of MLX, and of weights only where they are found (`Locate`).
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Literal

from exo_cli.cluster.describe import Self
from exo_cli.cluster.measure import Turnstile
from exo_cli.cluster.remote import FOREVER_MS
from exo_cli.cluster.service import NodeService
from exo_cli.errors import BadData, ExoError, TryAgain
from exo_cli.fetch.node_fetch import NodeFetch
from exo_cli.fetch.serve_weights import WeightsServicer
from exo_cli.fetch.stores import Stores
from exo_cli.models.random_model import RandomModel
from exo_cli.shard.engine import LetGo
from exo_cli.shard.engines import DEFAULT_KEEP_ALIVE_S, Engines, Lease, Wanted
from exo_cli.shard.messages import LeafText, Progress, Start, WireDType
from exo_cli.trust.authority import issue_leaf
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import check_hello
from exo_cli.wire.status import abort

Locate = Callable[[pb.LoadRequest, Callable[[int, int], None]], Awaitable[Path]]
"""Where the stage's weights are on this machine, fetched if need be; hears (done, total) bytes."""

_WIRE_DTYPES: Final[dict[int, WireDType]] = {
    pb.DTYPE_UNSPECIFIED: "",
    pb.DTYPE_FLOAT32: "float32",
    pb.DTYPE_BFLOAT16: "bfloat16",
    pb.DTYPE_FLOAT16: "float16",
}
_KV_BITS: Final[dict[int, Literal[8] | None]] = {0: None, 8: 8}
_NUMERICS: Final[dict[str, Literal["exact", "fast"]]] = {"": "exact", "exact": "exact", "fast": "fast"}
_SAME_VERSION: Final = "Install the same version of exo on every machine."

STATS_EVERY_MS = 200
MAX_KEEP_ALIVE_S = 7 * 86_400.0


class ShardService(WeightsServicer, NodeService):
    """What serve-shard answers."""

    def __init__(
        self,
        me: Self,
        source: KeyringSource,
        engines: Engines,
        locate: Locate,
        *,
        hosts: list[str],
        data_ports: tuple[int, int],
        shelf: Stores,
        keep_alive_s: float | None = None,
    ) -> None:
        super().__init__(me, source, Turnstile(lambda: engines.busy))
        self.shelf = shelf
        self._stores = shelf
        self._node = me
        self._source = source
        self._engines = engines
        self._locate = locate
        self._hosts = hosts
        self._data_ports = data_ports
        self._keep_alive_s = keep_alive_s
        self.pinned: set[str] = set()
        """The loads that a plan gave to this node."""
        self._began_s = time.monotonic()
        self._loading = asyncio.Lock()

    async def Load(self, request: pb.LoadRequest, context: Any) -> AsyncIterator[pb.LoadEvent]:
        try:
            check_hello(request.hello, "the caller")
            _check(request)
        except ExoError as error:
            await abort(context, error)
        try:
            async for event in self.load(request):
                yield event
        except ExoError as error:
            yield pb.LoadEvent(failed=_failed(error))

    async def load(self, request: pb.LoadRequest) -> AsyncIterator[pb.LoadEvent]:
        """Load a stage, or find that it is here; raises why it cannot be."""
        if self._node.draining:
            raise TryAgain(
                "this node is leaving and takes no new work", hint="exo discover shows who is there."
            )
        random = await asyncio.to_thread(_random, request) if request.random_geometry else None
        held = self._held(request)
        if held is not None:
            yield self._ready(held)
            return
        # One at a time: two loads that each fit alone must not be let in together.
        async with self._loading:
            held = self._held(request)
            if held is not None:
                yield self._ready(held)
                return
            path = None
            if random is None:
                async with aclosing(self._located(request)) as found:
                    async for each in found:
                        if isinstance(each, Path):
                            path = each
                        else:
                            yield each
            await self._replace(request)
            memory = request.memory_bytes or self._engines.free_bytes
            await self._engines.make_room(memory, evict=request.evict_idle)
            start = self._start(request, path, random, memory)
            loading = self._engines.load(
                start,
                model=request.model.name,
                digest=request.model.digest,
                keep_alive_s=self._keep_s(request),
                pinned=request.load_id in self.pinned,
            )
            # A caller that goes away ends the load at once, not when the garbage is collected.
            async with aclosing(loading) as lines:
                async for line in lines:
                    if isinstance(line, Progress):
                        said = pb.LoadProgress(doing=line.doing, done=line.done, total=line.total)
                        yield pb.LoadEvent(progress=said)
        lease = self._engines.find(request.load_id)
        if lease is None:
            raise LetGo
        yield self._ready(lease)

    async def _located(self, request: pb.LoadRequest) -> AsyncGenerator[pb.LoadEvent | Path, None]:
        """What is being fetched, and at last where the weights are."""
        fetched: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
        locating = asyncio.ensure_future(
            self._locate(request, lambda done, total: fetched.put_nowait((done, total)))
        )
        locating.add_done_callback(lambda _: fetched.put_nowait(None))
        try:
            while (heard := await fetched.get()) is not None:
                done, total = heard
                yield pb.LoadEvent(progress=pb.LoadProgress(doing="fetch", done=done, total=total))
            yield await locating
        finally:
            # Nobody fetches for a caller that has gone.
            locating.cancel()

    def _held(self, request: pb.LoadRequest) -> Lease | None:
        """The lease that is what they ask for, whoever asked for it first."""
        same = self._engines.find(request.load_id)
        if same is not None and same.engine.state == "ready":
            return same
        if request.load_id in self.pinned:
            # Ours to keep under its own name, whatever else is here.
            return None
        wanted = _wanted(request)
        return next((lease for lease in self._engines.leases if lease.serves(wanted)), None)

    async def _replace(self, request: pb.LoadRequest) -> None:
        """A stage with the same weights that is too small and idle makes way: never two copies of them."""
        wanted = _wanted(request)
        for lease in self._engines.leases:
            if request.evict_idle and lease.is_slice(wanted) and lease.idle_s > 0 and not lease.pinned:
                await self._engines.unload(lease)

    def _keep_s(self, request: pb.LoadRequest) -> float:
        """Who asks says for how long; else this node's own rule, and what a plan gave it stays."""
        if request.keep_alive_ms:
            return min(request.keep_alive_ms / 1000, MAX_KEEP_ALIVE_S)
        if self._keep_alive_s is not None:
            return self._keep_alive_s
        return math.inf if request.load_id in self.pinned else DEFAULT_KEEP_ALIVE_S

    def _ready(self, lease: Lease) -> pb.LoadEvent:
        lease.asked()
        ready = lease.engine.ready_line
        assert ready is not None
        return pb.LoadEvent(
            ready=pb.LoadReady(
                stage_id=lease.stage_id,
                data_port=ready.data_port,
                frame_port=ready.frame_port,
                weights_bytes=ready.weights_bytes,
                kv_budget_bytes=ready.kv_budget_bytes,
                base_bytes=ready.base_bytes,
                allowed_cuts=ready.allowed_cuts,
                slots=ready.shares_steps,
                numerics=ready.numerics,
                numerics_reason=ready.numerics_reason,
            )
        )

    def _start(
        self, request: pb.LoadRequest, path: Path | None, random: RandomModel | None, memory: int
    ) -> Start:
        me = self._node
        leaves = [issue_leaf(key) for key in self._source.current().keys]
        return Start(
            stage_id=request.load_id,
            node_id=me.identity.node_id,
            node_name=me.identity.name,
            boot=me.identity.boot,
            model_dir="" if path is None else str(path),
            first_layer=request.first_layer,
            last_layer=request.last_layer,
            layers_in_model=request.layers_in_model,
            memory_bytes=memory,
            wire_dtype=_WIRE_DTYPES[request.wire_dtype],
            numerics=_NUMERICS[request.numerics],
            kv_bits=_KV_BITS[request.kv_bits],
            context=request.context,
            concurrency=request.concurrency,
            hosts=self._hosts,
            ports=self._data_ports,
            leaves=[
                LeafText(
                    name=leaf.name,
                    key_pem=leaf.key_pem.decode(),
                    certificate_pem=leaf.certificate_pem.decode(),
                    authority_pem=leaf.authority_pem.decode(),
                )
                for leaf in leaves
            ],
            private_only=self._source.current().kind == "insecure",
            random=random,
        )

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> AsyncIterator[pb.FetchEvent]:
        try:
            check_hello(request.hello, "the caller")
            async with aclosing(NodeFetch(self._stores, self._source)(request)) as events:
                async for event in events:
                    yield event
        except ExoError as error:
            await abort(context, error)

    async def Unload(self, request: pb.UnloadRequest, context: Any) -> pb.UnloadReply:
        try:
            check_hello(request.hello, "the caller")
        except ExoError as error:
            await abort(context, error)
        gone, freed = [], 0
        for lease in self._engines.leases:
            if request.stage_id and lease.stage_id != request.stage_id:
                continue
            if request.model and request.model not in (lease.model, lease.digest):
                continue
            lease.let_go = True
            freed += await self._engines.unload(lease)
            gone.append(lease.stage_id)
        return pb.UnloadReply(stage_ids=gone, freed_bytes=freed)

    async def Stats(self, request: pb.StatsRequest, context: Any) -> AsyncIterator[pb.StatsReply]:
        try:
            check_hello(request.hello, "the caller")
        except ExoError as error:
            await abort(context, error)
        before: dict[str, tuple[int, float]] = {}
        while True:
            now_s = time.monotonic()
            stages = []
            for lease in self._engines.leases:
                tokens = lease.engine.beat.tokens if lease.engine.beat else 0
                then, at_s = before.get(lease.stage_id, (tokens, now_s))
                rate = (tokens - then) / (now_s - at_s) if now_s > at_s else 0.0
                before[lease.stage_id] = (tokens, now_s)
                stages.append(_stage_stats(lease, rate))
            yield pb.StatsReply(
                stages=stages,
                memory_used_bytes=self._engines.held_bytes,
                memory_free_bytes=self._engines.free_bytes,
                uptime_ms=int((now_s - self._began_s) * 1000),
            )
            if not request.every_ms:
                return
            await asyncio.sleep(max(request.every_ms, STATS_EVERY_MS) / 1000)


def _wanted(request: pb.LoadRequest) -> Wanted:
    return Wanted(
        digest=request.model.digest,
        layers=(request.first_layer, request.last_layer),
        layers_in_model=request.layers_in_model,
        memory_bytes=request.memory_bytes,
        wire_dtype=_WIRE_DTYPES[request.wire_dtype],
        numerics=_NUMERICS[request.numerics],
        kv_bits=_KV_BITS[request.kv_bits],
        context=request.context,
        concurrency=request.concurrency,
    )


def _check(request: pb.LoadRequest) -> None:
    if not request.load_id or len(request.load_id) > 64:
        raise BadData("a load needs an id of at most 64 characters")
    if not request.model.digest:
        raise BadData("a load names its model by digest")
    if not request.first_layer < request.last_layer <= request.layers_in_model:
        raise BadData(
            f"layers {request.first_layer} to {request.last_layer} of {request.layers_in_model} are no stage"
        )
    if request.HasField("rank") and request.rank.size > 1:
        raise BadData("this version of exo runs no tensor parallelism", hint="Plan with one rank a stage.")
    if request.wire_dtype not in _WIRE_DTYPES:
        raise BadData(f"stages send no tensors of type {request.wire_dtype}", hint=_SAME_VERSION)
    if request.numerics not in _NUMERICS:
        raise BadData(f"this version of exo has no --numerics {request.numerics}", hint="Use exact or fast.")
    if request.kv_bits not in _KV_BITS:
        raise BadData(f"this version of exo has no caches of {request.kv_bits} bits", hint="Use --kv-bits 8.")


def _random(request: pb.LoadRequest) -> RandomModel:
    """The random weights that are asked for; nobody gets them by the name of a model that has others."""
    model = RandomModel(request.model.name, request.random_geometry, request.random_seed)
    if model.digest != request.model.digest:
        raise BadData("a load of random weights does not name them by their digest", hint=_SAME_VERSION)
    return model


def _failed(error: ExoError) -> pb.LoadFailed:
    return pb.LoadFailed(
        code=error.code,
        message=error.message,
        hint=error.hint or "",
        exit=int(error.exit),
        bytes_needed=getattr(error, "needed_bytes", 0),
        bytes_free=getattr(error, "free_bytes", 0),
        holders=getattr(error, "holders", []),
    )


def _stage_stats(lease: Lease, rate: float) -> pb.StageStats:
    line, ready, beat = lease.engine.start_line, lease.engine.ready_line, lease.engine.beat
    stats = pb.StageStats(
        stage_id=lease.stage_id,
        model=pb.ModelRef(name=lease.model, digest=lease.digest),
        first_layer=line.first_layer,
        last_layer=line.last_layer,
        state=lease.engine.state,
        tokens_per_s=rate,
        idle_ms=int(lease.idle_s * 1000),
        keep_alive_ms=FOREVER_MS if math.isinf(lease.keep_alive_s) else int(lease.keep_alive_s * 1000),
        failure=lease.engine.failure.message if lease.engine.failure is not None else "",
    )
    if ready is not None:
        stats.kv_budget_bytes = ready.kv_budget_bytes
        stats.weights_bytes = ready.weights_bytes
        stats.numerics, stats.numerics_reason = ready.numerics, ready.numerics_reason
    if beat is not None:
        stats.requests = beat.requests
        stats.kv_used_bytes = beat.kv_used_bytes
        stats.steps = beat.steps
        stats.step_ms_p50, stats.step_ms_p99 = beat.step_ms_p50, beat.step_ms_p99
    return stats
