"""`exo run`: a model's answer on standard output, or a chat."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exo_cli.commands.options import (
    INSECURE_WARNING,
    DataPortsOption,
    InsecureFlag,
    KvBitsOption,
    NodesOption,
    NumericsOption,
    PeerOption,
    PlanOption,
    kv_bits_of,
    peers,
    port_range,
)
from exo_cli.commands.run_answer import Wanted, begin, prompt_of, show
from exo_cli.commands.session import Session, verb
from exo_cli.errors import UsageProblem

if TYPE_CHECKING:
    from exo_cli.drive.driver import Driver, Settings


def register(app: typer.Typer) -> None:
    app.command("run")(run)


@verb
def run(
    session: Session,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name such as llama-3.2-1b or pocket, a directory, or org/name on the hub.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="What to say; - reads standard input.", show_default=False),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="PATH", help="Take the prompt from a file.")
    ] = None,
    no_stdin: Annotated[
        bool, typer.Option("--no-stdin", help="Leave standard input alone, also if it is a pipe or a file.")
    ] = False,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="The system message: what the model is to be."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it stands, without the chat template.")
    ] = False,
    think: Annotated[
        bool | None,
        typer.Option("--think/--no-think", help="Let the model think first, if it has a switch for it."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=1, metavar="N", help="End after so many tokens.", show_default="4096"
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="End before this text. Repeatable."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            min=0.0,
            metavar="T",
            help="How freely to choose; 0 takes the likeliest each time.",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", min=0.0, max=1.0, metavar="P", help="Only the likeliest tokens that add up to P."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=0, metavar="K", help="Only the K likeliest tokens; 0 for all."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            min=0.0,
            max=1.0,
            metavar="P",
            help="Only tokens at least P times as likely as the likeliest.",
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option("--repetition-penalty", min=0.01, metavar="X", help="Against tokens seen; 1 for none."),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option(
            "--presence-penalty", min=-2.0, max=2.0, metavar="X", help="Once for each token seen; 0 for none."
        ),
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        typer.Option(
            "--frequency-penalty", min=-2.0, max=2.0, metavar="X", help="Each time it was seen; 0 for none."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, max=2**64 - 1, metavar="N", help="The same number, the same answer."),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Say at the end how many tokens there were, and how fast.")
    ] = False,
    plan: PlanOption = None,
    nodes: NodesOption = None,
    peer: PeerOption = None,
    data_ports: DataPortsOption = "0",
    numerics: NumericsOption = None,
    kv_bits: KvBitsOption = None,
    insecure: InsecureFlag = False,
) -> int:
    """Run a model on the cluster, or on this machine alone.

    \b
    Examples:
      exo run pocket "How do I bring up a cluster?"
      git diff | exo run llama-3.2-3b "Write a commit message"
      exo run ./My-Model --prompt-file letter.txt --max-tokens 200 > answer.txt
      exo run llama-3.3-70b               a chat, at a terminal

    MODEL is any model that mlx-lm runs: a name of the catalogue (TAB shows them), pocket, the small one
    that comes with exo, a directory, or a repository of the hub: org/name or org/name@revision.

    What is not on this machine is fetched from the hub into its own cache, whole; HF_TOKEN, HF_ENDPOINT,
    HF_HUB_CACHE and HF_HUB_OFFLINE mean what they always do. Nodes get their share from this machine.

    It uses the nodes that have the model loaded, else those that answer now, else this machine alone,
    and says on standard error what it chose. Where a node is lost, the answer goes on on the others.
    Nodes keep the model for 10 minutes after its last use; `exo unload` frees them at once.

    Where all nodes that are used are CPUs, kernels of our own compute (--numerics fast); a machine's first
    run compiles them. --numerics exact gives mlx-lm's own tokens, and is slow on Linux. A model that the
    kernels do not know is computed exactly, with a word about it.

    Only generated text goes to standard output. Sampling is as the model's generation_config.json
    recommends, unless it is said here.
    """
    from exo_cli import config
    from exo_cli.commands.run_prompt import gather
    from exo_cli.drive.driver import Settings
    from exo_cli.drive.plans import read_plan
    from exo_cli.text.stops import StopStrings

    if plan is not None and nodes is not None:
        raise UsageProblem("--plan says which nodes it is for", hint="Leave --nodes out, or --plan.")
    if raw and (system is not None or think is not None):
        raise UsageProblem(
            "--raw sends the text as it stands; --system, --think and --no-think need the chat template",
            hint="Leave --raw out, or the others.",
        )
    if top_p == 0:
        raise UsageProblem("--top-p 0 leaves no token", hint="Say --temperature 0 for the likeliest one.")
    text = gather(prompt, prompt_file, no_stdin=no_stdin, output=session.output)
    if text is None and raw:
        raise UsageProblem("a chat needs the chat template", hint="Leave --raw out, or give a prompt.")
    if insecure:
        session.output.warning(INSECURE_WARNING)
    wanted = Wanted(
        system=system,
        raw=raw,
        think=think,
        max_tokens=max_tokens,
        stops=tuple(stop or ()),
        stats=stats,
        sampling={
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "seed": seed,
        },
    )
    StopStrings(wanted.stops)  # what is wrong with them is said before anything is loaded
    settings = Settings(
        model=model,
        weights_dir=config.cache_dir() / "weights",
        nodes_dir=config.nodes_dir(),
        topology=session.topology,
        plan=read_plan(plan) if plan is not None else None,
        peers=peers(peer),
        nodes=nodes,
        data_ports=port_range(data_ports, "--data-ports"),
        numerics=numerics,
        kv_bits=kv_bits_of(kv_bits),
    )
    return _run(session, settings, text, wanted, insecure)


def _run(session: Session, settings: "Settings", text: str | None, wanted: Wanted, insecure: bool) -> int:
    import asyncio

    from exo_cli.commands.run_view import Work
    from exo_cli.drive.driver import Driver, Telling
    from exo_cli.trust.keyring import KeyringSource

    work = Work(session.output)
    telling = Telling(
        chosen=work.chosen,
        progress=work.progress,
        downloaded=work.downloaded,
        loaded=work.loaded,
        recovered=work.recovered,
    )

    async def main() -> int:
        async with Driver(settings, KeyringSource(insecure), telling) as driver:
            if text is None:
                from exo_cli.commands.run_chat import chat

                return await chat(session, driver, wanted)
            return await _once(session, driver, text, wanted)

    return asyncio.run(main())


async def _once(session: Session, driver: "Driver", text: str, wanted: Wanted) -> int:
    from exo_cli.drive.chat import one_question

    if wanted.raw:
        prompt = driver.language.plain(text)
    else:
        prompt = prompt_of(session, driver, one_question(text, wanted.system), wanted)
    await show(session, await begin(driver, prompt, wanted), driver, wanted)
    return 0
