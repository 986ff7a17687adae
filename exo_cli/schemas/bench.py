"""What `exo bench` measured, as a file and as the line under --json. Types only.

Keys whose meaning equals one of `vllm bench serve` have its name (and its units: `ttfts` and `itls` are
seconds, `duration` too). Everything that is not known is null. Knows nothing of how it is measured.
"""

from typing import Literal, NamedTuple

from exo_cli.schemas.topology import InterfaceKind, Record

SCHEMA = "exo.bench/1"
COMPARISON_SCHEMA = "exo.bench-compare/1"
LINKS_SCHEMA = "exo.bench-links/1"


class Spread(NamedTuple):
    """One distribution of a level, gathered from its flat keys."""

    n: int
    mean: float | None
    std: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class BenchModel(Record, frozen=True, kw_only=True):
    """What ran. `random`: random weights at a real geometry; `http`: whatever a server calls by that name."""

    name: str
    kind: Literal["weights", "random", "http"]
    digest: str | None
    layers: int | None
    weights_bytes: int | None
    """Of all stages together, as they lie in memory."""
    parameters: int | None
    bits_per_weight: float | None


class BenchStage(Record, frozen=True, kw_only=True):
    """One stage of the chain, and the machine that it ran on."""

    node: str
    node_id: str
    os: str
    chip: str
    cores: int
    backend: str
    version: str
    layers: tuple[int, int]
    fresh: bool
    """Whether it was loaded for this run; else the node had it."""
    load_ms: float | None
    """Until this stage was ready; null where the node had it already."""
    weights_bytes: int
    kv_budget_bytes: int
    node_memory_used_bytes: int | None
    """What the node gave to models, this stage included, after the run."""
    numerics: str | None = None
    """How it computed; null in files of before this was known."""
    numerics_reason: str | None = None
    """Why it was exact where fast was asked for."""
    kernels: str | None = None
    """The class of kernels that `fast` has on its processor."""


class BenchLink(Record, frozen=True, kw_only=True):
    """What went from one stage to the next while every request decoded, if the stages told."""

    from_node: str
    to_node: str
    bytes_per_token: float | None
    bytes_total: int | None


class Conditions(Record, frozen=True, kw_only=True):
    """What was asked for, as options."""

    prompt_tokens: int
    gen_tokens: int
    concurrency: tuple[int, ...]
    depth: tuple[int, ...]
    repeat: int
    warmup: int
    seed: int
    numerics: str | None
    """What ran, not what was asked for: of each stage in order where they differ (`fast, exact`)."""
    threads: int | None
    memory_bytes: int | None
    kv_bits: int | None = None
    """Of a number in the caches; None: as it is computed, or not known."""


class Interval(Record, frozen=True, kw_only=True):
    """Where 95 of 100 further runs like this one should find a figure of a level."""

    metric: str
    """A key of the level."""
    mean: float
    """The geometric one of `values`, which is robust against a single one that is far off."""
    low: float
    high: float
    std: float | None
    values: tuple[float, ...]
    """One of each repeat, in the order in which they ran."""


class Level(Record, frozen=True, kw_only=True):
    """So many requests at a time, each with so many tokens before it: all repeats together."""

    max_concurrency: int
    depth: int
    """Tokens in front of the prompt: the request has depth + prompt_tokens."""
    num_prompts: int
    completed: int
    failed: int
    incomplete: int
    """Of `failed`: ended after some of their tokens."""
    errors: tuple[str, ...]
    """What they said, each text once."""
    duration: float
    total_input_tokens: int
    total_output_tokens: int
    cached_tokens: int
    """Of the input: what the chain held already and did not compute."""
    request_throughput: float | None
    output_throughput: float | None
    total_token_throughput: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    """While all requests of a round were decoding; null where they never all were at once."""
    joules_per_token: float | None
    intervals: tuple[Interval, ...]
    input_lens: tuple[int, ...]
    output_lens: tuple[int, ...]
    ttfts: tuple[float, ...]
    itls: tuple[tuple[float, ...], ...]
    mean_ttft_ms: float | None
    median_ttft_ms: float | None
    std_ttft_ms: float | None
    p50_ttft_ms: float | None
    p90_ttft_ms: float | None
    p95_ttft_ms: float | None
    p99_ttft_ms: float | None
    n_ttft: int
    mean_itl_ms: float | None
    median_itl_ms: float | None
    std_itl_ms: float | None
    p50_itl_ms: float | None
    p90_itl_ms: float | None
    p95_itl_ms: float | None
    p99_itl_ms: float | None
    n_itl: int
    mean_tpot_ms: float | None
    median_tpot_ms: float | None
    std_tpot_ms: float | None
    p50_tpot_ms: float | None
    p90_tpot_ms: float | None
    p95_tpot_ms: float | None
    p99_tpot_ms: float | None
    n_tpot: int
    mean_e2el_ms: float | None
    median_e2el_ms: float | None
    std_e2el_ms: float | None
    p50_e2el_ms: float | None
    p90_e2el_ms: float | None
    p95_e2el_ms: float | None
    p99_e2el_ms: float | None
    n_e2el: int

    def spread(self, metric: Literal["ttft", "itl", "tpot", "e2el"]) -> Spread:
        """One latency, in milliseconds."""
        names = (f"{part}_{metric}_ms" for part in ("mean", "std", "p50", "p90", "p95", "p99"))
        return Spread(getattr(self, f"n_{metric}"), *(getattr(self, name) for name in names))

    def interval(self, metric: str) -> Interval | None:
        return next((each for each in self.intervals if each.metric == metric), None)


