"""`exo help`: the verbs, the table of exit codes, the environment variables.

The table of exit codes is `errors.MEANINGS`; the variables are the options' own and the few fixed
ones below. Knows nothing of man pages, which are made from the same two.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from exo_cli.commands.session import Session, verb
from exo_cli.commands.usage import did_you_mean
from exo_cli.errors import MEANINGS, UsageProblem

if TYPE_CHECKING:
    from exo_cli.commands.tree import Verb

TOPICS = {
    "environment": "the environment variables that exo reads",
    "exit-codes": "what the exit codes mean",
}
FIXED_VARIABLES = {
    "COLUMNS": "how wide tables and pictures are drawn where standard output is no terminal",
    "EXO_API_KEY": "the key that exo bench --http shows the server",
    "EXO_DIAGNOSE_FROM": "for trials: a capture that serve-shard, without a cluster key, gives as its own",
    "EXO_MODELS": "folders, with a colon between them, below which models of other programs lie",
    "EXO_DEBUG": "when set to 1, an error prints where it happened",
    "FORCE_COLOR": "when set, colours are used also where standard output is no terminal",
    "GRPC_VERBOSITY": "what gRPC itself writes to standard error (nothing, unless set)",
    "HF_ENDPOINT": "the hub to fetch models from (https://huggingface.co)",
    "HF_HOME": "where the hub's library keeps its files; its cache of models is hub in there",
    "HF_HUB_CACHE": "the hub's cache of models (~/.cache/huggingface/hub)",
    "HF_HUB_OFFLINE": "when set to 1, nothing is fetched from the hub",
    "HF_TOKEN": "who you are to the hub, for models that it gives to some only",
    "HOME": "where .config, .local/state and .cache are looked for",
    "HUGGINGFACE_HUB_CACHE": "the older name of HF_HUB_CACHE",
    "NO_COLOR": "when set, no colours are used unless --color always is given",
    "TERM": "when it is dumb, nothing is drawn, coloured or moved",
    "XDG_CACHE_HOME": "where caches are kept, in exo (~/.cache)",
    "XDG_CONFIG_HOME": "where the settings and the cluster's key are kept, in exo (~/.config)",
    "XDG_STATE_HOME": "where the topology and the nodes' identities are kept, in exo (~/.local/state)",
}


def register(app: typer.Typer) -> None:
    @app.command("help")
    @verb
    def help_(
        session: Session,
        words: Annotated[
            list[str] | None,
            typer.Argument(metavar="TOPIC", help="A verb, exit-codes or environment.", show_default=False),
        ] = None,
    ) -> None:
        """Say more about a verb or a topic.

        \b
        Examples:
          exo help exit-codes
          exo help discover

        Without one, the list of topics.
        """
        from exo_cli.commands.tree import tree

        command = typer.main.get_command(app)
        topic = " ".join(words or ())
        if not topic:
            _list_topics(session, tree(command))
        elif topic == "exit-codes":
            _exit_codes(session)
        elif topic == "environment":
            _environment(session, tree(command))
        else:
            _verb_help(session, command, words or [])


def environment(root: "Verb") -> list[tuple[str, str]]:
    """Every variable that is read and what it does, by name."""
    meanings = dict(FIXED_VARIABLES)
    leaves = list(root.leaves())
    for leaf in leaves:
        for option in leaf.options:
            for variable in option.env:
                users = [other for other in leaves if any(variable in item.env for item in other.options)]
                whose = "every verb" if len(users) == len(leaves) else ", ".join(user.name for user in users)
                flag = max(option.flags, key=len)
                meanings[variable] = f"{flag} of {whose}: {option.help}".rstrip(".")
    return sorted(meanings.items())


def _list_topics(session: Session, root: "Verb") -> None:
    verbs = {item.name: item.summary.rstrip(".") for item in root.leaves()}
    topics = {**verbs, **TOPICS}
    if session.output.json:
        from exo_cli.schemas.reference import Topic, Topics

        session.output.struct(
            Topics(topics=[Topic(name=name, summary=text) for name, text in topics.items()])
        )
    else:
        session.output.rows(("topic", "about"), list(topics.items()))
        session.output.hint("exo help TOPIC says more.")


def _exit_codes(session: Session) -> None:
    if session.output.json:
        from exo_cli.schemas.reference import ExitCode, ExitCodes

        codes = [ExitCode(code=int(it), name=_name(it.name), meaning=text) for it, text in MEANINGS.items()]
        session.output.struct(ExitCodes(codes=codes))
    else:
        rows = [(str(int(code)), _name(code.name), meaning) for code, meaning in MEANINGS.items()]
        session.output.rows(("code", "name", "meaning"), rows)


def _name(name: str) -> str:
    return name.lower().replace("_", "-")


def _environment(session: Session, root: "Verb") -> None:
    variables = environment(root)
    if session.output.json:
        from exo_cli.schemas.reference import Environment, Variable

        listed = [Variable(name=name, meaning=meaning) for name, meaning in variables]
        session.output.struct(Environment(variables=listed))
    else:
        session.output.rows(("variable", "meaning"), variables)


def _verb_help(session: Session, command: Any, words: list[str]) -> None:
    context = typer.Context(command, info_name="exo", **command.context_settings)
    for word in words:
        names = command.list_commands(context) if hasattr(command, "list_commands") else []
        if word not in names:
            known = [*names, *TOPICS] if command is context.find_root().command else names
            raise UsageProblem(
                f"there is no help on '{' '.join(words)}'{did_you_mean(word, known)}",
                hint="exo help lists the topics.",
            )
        command = command.get_command(context, word)
        context = typer.Context(command, parent=context, info_name=word)
    text = context.get_help()
    if session.output.json:
        from exo_cli.schemas.reference import HelpText

        session.output.struct(HelpText(topic=" ".join(words), text=text))
    else:
        session.output.line(text)
