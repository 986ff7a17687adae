"""Where a token's time went: computing and waiting on each stage, the rest on the wires.

Pure. A stage's own spans are read by its own clock, and the whole way round by stage 0's, so that no
two clocks are ever compared: what is left of the round is the wires' part, all hops together. A single
hop is told only between stages that are known to share a clock. Knows nothing of how traces travel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from exo_cli.bench.metrics import percentile
from exo_cli.bench.target import StageTraces
from exo_cli.schemas import bench as schema
from exo_cli.wire import exo_pb2 as pb

_NS_PER_MS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Times:
    """One span over all steps. Only the means of the parts add up to the mean of the whole."""

    mean_ms: float
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True, slots=True)
class StagePart:
    """What one stage took of the round."""

    node: str
    layers: tuple[int, int]
    compute: Times
    wait: Times
    """Between a step's arrival and its start: behind another step, or for company."""
    bytes_in_per_step: float
    bytes_out_per_step: float


@dataclass(frozen=True, slots=True)
class Hop:
    """The way from a stage to the next, and from the last one back to the first."""

    from_stage: int
    to_stage: int
    wire: Times | None
    """From the end of computing here to the arrival there; None where only the sum is known."""
    bytes_per_step: float
    bytes_total: int
    """Of everything the stages told, prompts included."""


@dataclass(frozen=True, slots=True)
class Round:
    """Decode steps on their way through the whole chain, from one token to the next."""

    steps: int
    rows_per_step: float
    token: Times
    """From the arrival of the last token to that of the next: waits, computing and wires of all stages."""
    wire: Times
    """All hops together."""
    stages: tuple[StagePart, ...]
    hops: tuple[Hop, ...]
    slowest: int
    """The stage that computes longest."""
    left_out: int
    """Decode steps that not every stage told of, or whose times cannot be."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One step at every stage, in nanoseconds; each span within one clock."""

    at: tuple[pb.Trace, ...]
    whole: int
    compute: tuple[int, ...]
    wait: tuple[int, ...]

    @property
    def wire(self) -> int:
        return self.whole - sum(self.compute) - sum(self.wait)

    @property
    def possible(self) -> bool:
        return min(self.compute) >= 0 and min(self.wait) >= 0 and self.wire >= 0

    def hop(self, stage: int) -> int:
        """The way onward from `stage`, if it and the next one read the same clock."""
        last = stage == len(self.at) - 1
        arrived = self.at[0].received_ns + self.whole if last else self.at[stage + 1].received_ns
        return arrived - self.at[stage].computed_ns


def take_apart(
    stages: Sequence[StageTraces], *, concurrency: int, clocks: Sequence[str] | None = None
) -> Round | None:
    """The decode steps among `stages`' traces, in the chain's order; None if no step can be followed.

    A step of more rows than `concurrency` is a prompt's. `clocks` names each stage's clock (its machine);
    by default no two stages share one.
    """
    if not stages:
        return None
    told = [_once(stage.steps) for stage in stages]
    decode = {trace.step for trace in stages[0].steps if 0 < trace.rows <= concurrency}
    back = _returns(told[0], decode & set(told[0]), alone=concurrency == 1)
    steps = []
    for number in sorted(decode & set(back)):
        if all(number in known for known in told):
            step = _step(tuple(known[number] for known in told), back[number])
            if step.possible:
                steps.append(step)
    if not steps:
        return None
    parts = tuple(_part(stage, index, steps) for index, stage in enumerate(stages))
    return Round(
        steps=len(steps),
        rows_per_step=_mean([step.at[0].rows for step in steps]),
        token=_times(step.whole for step in steps),
        wire=_times(step.wire for step in steps),
        stages=parts,
        hops=_hops(stages, steps, clocks),
        slowest=max(range(len(parts)), key=lambda index: parts[index].compute.p50_ms),
        left_out=len(decode) - len(steps),
    )


def record(parts: Round, *, max_concurrency: int, depth: int) -> schema.Timeline:
    """The same for the file."""
    return schema.Timeline(
        max_concurrency=max_concurrency,
        depth=depth,
        steps=parts.steps,
        token_ms_mean=parts.token.mean_ms,
        token_ms_p50=parts.token.p50_ms,
        token_ms_p90=parts.token.p90_ms,
        wire_ms_mean=parts.wire.mean_ms,
        wire_ms_p50=parts.wire.p50_ms,
        wire_ms_p90=parts.wire.p90_ms,
        stages=tuple(map(_stage_time, parts.stages)),
        hops=tuple(_hop_time(parts, hop) for hop in parts.hops),
        slowest=parts.slowest,
    )


