"""What is measured, and which figures are set against which: the table's rows. Pure.

A case is one side doing one kind of work; a row is a ratio of two cases. Cases of a group take turns in
one run, and only those are compared. Knows nothing of how a side is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Side = Literal["exo", "llama.cpp", "mlx-lm", "memory"]
"""`memory` is no program: the tokens a second that the measured read bandwidth would allow, if every weight
were read once for as many requests as can be together in a step."""
Kind = Literal["decode", "prefill", "start", "resident"]
Metric = Literal[
    "decode_tokens_per_s", "prefill_tokens_per_s", "first_token_s", "resident_bytes", "anonymous_bytes"
]

METRICS: Final[dict[Kind, Metric]] = {
    "decode": "decode_tokens_per_s",
    "prefill": "prefill_tokens_per_s",
    "start": "first_token_s",
    "resident": "resident_bytes",
}
FORMATS: Final = {4: ("affine4", "q4_0"), 8: ("affine8", "q8_0"), 16: ("bf16", "bf16")}
"""Of ours and of theirs, by bits."""


@dataclass(frozen=True, slots=True)
class Work:
    """`depth` tokens are in the context before anything is timed; `requests` at a time, each with `gen`."""

    kind: Kind
    prompt: int = 0
    gen: int = 0
    depth: int = 0
    requests: int = 1


@dataclass(frozen=True, slots=True)
class Case:
    """`stages`: the cores of each. Stages may share cores; a process never leaves its own."""

    side: Side
    geometry: str
    bits: int
    work: Work
    stages: tuple[tuple[int, ...], ...]
    split: Literal["layer", "tensor"] = "layer"

    @property
    def cores(self) -> tuple[int, ...]:
        """All that the case may use, its driver included."""
        return tuple(sorted({core for stage in self.stages for core in stage}))

    @property
    def together(self) -> int:
        """Requests that go through a stage in one step when every stage has some to work on."""
        return max(1, self.work.requests // len(self.stages))

    @property
    def label(self) -> str:
        """As a result file calls it."""
        cores = "+".join(",".join(map(str, stage)) for stage in self.stages)
        work = self.work
        parts = [self.side, self.geometry, f"{self.bits}-bit", work.kind, f"cores {cores}"]
        named = (("prompt", work.prompt), ("gen", work.gen), ("depth", work.depth))
        parts += [f"{name} {count}" for name, count in named if count]
        parts += [f"requests {work.requests}"] if work.requests > 1 else []
        parts += ["tensor split"] if self.split == "tensor" else []
        return " / ".join(parts)


@dataclass(frozen=True, slots=True)
class Row:
    """`ours` ÷ `theirs`. Where a limit is None the ratio is only reported."""

    group: str
    title: str
    ours: Case
    theirs: tuple[Case, ...]
    """The best of them counts."""
    must: float | None = None
    goal: float | None = None
    other_metric: Metric | None = None
    """Instead of the one that the work is usually measured by."""

    @property
    def metric(self) -> Metric:
        return self.other_metric or METRICS[self.ours.work.kind]

    @property
    def less_is_better(self) -> bool:
        return not self.metric.endswith("_per_s")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    large: str = "llama-3.2-1b"
    small: str = "llama-250m"
    gen: int = 64
    prompts: tuple[int, ...] = (256, 2048)
    depth: int = 4096
    requests: int = 8
    formats: tuple[int, ...] = (8, 16)
    cores: tuple[int, ...] = (0, 1)


QUICK: Final = Sizes(large="llama-250m", small="llama-30m", gen=32, prompts=(64, 256), depth=512)


@dataclass(slots=True)
class _Table:
    sizes: Sizes
    rows: list[Row] = field(default_factory=list)

    @property
    def both(self) -> tuple[tuple[int, ...], ...]:
        return (self.sizes.cores,)

    @property
    def one(self) -> tuple[tuple[int, ...], ...]:
        return (self.sizes.cores[:1],)

    @property
    def each(self) -> tuple[tuple[int, ...], ...]:
        """Two stages, a core each."""
        return tuple((core,) for core in self.sizes.cores[:2])

    def add(
        self,
        title: str,
        ours: Case,
        theirs: Case | Sequence[Case],
        must: float | None = None,
        goal: float | None = None,
        metric: Metric | None = None,
    ) -> None:
        group = f"{ours.geometry} {title.partition(',')[0]}"
        others = (theirs,) if isinstance(theirs, Case) else tuple(theirs)
        self.rows.append(Row(group, f"{title}, {ours.geometry}", ours, others, must, goal, metric))

    def decode(self, geometry: str, must: float | None, goal: float | None) -> None:
        work, large = Work("decode", gen=self.sizes.gen), geometry == self.sizes.large
        whole = Case("exo", geometry, 4, work, self.both)
        alone = Case("exo", geometry, 4, work, self.one)
        theirs = Case("llama.cpp", geometry, 4, work, self.both)
        self.add(f"decode, {len(self.sizes.cores)} threads", whole, theirs, must, goal)
        self.add("decode, 1 thread", alone, Case("llama.cpp", geometry, 4, work, self.one), must, goal)
        limit = Case("memory", geometry, 4, work, self.both)
        self.add("decode, of the read bandwidth", whole, limit, None, 0.85 if large else None)
        limits = {2: (0.93, 0.97), 3: (0.90, 0.95)} if large else {2: (None, None), 3: (None, None)}
        for stages, (at_least, wanted) in limits.items():
            split = Case("exo", geometry, 4, work, self.both * stages)
            self.add(f"decode, {stages} stages on the same cores ÷ unsplit", split, whole, at_least, wanted)
        split = Case("exo", geometry, 4, work, self.each)
        rpc = Case("llama.cpp", geometry, 4, work, self.each)
        self.add("decode, 2 stages of a core each ÷ RPC", split, (rpc, _tensor(rpc)))
        self.add("decode, ÷ stock mlx-lm", whole, Case("mlx-lm", geometry, 4, work, self.both))

    def prefill(self, geometry: str) -> None:
        for prompt in self.sizes.prompts:
            work = Work("prefill", prompt=prompt)
            whole = Case("exo", geometry, 4, work, self.both)
            theirs = Case("llama.cpp", geometry, 4, work, self.both)
            self.add(f"prefill, {prompt} tokens", whole, theirs, 1.0, 2.0)
        work = Work("prefill", prompt=self.sizes.prompts[0])
        whole = Case("exo", geometry, 4, work, self.both)
        split = Case("exo", geometry, 4, work, self.each)
        rpc = Case("llama.cpp", geometry, 4, work, self.each)
        self.add(f"prefill, {work.prompt} tokens, 2 stages of a core each ÷ RPC", split, (rpc, _tensor(rpc)))
        stock = Case("mlx-lm", geometry, 4, work, self.both)
        self.add(f"prefill, {work.prompt} tokens ÷ stock mlx-lm", whole, stock)

    def same(
        self,
        title: str,
        work: Work,
        bits: int = 4,
        must: float | None = None,
        goal: float | None = None,
        metric: Metric | None = None,
    ) -> None:
        """Ours against llama.cpp on all cores, at the large geometry."""
        large = self.sizes.large
        ours = Case("exo", large, bits, work, self.both)
        self.add(title, ours, Case("llama.cpp", large, bits, work, self.both), must, goal, metric)


def _tensor(rpc: Case) -> Case:
    return Case(rpc.side, rpc.geometry, rpc.bits, rpc.work, rpc.stages, "tensor")


def rows(sizes: Sizes) -> list[Row]:
    """The whole table."""
    table = _Table(sizes)
    table.decode(sizes.large, 1.0, None)
    if sizes.small != sizes.large:
        table.decode(sizes.small, 0.9, 1.2)
    for geometry in dict.fromkeys((sizes.large, sizes.small)):
        table.prefill(geometry)
    deep = Work("decode", gen=min(sizes.gen, 32), depth=sizes.depth)
    table.same(f"context, decode at {sizes.depth} tokens", deep, 4, 1.0, 1.6)
    many = Work("decode", prompt=16, gen=sizes.gen, requests=sizes.requests)
    table.same(f"requests, {many.requests} at once, all together", many, 4, 1.0, 1.5)
    large = sizes.large
    fewer = Work("decode", prompt=16, gen=sizes.gen, requests=max(1, sizes.requests // 2))
    best = tuple(Case("exo", large, 4, work, table.one) for work in (many, fewer))
    split = Case("exo", large, 4, many, table.each)
    table.add(
        f"requests, {many.requests} on 2 stages of a core each ÷ the best of 1 stage", split, best, 1.7, 1.9
    )
    # Each stage reads its weights once for half of the requests, and all from one memory.
    limit = Case("memory", large, 4, many, table.each)
    table.add(f"requests, {many.requests} on 2 stages of a core each, of the read bandwidth", split, limit)
    for bits in sizes.formats:
        name = {8: "8-bit", 16: "bf16"}[bits]
        table.same(f"formats, {name} decode", Work("decode", gen=sizes.gen), bits, 0.9, 1.1)
    memory = Work("resident", gen=4 * sizes.gen)
    table.same("memory, resident", memory, 4, 1.15)
    # llama.cpp keeps the file mapped beside the weights that it repacked; this leaves files out.
    table.same("memory, resident without mapped files", memory, 4, None, None, "anonymous_bytes")
    table.same("start, load to first token", Work("start", prompt=8, gen=1), 4, 1.5)
    return table.rows
