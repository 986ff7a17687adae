"""`exo bench`: how fast a model runs, and whether another run was faster."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from exo_cli.commands.options import (
    INSECURE_WARNING,
    DataPortsOption,
    InsecureFlag,
    InterfaceOption,
    KvBitsOption,
    NodesOption,
    NoInterfaceOption,
    NumericsOption,
    PeerOption,
    PlanOption,
    kv_bits_of,
    numbers,
    peers,
    port_range,
    size_bytes,
)
from exo_cli.commands.session import COMMON_NAMES, Session, verb
from exo_cli.errors import UsageProblem

MAX_SEED = 2**63 - 1
_LOAD = ("prompt_tokens", "gen_tokens", "concurrency", "depth", "repeat", "warmup", "seed")
_NODES = ("plan", "nodes", "peer", "data_ports", "insecure", "kv_bits")
_OWN = ("threads", "memory", "numerics")
_FILES = ("report", "to")
# What each way of calling it takes, besides what says which way it is.
_TAKES: dict[str, tuple[str, ...]] = {
    "MODEL": (*_LOAD, *_NODES, *_OWN, *_FILES),
    "--geometry": ("bits", "group", *_LOAD, *_NODES, *_OWN, *_FILES),
    "--http": ("model", "api", "api_key_file", *_LOAD, *_FILES),
    "--links": ("repeat", "peer", "interface", "no_interface", "insecure", "to"),
    "--compare": ("to",),
}


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


@verb
def bench(
    session: Session,
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name such as llama-3.2-1b or pocket, a directory, or org/name on the hub.",
            show_default=False,
        ),
    ] = "",
    geometry: Annotated[
        str | None,
        typer.Option(
            "--geometry",
            metavar="MODEL",
            help="Random weights at the size of a model: a name of the catalogue, or a config.json.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits", min=2, max=32, metavar="N", help="Bits a weight, with --geometry; else as published."
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            "--group", min=1, metavar="N", help="Weights that share a scale, with --bits.", show_default="64"
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="URL", help="Measure a server instead, like http://127.0.0.1:8080."),
    ] = None,
    api: Annotated[Literal["openai"], typer.Option("--api", help="What the server speaks.")] = "openai",
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="PATH", help="The server's key; else EXO_API_KEY, or none."),
    ] = None,
    links: Annotated[
        bool, typer.Option("--links", help="Measure the ways between the nodes instead, now.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="PATH PATH", help="Two results: is the second one slower? (80)"),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, metavar="N", help="Tokens of each prompt, exactly.")
    ] = 256,
    gen_tokens: Annotated[
        int, typer.Option("--gen-tokens", min=1, metavar="N", help="Tokens of each answer, exactly.")
    ] = 64,
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N,N", help="How many requests at a time, level by level.")
    ] = "1,2,4,8",
    depth: Annotated[
        str | None,
        typer.Option(
            "--depth",
            metavar="N,N",
            help="Tokens that stand before the prompt; all but the least at the lowest concurrency only.",
            show_default="0,4096 where the model is long enough",
        ),
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, max=1000, metavar="N", help="Rounds of each level.")
    ] = 5,
    warmup: Annotated[
        int, typer.Option("--warmup", min=0, max=1000, metavar="N", help="Rounds before those, not counted.")
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, max=MAX_SEED, metavar="N", help="Decides the prompts and the random weights."
        ),
    ] = 0,
    plan: PlanOption = None,
    nodes: NodesOption = None,
    peer: PeerOption = None,
    interface: InterfaceOption = None,
    no_interface: NoInterfaceOption = None,
    data_ports: DataPortsOption = "0",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            envvar="EXO_THREADS",
            min=1,
            max=1024,
            metavar="N",
            help="On this machine's own node, with so many threads.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            envvar="EXO_MEMORY",
            metavar="SIZE",
            help="On this machine's own node, with so much for models, like 24GB or 24GiB.",
        ),
    ] = None,
    numerics: NumericsOption = None,
    kv_bits: KvBitsOption = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="PATH", help="Write it as a page of HTML as well."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PATH", help="Write it as JSON as well.")
    ] = None,
    insecure: InsecureFlag = False,
) -> int:
    """Measure how fast a model runs, and whether it computes the right thing.

    \b
    Examples:
      exo bench pocket
      exo bench --geometry llama-3.3-70b --bits 4 --plan plan.json   before any download
      exo bench llama-3.2-1b --concurrency 1,8 -o before.json --report before.html
      exo bench --compare before.json after.json || echo slower
      exo bench --http http://127.0.0.1:8080 --api openai
      exo bench --links

    Equal requests of exactly --prompt-tokens and --gen-tokens run in rounds, so many at a time; a round
    begins when the last one has ended, and the levels take turns. It runs where `exo run` would run;
    --threads and --memory ask for this machine's own node.

    A figure's interval is where 95 of 100 further runs like this one should find it on a machine that is
    as busy, by the noise between this one's repeats, and never less than 2 % either way. Where the
    intervals of two runs overlap, the runs agree. Decoding is measured while all requests of a round
    decode. At a depth, what stands before the prompt is kept, so that its figures are those of the prompt
    and the answer behind it.

    It computes as `exo run` would, unless --numerics says how; the result names what ran on each stage.

    Greedy tokens must be the same at all levels, and on a split model the same as by the whole model, if
    this machine can run that. Else the figures are marked invalid, and the exit code is 80. Of a server,
    which promises no such thing, a note says so.

    --compare judges every figure by the interval of its ratio; the exit code is 80 if the second run is
    worse in one.
    """
    from exo_cli.bench.load import Load
    from exo_cli.commands import bench_work as work

    mode = _mode(model, {"--geometry": geometry, "--http": http, "--links": links, "--compare": compare})
    _refuse_others(context, mode)
    work.check_places(report, to)
    if compare is not None:
        return work.compare(session, compare, to)
    if insecure:
        session.output.warning(INSECURE_WARNING)
    if links:
        interfaces = tuple(interface or ()), tuple(no_interface or ())
        return work.links(session, interfaces, peers(peer), repeat, insecure, to)
    load = Load(
        prompt_tokens=prompt_tokens,
        gen_tokens=gen_tokens,
        concurrency=numbers(concurrency, "--concurrency", least=1),
        depths=numbers(depth or "0,4096", "--depth", least=0),
        repeat=repeat,
        warmup=warmup,
        seed=seed,
    )
    if http is not None:
        if depth is None:
            load = work.without_depth(load)
        return work.finish(session, work.server(session, http, model, api_key_file, load), report, to)
    own = [f"--{name}" for name in ("threads", "memory") if _said(context, name)]
    others = [f"--{name}" for name in ("plan", "nodes", "peer") if _said(context, name)]
    if own and others:
        raise UsageProblem(
            f"{own[0]} is for this machine's own node, {others[0]} for others",
            hint="Leave one out; what another node may take is said where it is started.",
        )
    if plan is not None and nodes is not None:
        raise UsageProblem("--plan says which nodes it is for", hint="Leave --nodes out, or --plan.")
    where = work.Where(
        plan=plan,
        nodes=nodes,
        peers=peers(peer),
        data_ports=port_range(data_ports, "--data-ports"),
        alone=bool(own),
        threads=threads,
        memory_bytes=None if memory is None else size_bytes(memory, "--memory"),
        numerics=numerics,
        kv_bits=kv_bits_of(kv_bits),
        insecure=insecure,
    )
    wanted = model if geometry is None else work.random(geometry, bits, group, seed)
    made = work.chain(session, wanted, where, load, depth_said=depth is not None)
    return work.finish(session, made, report, to)


def _mode(model: str, flags: dict[str, object]) -> str:
    """Which way it is called."""
    said = [flag for flag, value in flags.items() if value]
    if len(said) > 1:
        raise UsageProblem(f"{said[0]} and {said[1]} are two ways to call it", hint="Leave one out.")
    if model and said and said != ["--http"]:
        raise UsageProblem(f"{said[0]} takes no MODEL beside it", hint=f"Leave '{model}' out, or {said[0]}.")
    if not said and not model:
        raise UsageProblem(
            "there is nothing to measure",
            hint="Name a model, or say --geometry, --http, --links or --compare; exo bench --help shows how.",
        )
    return said[0] if said else "MODEL"


def _refuse_others(context: typer.Context, mode: str) -> None:
    """An option that would do nothing is a mistake."""
    own = mode.lstrip("-").lower()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in {*_TAKES[mode], *COMMON_NAMES, own} and _said(context, name):
            flag = max(parameter.opts, key=len)
            what = "on a model" if mode == "MODEL" else f"with {mode}"
            raise UsageProblem(
                f"{flag} means nothing {what}", hint="exo bench --help says what goes together."
            )


def _said(context: typer.Context, name: str) -> bool:
    """On the command line, not by a variable or a file."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
