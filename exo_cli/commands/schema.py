"""`exo schema`: JSON Schemas of what the verbs print under --json. The structs are in `schemas`."""

from typing import Annotated

import typer

from exo_cli.commands.session import Session, verb
from exo_cli.commands.usage import did_you_mean
from exo_cli.errors import UsageProblem


def register(app: typer.Typer) -> None:
    @app.command("schema")
    @verb
    def schema(
        session: Session,
        words: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="VERB", help="A verb, topology.json, plan.json or error.", show_default=False
            ),
        ] = None,
    ) -> None:
        """Print the JSON Schema of a verb's --json output.

        \b
        Examples:
          exo schema discover
          exo schema error

        Without a verb, the list of them. Within a schema's version keys are only ever added, and a key
        without a value is null.
        """
        import json

        from exo_cli.schemas import registry
        from exo_cli.schemas.reference import Schemas, VerbSchemas

        if words:
            name = " ".join(words)
            if name not in registry.names():
                raise UsageProblem(
                    f"there is no schema for '{name}'{did_you_mean(name, registry.names())}",
                    hint="exo schema lists them.",
                )
            document = registry.json_schema(name)
            session.output.json_line(json.dumps(document, indent=None if session.output.json else 2))
            return
        listed = [
            VerbSchemas(
                name=name, schemas=sorted({registry.schema_name(it) or "" for it in registry.structs(name)})
            )
            for name in registry.names()
        ]
        if session.output.json:
            session.output.struct(Schemas(verbs=listed))
        else:
            session.output.rows(("verb", "schemas"), [(item.name, " ".join(item.schemas)) for item in listed])
