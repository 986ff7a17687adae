"""Made-up benchmark files for tests: a plausible one, and every shape that the schema allows."""

import random
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from exo_cli.bench.metrics import percentile
from exo_cli.schemas.bench import (
    Bench,
    BenchLink,
    BenchModel,
    BenchStage,
    Conditions,
    Gate,
    GateCheck,
    HopTime,
    Interval,
    Level,
    StageTime,
    Timeline,
)

GIB = 2**30


def interval(metric: str, values: Sequence[float], half: float) -> Interval:
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    return Interval(
        metric=metric, mean=mean, low=mean - half, high=mean + half, std=std, values=tuple(values)
    )


def level(
    concurrency: int = 1,
    depth: int = 0,
    *,
    ttfts_s: Sequence[float] = (0.5,),
    itls_s: Sequence[Sequence[float]] = ((0.02, 0.03),),
    intervals: Sequence[Interval] = (),
    **figures: Any,
) -> Level:
    """Latencies as they follow from the samples; anything else as given, else not known."""
    gaps = [gap for each in itls_s for gap in each]
    means = [statistics.fmean(each) for each in itls_s if each]
    wholes = [first + sum(each) for first, each in zip(ttfts_s, itls_s, strict=True)]
    told: dict[str, Any] = {}
    for name, samples in (("ttft", ttfts_s), ("itl", gaps), ("tpot", means), ("e2el", wholes)):
        ms = [each * 1000 for each in samples]
        told[f"n_{name}"] = len(ms)
        told[f"mean_{name}_ms"] = statistics.fmean(ms) if ms else None
        told[f"std_{name}_ms"] = statistics.pstdev(ms) if ms else None
        told[f"median_{name}_ms"] = percentile(ms, 50)
        for percent in (50, 90, 95, 99):
            told[f"p{percent}_{name}_ms"] = percentile(ms, percent)
    counted: dict[str, Any] = {
        "num_prompts": len(ttfts_s),
        "completed": len(ttfts_s),
        "failed": 0,
        "incomplete": 0,
        "errors": (),
        "duration": sum(wholes),
        "total_input_tokens": 256 * len(ttfts_s),
        "total_output_tokens": sum(len(each) + 1 for each in itls_s),
        "cached_tokens": 0,
    }
    unknown = dict.fromkeys(
        (
            *("request_throughput", "output_throughput", "total_token_throughput"),
            *("prefill_tokens_per_s", "decode_tokens_per_s", "joules_per_token"),
        )
    )
    return Level(
        max_concurrency=concurrency,
        depth=depth,
        intervals=tuple(intervals),
        input_lens=(256,) * len(ttfts_s),
        output_lens=tuple(len(each) + 1 for each in itls_s),
        ttfts=tuple(ttfts_s),
        itls=tuple(tuple(each) for each in itls_s),
        **{**told, **counted, **unknown, **figures},
    )


def measured_level(concurrency: int, depth: int, numbers: random.Random) -> Level:
    """As a chain of two would be: slower the more there is to read, faster together."""
    gap_s = 0.020 * (1 + 0.12 * (concurrency - 1)) * (1 + depth / 40_000)
    requests = 5 * concurrency
    ttfts = [
        0.4 * (1 + 0.4 * at / requests * concurrency) * numbers.uniform(0.95, 1.1) for at in range(requests)
    ]
    itls = [[gap_s * numbers.lognormvariate(0, 0.08) for _ in range(63)] for _ in range(requests)]
    decode = [concurrency / gap_s * numbers.uniform(0.97, 1.03) for _ in range(5)]
    output = [each * 0.8 for each in decode]
    prefill = [650 * numbers.uniform(0.97, 1.03) for _ in range(5)]
    return level(
        concurrency,
        depth,
        ttfts_s=ttfts,
        itls_s=itls,
        intervals=[
            interval("prefill_tokens_per_s", prefill, 21.4),
            interval("decode_tokens_per_s", decode, 0.05 * statistics.fmean(decode)),
            interval("output_throughput", output, 0.06 * statistics.fmean(output)),
        ],
        request_throughput=statistics.fmean(output) / 64,
        output_throughput=statistics.fmean(output),
        total_token_throughput=statistics.fmean(output) * 5,
        prefill_tokens_per_s=statistics.fmean(prefill),
        decode_tokens_per_s=statistics.fmean(decode),
        joules_per_token=0.412,
        cached_tokens=depth * requests,
    )


def stage(name: str, first: int, last: int, **figures: Any) -> BenchStage:
    usual: dict[str, Any] = {
        "node": name,
        "node_id": f"{name}-0123456789",
        "os": "Linux 6.18",
        "chip": "Xeon E5",
        "cores": 2,
        "backend": "cpu",
        "version": "0.1.0",
        "layers": (first, last),
        "fresh": True,
        "load_ms": 2140.5,
        "weights_bytes": 345_678_901,
        "kv_budget_bytes": GIB,
        "node_memory_used_bytes": 3 * GIB,
    }
    return BenchStage(**{**usual, **figures})


def stage_time(name: str, first: int, last: int, compute_ms: float, wait_ms: float) -> StageTime:
    return StageTime(
        node=name,
        layers=(first, last),
        compute_ms_mean=compute_ms,
        compute_ms_p50=compute_ms * 0.98,
        compute_ms_p90=compute_ms * 1.12,
        wait_ms_mean=wait_ms,
        wait_ms_p50=wait_ms * 0.7,
        wait_ms_p90=wait_ms * 2.5,
        bytes_in_per_step=8192.5,
        bytes_out_per_step=8200.25,
    )