class GateCheck(Record, frozen=True, kw_only=True):
    """One comparison of greedy tokens."""

    name: Literal["levels", "unsplit"]
    """Between concurrency levels; with the whole model on one node."""
    state: Literal["agree", "differ", "skipped"]
    compared: int
    """How many answers."""
    said: str
    """For a person: what differs first, or why it was skipped."""


class Gate(Record, frozen=True, kw_only=True):
    """Whether the figures are of a chain that computes the right thing."""

    valid: bool
    checks: tuple[GateCheck, ...]


class StageTime(Record, frozen=True, kw_only=True):
    """Where a decode step's time went on one stage."""

    node: str
    layers: tuple[int, int]
    compute_ms_mean: float
    compute_ms_p50: float
    compute_ms_p90: float
    wait_ms_mean: float
    wait_ms_p50: float
    wait_ms_p90: float
    bytes_in_per_step: float
    bytes_out_per_step: float


class HopTime(Record, frozen=True, kw_only=True):
    """The way from a stage to the next, or from the last one back to the first."""

    from_node: str
    to_node: str
    wire_ms_mean: float | None
    """Null where the two have clocks of their own: then only the sum over all hops is known."""
    wire_ms_p50: float | None
    wire_ms_p90: float | None
    bytes_per_step: float


class Timeline(Record, frozen=True, kw_only=True):
    """A token's time, taken apart: computing and waiting on each stage, the rest on the wires.

    The means of the parts add up to the mean of the whole; medians do not.
    """

    max_concurrency: int
    depth: int
    steps: int
    token_ms_mean: float
    token_ms_p50: float
    token_ms_p90: float
    wire_ms_mean: float
    """The sum over all hops."""
    wire_ms_p50: float
    wire_ms_p90: float
    stages: tuple[StageTime, ...]
    hops: tuple[HopTime, ...]
    slowest: int
    """Which stage computes longest."""


class Bench(Record, frozen=True, kw_only=True):
    """The whole file."""

    schema: str = SCHEMA
    version: str
    unix_ms: int
    model: BenchModel
    target: str
    """`chain`, or the API and URL of a server."""
    reason: str | None
    """Why the model ran where it did."""
    machine: str
    """The driver's own."""
    conditions: Conditions
    stages: tuple[BenchStage, ...]
    links: tuple[BenchLink, ...]
    load_ms: float | None
    """From nothing to a chain that answers; null where all stages were there."""
    levels: tuple[Level, ...]
    gate: Gate
    timeline: Timeline | None
    notes: tuple[str, ...]
    """What a reader of the figures has to know."""


class Change(Record, frozen=True, kw_only=True):
    """One figure of two runs. `ratio` is b / a with a 95 % interval; above 1 is more, not always better."""

    max_concurrency: int
    depth: int
    metric: str
    a: float
    b: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    verdict: Literal["same", "better", "worse", "unknown"]


class Comparison(Record, frozen=True, kw_only=True):
    """`exo bench --compare A B --json`."""

    schema: str = COMPARISON_SCHEMA
    a: str
    b: str
    verdict: Literal["same", "better", "worse", "mixed", "unknown"]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    """Conditions that are not equal."""


class LinkFigure(Record, frozen=True, kw_only=True):
    """The way from one node to another, measured through the real transport."""

    from_node: str
    to_node: str
    from_id: str
    to_id: str
    interface: str | None
    kind: InterfaceKind | None
    address: str | None
    rounds: int
    """Those that gave a figure."""
    failed: int
    rtt_us_p50: float | None
    """The median of the rounds' medians; each round has up to a hundred round trips."""
    rtt_us_low: float | None
    """Where another run should find it: 95 %, from one value of each round."""
    rtt_us_high: float | None
    rtt_us_p99: float | None
    """The median of the rounds' p99."""
    bytes_per_s: float | None
    """The median of the rounds."""
    bytes_per_s_low: float | None
    bytes_per_s_high: float | None
    error: str | None
    """Why a round failed, the last one that did."""


class Links(Record, frozen=True, kw_only=True):
    """`exo bench --links --json`."""

    schema: str = LINKS_SCHEMA
    version: str
    unix_ms: int
    links: tuple[LinkFigure, ...]
