"""A model measured: the chain made ready, the load put on it, the gate, and all of it as one record.

Knows nothing of terminals and files, nor of how figures are computed.
"""

import asyncio
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from exo_cli import __version__
from exo_cli.bench import gate, metrics, timeline
from exo_cli.bench.chain import ChainTarget, vocabulary
from exo_cli.bench.energy import Energy
from exo_cli.bench.load import SETTLE_S, Load, Round, run
from exo_cli.bench.target import StageTraces, Target
from exo_cli.bench.verify import verify
from exo_cli.cluster.facts import host_id
from exo_cli.cluster.remote import running
from exo_cli.drive.chain import Chain
from exo_cli.drive.choose import Choice
from exo_cli.drive.driver import Driver, Settings, Telling
from exo_cli.errors import BadData, ExoError
from exo_cli.models.geometry import geometry
from exo_cli.models.random_model import RandomModel
from exo_cli.schemas.bench import Bench, BenchModel, BenchStage, Conditions, Gate, Level
from exo_cli.trust.keyring import KeyringSource

TOLD_LOOKS: Final = 40
"""Stages tell of steps many at a time, some after the last token."""

OnRound = Callable[[Round, int, int], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be measured, and where."""

    settings: Settings
    load: Load
    depth_asked: bool = True
    """Whether somebody said the depths; else those that the model is too short for are left out."""
    threads: int | None = None
    """Of this machine's own node, where that was told; so is the next one."""
    memory_bytes: int | None = None


async def measure(
    job: Job,
    source: KeyringSource,
    telling: Telling,
    *,
    on_round: OnRound = lambda round_, done, total: None,
    on_gate: Callable[[], None] = lambda: None,
) -> Bench:
    """The whole of it, from a name to a record; `on_gate` hears that the figures are there."""
    choices: list[Choice] = []

    def chosen(choice: Choice) -> None:
        choices.append(choice)
        telling.chosen(choice)

    async with Driver(job.settings, source, replace(telling, chosen=chosen)) as driver:
        load, notes = _fitting(job, driver.size.context)
        driver.concurrency = load.concurrent
        began_s = time.perf_counter()
        chain = await driver.chain(load.context)
        load_s = time.perf_counter() - began_s
        target = ChainTarget(chain, vocabulary(driver.directory.config))
        energy = _energy(choices[-1])
        rounds = await run(target, load, on_round=on_round, joules=energy)
        levels = metrics.levels(rounds)
        parts = await _taken_apart(driver, chain, target.vocabulary, load)
        stages = await _stages(driver, source)
        model = _model(driver, stages, random=isinstance(job.settings.model, RandomModel))
        on_gate()
        # The whole model is to keep its caches as the chain's stages do, whatever somebody said.
        settings = replace(job.settings, kv_bits=choices[-1].plan.kv_bits)
        checks = await verify(settings, load, source, rounds, chain, target.vocabulary, driver.stages)
    return Bench(
        version=__version__,
        unix_ms=time.time_ns() // 1_000_000,
        model=model,
        target=target.name,
        reason=choices[-1].plan.reason,
        machine=machine(),
        conditions=conditions(
            load,
            numerics=what_ran(stages),
            kv_bits=choices[-1].plan.kv_bits,
            threads=job.threads if choices[-1].alone else None,
            memory_bytes=job.memory_bytes if choices[-1].alone else None,
        ),
        stages=stages,
        links=() if parts is None else timeline.links(parts),
        load_ms=round(load_s * 1000, 1) if any(stage.fresh for stage in stages) else None,
        levels=levels,
        gate=checks,
        timeline=None
        if parts is None
        else timeline.record(parts, max_concurrency=min(load.concurrency), depth=min(load.depths)),
        notes=(*notes, *remarks(levels)),
    )


async def measure_server(
    target: Target,
    model: str,
    load: Load,
    *,
    notes: Sequence[str] = (),
    on_round: OnRound = lambda round_, done, total: None,
) -> Bench:
    """The same load on a server; what only a chain of ours could tell is null."""
    rounds = await run(target, load, on_round=on_round)
    levels = metrics.levels(rounds)
    checked = gate.by_levels(rounds)
    unsplit = gate.skipped("unsplit", "how a server runs its model is not known")
    differs = [f"the server's answers are not the same at all levels: {checked.said}"]
    return Bench(
        version=__version__,
        unix_ms=time.time_ns() // 1_000_000,
        model=BenchModel(
            name=model,
            kind="http",
            digest=None,
            layers=None,
            weights_bytes=None,
            parameters=None,
            bits_per_weight=None,
        ),
        target=target.name,
        reason=None,
        machine=machine(),
        conditions=conditions(load, numerics=None, threads=None, memory_bytes=None),
        stages=(),
        links=(),
        load_ms=None,
        levels=levels,
        # A server promises no such thing, so that it differs is no fault of the figures.
        gate=Gate(valid=True, checks=(checked, unsplit)),
        timeline=None,
        notes=(*notes, *(differs if checked.state == "differ" else ()), *remarks(levels)),
    )


def conditions(
    load: Load,
    *,
    numerics: str | None,
    threads: int | None,
    memory_bytes: int | None,
    kv_bits: int | None = None,
) -> Conditions:
    return Conditions(
        prompt_tokens=load.prompt_tokens,
        gen_tokens=load.gen_tokens,
        concurrency=load.concurrency,
        depth=load.depths,
        repeat=load.repeat,
        warmup=load.warmup,
        seed=load.seed,
        numerics=numerics,
        threads=threads,
        memory_bytes=memory_bytes,
        kv_bits=kv_bits,
    )


def what_ran(stages: Sequence[BenchStage]) -> str | None:
    """How the stages computed: a word if all did alike, else one for each, in order."""
    said = [stage.numerics or "exact" for stage in stages]
    return ", ".join(said[:1] if len(set(said)) == 1 else said) or None


def machine() -> str:
    """The driver's own, without a name that says whose it is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{platform.system()} {platform.machine()}, {cores} cores"


def remarks(levels: Sequence[Level]) -> list[str]:
    """What a reader of these figures has to know."""
    said = []
    for level in levels:
        where = f"{level.max_concurrency} at a time" + (f" at depth {level.depth}" if level.depth else "")
        if level.failed:
            said.append(f"{where}: {level.failed} of {level.num_prompts} requests failed: {level.errors[0]}")
        elif level.decode_tokens_per_s is None:
            said.append(
                f"{where}: no rate of decoding, since not all requests ever decoded at the same time; "
                "more --gen-tokens would show it"
            )
    return said


def _fitting(job: Job, longest: int) -> tuple[Load, list[str]]:
    """The load without depths that nobody asked for and the model is too short for."""
    load, left_out = job.load, []
    if not job.depth_asked:
        least = min(load.depths)
        own = load.prompt_tokens + load.gen_tokens
        left_out = [depth for depth in load.depths if depth != least and depth + own > longest]
        load = replace(load, depths=tuple(depth for depth in load.depths if depth not in left_out))
    if load.context > longest:
        deepest = max(load.depths)
        before = f"a depth of {deepest}, the prompt" if deepest else "the prompt"
        raise BadData(
            f"{before} and its answer make {load.context} tokens; the model knows {longest}",
            hint="Give a smaller --depth, --prompt-tokens or --gen-tokens.",
        )
    return load, [f"depth {depth} is left out: the model knows {longest} tokens" for depth in left_out]


def _energy(choice: Choice) -> Callable[[], float | None]:
    """This machine's counter, where all of the model ran here."""
    used = {rank.node for stage in choice.plan.replicas[0].stages for rank in stage.ranks}
    here = host_id()
    if all(choice.nodes[each].host == here for each in used):
        return Energy().read
    return lambda: None


async def _stages(driver: Driver, source: KeyringSource) -> tuple[BenchStage, ...]:
    nodes = {stage.node.id: stage.node for stage in driver.stages}
    found = await running(list(nodes.values()), source)
    used = {each.node_id: each.used_bytes for each in found.nodes if each.error is None}
    return tuple(
        BenchStage(
            node=stage.node.name,
            node_id=stage.node.id,
            os=stage.node.os,
            chip=stage.node.chip,
            cores=stage.node.cores,
            backend=stage.node.backend,
            version=stage.node.version,
            layers=stage.layers,
            fresh=stage.fresh,
            load_ms=round(stage.took_s * 1000, 1) if stage.fresh else None,
            weights_bytes=stage.weights_bytes,
            kv_budget_bytes=stage.kv_budget_bytes,
            node_memory_used_bytes=used.get(stage.node.id),
            numerics=stage.numerics,
            numerics_reason=stage.numerics_reason or None,
            kernels=stage.node.kernels,
        )
        for stage in driver.stages
    )


def _model(driver: Driver, stages: Sequence[BenchStage], *, random: bool) -> BenchModel:
    directory = driver.directory
    try:
        parameters = geometry(directory.config).total_parameters
    except BadData:
        parameters = None  # mlx-lm runs families whose geometry is not known here
    stored = sum(tensor.nbytes for tensor in directory.tensors.values())
    return BenchModel(
        name=driver.name,
        kind="random" if random else "weights",
        digest=directory.digest,
        layers=driver.size.layers,
        weights_bytes=sum(stage.weights_bytes for stage in stages),
        parameters=parameters,
        bits_per_weight=round(stored * 8 / parameters, 3) if parameters else None,
    )


async def _taken_apart(driver: Driver, chain: Chain, known: int, load: Load) -> timeline.Round | None:
    """Where a token's time goes, from a round of its own: telling takes the stages a little time."""
    target = ChainTarget(chain, known, traced=[stage.layers for stage in driver.stages])
    least = min(load.concurrency)
    once = replace(load, concurrency=(least,), depths=(min(load.depths),), repeat=1, warmup=0)
    try:
        await run(target, once)
    except ExoError:
        return None  # that the chain fails is said by the levels
    told = target.traces() or ()
    for _ in range(TOLD_LOOKS):
        if _all_told(told):
            break
        await asyncio.sleep(SETTLE_S)
        told = target.traces() or ()
    hosts = [stage.node.host for stage in driver.stages]
    return timeline.take_apart(told, concurrency=least, clocks=hosts)


def _all_told(told: Sequence[StageTraces]) -> bool:
    """Whether every stage told of the same steps."""
    steps = [{trace.step for trace in stage.steps} for stage in told]
    return bool(steps) and bool(steps[0]) and all(each == steps[0] for each in steps)
