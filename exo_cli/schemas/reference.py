"""What exo says about itself under --json: settings, exit codes, help topics, completion scripts.

Types only; `commands` fills them.
"""

from exo_cli.schemas.topology import Record


class Setting(Record, frozen=True, kw_only=True):
    """One option, and what it is set to when no flag is given."""

    name: str
    """As a file names it: `json`, or `discover.for` where it belongs to one verb."""
    value: str | int | float | bool | list[str] | None
    origin: str
    """`default`, the environment variable, or the file and the key in it."""
    flag: str
    env: list[str]


class Settings(Record, frozen=True, kw_only=True):
    """`config show --json`."""

    schema: str = "exo.config/1"
    settings: list[Setting]


class ExitCode(Record, frozen=True, kw_only=True):
    """One row of the table of exit codes."""

    code: int
    name: str
    meaning: str


class ExitCodes(Record, frozen=True, kw_only=True):
    """`help exit-codes --json`."""

    schema: str = "exo.exit-codes/1"
    codes: list[ExitCode]


class Variable(Record, frozen=True, kw_only=True):
    """One environment variable that is read."""

    name: str
    meaning: str


class Environment(Record, frozen=True, kw_only=True):
    """`help environment --json`."""

    schema: str = "exo.environment/1"
    variables: list[Variable]


class Topic(Record, frozen=True, kw_only=True):
    """Something `help` can be asked about."""

    name: str
    summary: str


class Topics(Record, frozen=True, kw_only=True):
    """`help --json`."""

    schema: str = "exo.help/1"
    topics: list[Topic]


class HelpText(Record, frozen=True, kw_only=True):
    """`help VERB --json`."""

    schema: str = "exo.help-text/1"
    topic: str
    text: str


class CompletionScript(Record, frozen=True, kw_only=True):
    """`completion SHELL --json`."""

    schema: str = "exo.completion/1"
    shell: str
    script: str


class VerbSchemas(Record, frozen=True, kw_only=True):
    """The schemas of the lines that one verb may print."""

    name: str
    schemas: list[str]


class Schemas(Record, frozen=True, kw_only=True):
    """`schema --json` without a verb; with one, `schema` prints a JSON Schema."""

    schema: str = "exo.schemas/1"
    verbs: list[VerbSchemas]