def links(parts: Round) -> tuple[schema.BenchLink, ...]:
    """What went over each hop; a stage that is alone sends nothing."""
    return tuple(
        schema.BenchLink(
            from_node=parts.stages[hop.from_stage].node,
            to_node=parts.stages[hop.to_stage].node,
            bytes_per_token=hop.bytes_per_step / parts.rows_per_step,
            bytes_total=hop.bytes_total,
        )
        for hop in parts.hops
        if hop.from_stage != hop.to_stage
    )


def _stage_time(stage: StagePart) -> schema.StageTime:
    return schema.StageTime(
        node=stage.node,
        layers=stage.layers,
        compute_ms_mean=stage.compute.mean_ms,
        compute_ms_p50=stage.compute.p50_ms,
        compute_ms_p90=stage.compute.p90_ms,
        wait_ms_mean=stage.wait.mean_ms,
        wait_ms_p50=stage.wait.p50_ms,
        wait_ms_p90=stage.wait.p90_ms,
        bytes_in_per_step=stage.bytes_in_per_step,
        bytes_out_per_step=stage.bytes_out_per_step,
    )


def _hop_time(parts: Round, hop: Hop) -> schema.HopTime:
    wire = hop.wire
    return schema.HopTime(
        from_node=parts.stages[hop.from_stage].node,
        to_node=parts.stages[hop.to_stage].node,
        wire_ms_mean=wire.mean_ms if wire else None,
        wire_ms_p50=wire.p50_ms if wire else None,
        wire_ms_p90=wire.p90_ms if wire else None,
        bytes_per_step=hop.bytes_per_step,
    )


def _once(traces: Iterable[pb.Trace]) -> dict[int, pb.Trace]:
    """By step; without those told twice, of which nobody knows which one went on."""
    found: dict[int, pb.Trace] = {}
    repeated = set()
    for trace in traces:
        if trace.step in found:
            repeated.add(trace.step)
        found[trace.step] = trace
    return {number: trace for number, trace in found.items() if number not in repeated}


def _step(at: tuple[pb.Trace, ...], returned_ns: int) -> _Step:
    return _Step(
        at,
        whole=returned_ns - at[0].received_ns,
        compute=tuple(trace.computed_ns - trace.started_ns for trace in at),
        wait=tuple(trace.started_ns - trace.received_ns for trace in at),
    )


def _returns(first: dict[int, pb.Trace], decode: set[int], *, alone: bool) -> dict[int, int]:
    """When each step's tokens were back at stage 0, by its clock.

    With one request at a time the next step arrives with the token of this one.
    """
    known = {number: trace.returned_ns for number, trace in first.items() if trace.returned_ns}
    if known or not alone:
        return known
    return {number: first[number + 1].received_ns for number in decode if number + 1 in decode}


def _part(stage: StageTraces, index: int, steps: Sequence[_Step]) -> StagePart:
    return StagePart(
        node=stage.node,
        layers=stage.layers,
        compute=_times(step.compute[index] for step in steps),
        wait=_times(step.wait[index] for step in steps),
        bytes_in_per_step=_mean([step.at[index].bytes_in for step in steps]),
        bytes_out_per_step=_mean([step.at[index].bytes_out for step in steps]),
    )


def _hops(
    stages: Sequence[StageTraces], steps: Sequence[_Step], clocks: Sequence[str] | None
) -> tuple[Hop, ...]:
    hops = []
    for here, stage in enumerate(stages):
        there = (here + 1) % len(stages)
        wire = None
        if here == there or (clocks is not None and clocks[here] == clocks[there]):
            spans = [step.hop(here) for step in steps]
            # A clock that runs backwards between the two is not the same one, whatever its name.
            wire = _times(spans) if min(spans) >= 0 else None
        hops.append(
            Hop(
                from_stage=here,
                to_stage=there,
                wire=wire,
                bytes_per_step=_mean([step.at[here].bytes_out for step in steps]),
                bytes_total=sum(trace.bytes_out for trace in stage.steps),
            )
        )
    return tuple(hops)


def _times(spans_ns: Iterable[int]) -> Times:
    spans = [span / _NS_PER_MS for span in spans_ns]
    return Times(_mean(spans), percentile(spans, 50) or 0.0, percentile(spans, 90) or 0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