def timeline(
    *stages: StageTime, wire_ms: float = 1.62, hops: Sequence[float | None] | None = None
) -> Timeline:
    whole = wire_ms + sum(each.compute_ms_mean + each.wait_ms_mean for each in stages)
    known = [None] * len(stages) if hops is None else hops
    return Timeline(
        max_concurrency=1,
        depth=0,
        steps=315,
        token_ms_mean=whole,
        token_ms_p50=whole * 0.97,
        token_ms_p90=whole * 1.2,
        wire_ms_mean=wire_ms,
        wire_ms_p50=wire_ms * 0.9,
        wire_ms_p90=wire_ms * 1.7,
        stages=stages,
        hops=tuple(
            HopTime(
                from_node=each.node,
                to_node=stages[(at + 1) % len(stages)].node,
                wire_ms_mean=known[at],
                wire_ms_p50=known[at],
                wire_ms_p90=known[at],
                bytes_per_step=8192.75,
            )
            for at, each in enumerate(stages)
        ),
        slowest=max(range(len(stages)), key=lambda at: stages[at].compute_ms_mean),
    )


def conditions() -> Conditions:
    return Conditions(
        prompt_tokens=256,
        gen_tokens=64,
        concurrency=(1, 2, 4, 8),
        depth=(0, 4096),
        repeat=5,
        warmup=1,
        seed=17,
        numerics="exact",
        threads=2,
        memory_bytes=8 * GIB,
    )


def bench(**parts: Any) -> Bench:
    """A chain of two under four levels, and one at a filled context; `parts` replace its own."""
    numbers = random.Random(4)
    spots = [(1, 0), (2, 0), (4, 0), (8, 0), (1, 4096)]
    usual: dict[str, Any] = {
        "version": "0.1.0",
        "unix_ms": 1_800_000_000_000,
        "model": BenchModel(
            name="llama-3.2-1b",
            kind="random",
            digest="sha256:" + "ab" * 32,
            layers=16,
            weights_bytes=695_283_921,
            parameters=1_235_814_400,
            bits_per_weight=4.501,
        ),
        "target": "chain",
        "reason": "Its layers were shared out by free memory.",
        "machine": "studio, Linux 6.18, 2 cores",
        "conditions": conditions(),
        "stages": (stage("studio", 0, 9), stage("mini", 9, 16, fresh=False, load_ms=None)),
        "links": (
            BenchLink(from_node="studio", to_node="mini", bytes_per_token=8230.5, bytes_total=12_345_678),
            BenchLink(from_node="mini", to_node="studio", bytes_per_token=61.5, bytes_total=98_765),
        ),
        "load_ms": 4321.5,
        "levels": tuple(measured_level(*spot, numbers) for spot in spots),
        "gate": gate(),
        "timeline": timeline(stage_time("studio", 0, 9, 10.9, 0.12), stage_time("mini", 9, 16, 8.41, 0.31)),
        "notes": ("One host, two processes: this is not a network.", "Random weights are not a model."),
    }
    return Bench(**{**usual, **parts})


def gate(valid: bool = True) -> Gate:
    said = "Every answer is the same." if valid else "Answer 3 differs from token 17 on: 1009 instead of 84."
    return Gate(
        valid=valid,
        checks=(
            GateCheck(name="levels", state="agree" if valid else "differ", compared=75, said=said),
            GateCheck(name="unsplit", state="skipped", compared=0, said="It does not fit on one node."),
        ),
    )


FIGURES = st.floats(0, 1e300)
_KINDS: dict[type[msgspec.inspect.Type], st.SearchStrategy[Any]] = {
    msgspec.inspect.IntType: st.integers(0, 2**53),
    msgspec.inspect.FloatType: FIGURES,
    msgspec.inspect.BoolType: st.booleans(),
    msgspec.inspect.NoneType: st.none(),
}


def any_value(kind: msgspec.inspect.Type, words: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Whatever the type allows."""
    match kind:
        case msgspec.inspect.StrType():
            return words
        case msgspec.inspect.LiteralType(values):
            return st.sampled_from(values)
        case msgspec.inspect.UnionType(types):
            return st.one_of([any_value(each, words) for each in types])
        case msgspec.inspect.VarTupleType(item):
            return st.lists(any_value(item, words), max_size=3).map(tuple)
        case msgspec.inspect.TupleType(items):
            return st.tuples(*(any_value(each, words) for each in items))
        case msgspec.inspect.StructType(cls, fields):
            return st.builds(cls, **{each.name: any_value(each.type, words) for each in fields})
    return _KINDS[type(kind)]


def any_bench(words: st.SearchStrategy[str]) -> st.SearchStrategy[Bench]:
    """Every shape of a file that can come about."""
    return any_value(msgspec.inspect.type_info(Bench), words).map(_possible)


def _possible(made: Bench) -> Bench:
    """At a time that a calendar knows; the slowest stage is one of those that there are."""
    told = made.timeline
    if told is not None:
        told = msgspec.structs.replace(told, slowest=told.slowest % len(told.stages)) if told.stages else None
    return msgspec.structs.replace(made, unix_ms=made.unix_ms % 10**13, timeline=told)
