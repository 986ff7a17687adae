"""Which structs each verb prints under --json, in one place, and their JSON Schemas.

Every line is either a whole file (the struct has a `schema` field) or an event (`schema` is a class
variable that `events.line` writes first). All keys are always there, null rather than absent, so
all are required. Knows nothing of the verbs' options, nor whether a verb exists.
"""

from importlib import import_module
from typing import Any, get_args, get_type_hints

import msgspec

from exo_cli.schemas.events import Event

# What no verb prints as such, and all may meet.
_SHARED: dict[str, tuple[str, ...]] = {
    "error": ("events:ErrorLine",),
    "plan.json": ("plan:Plan",),
    "topology.json": ("topology:Topology",),
}
# Struct names as module:name, so that asking for one verb does not import the others.
_PRINTED: dict[str, tuple[str, ...]] = {
    "bench": ("bench:Bench", "bench:Comparison", "bench:Links"),
    "completion": ("reference:CompletionScript",),
    "config show": ("reference:Settings",),
    "discover": ("topology:Topology", "events:TopologyLine", "events:NodeLine", "findings:Explanation"),
    "fetch": (
        "fetch:FetchForecast",
        "fetch:FetchProgress",
        "fetch:FetchNote",
        "fetch:Fetched",
        "fetch:ModelHere",
        "fetch:FileChecked",
        "fetch:ModelRemoved",
        "fetch:ModelExported",
    ),
    "help": ("reference:Topics", "reference:HelpText", "reference:ExitCodes", "reference:Environment"),
    "key export": ("key:KeyExported",),
    "key join": ("key:KeyChanged",),
    "key new": ("key:KeyChanged",),
    "key rotate": ("key:KeyChanged",),
    "key show": ("key:KeyShown",),
    "plan": (
        "plan:Plan",
        "planning:PlanDiff",
        "planning:Suggestions",
        "planning:PlanLine",
        "planning:NoPlanLine",
    ),
    "ps": ("running:Running",),
    "rdma-check": ("doctor:RdmaCheck",),
    "run": ("events:TokenLine", "events:RunSummary"),
    "schema": ("reference:Schemas",),
    "serve-shard": ("events:ReadyLine", "events:StoppedLine"),
    "unload": ("running:Unloaded",),
}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def names() -> list[str]:
    """Every verb with a documented output, then the two files, and `error`: what a failure prints."""
    return [*sorted(_PRINTED), *sorted(_SHARED)]


def verbs() -> list[str]:
    return sorted(_PRINTED)


def structs(name: str) -> tuple[type[msgspec.Struct], ...]:
    """What that verb may print on a line."""
    return tuple(_struct(entry) for entry in {**_PRINTED, **_SHARED}[name])


def schema_name(struct: type[msgspec.Struct]) -> str | None:
    """The value of the `schema` key: `exo.topology/1`; None for a record inside another."""
    if issubclass(struct, Event):
        return struct.schema
    for field in msgspec.structs.fields(struct):
        if field.name == "schema":
            return str(field.default)
    return None


def json_schema(name: str) -> dict[str, Any]:
    """A JSON Schema of each line that verb prints."""
    printed = structs(name)
    schemas, definitions = msgspec.json.schema_components(printed, ref_template="#/$defs/{name}")
    for inner in definitions.values():
        _require_all(inner)
    for struct in printed:
        _say_schema(definitions[struct.__name__], struct)
    title = {"error": "exo, when it fails, on standard error"}.get(name, name)
    if name in _PRINTED:
        title = f"exo {name} --json"
    body = dict(schemas[0]) if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"$schema": _DIALECT, "title": title, **body, "$defs": dict(sorted(definitions.items()))}


def nested(struct: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """The struct and every struct inside it, each once, outermost first."""
    found: list[type[msgspec.Struct]] = []

    def visit(hint: Any) -> None:
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint not in found:
            found.append(hint)
            for field in msgspec.structs.fields(hint):
                visit(get_type_hints(hint)[field.name])
        for inner in get_args(hint):
            visit(inner)

    visit(struct)
    return found


def _struct(entry: str) -> type[msgspec.Struct]:
    module, _, name = entry.partition(":")
    found: type[msgspec.Struct] = getattr(import_module(f"exo_cli.schemas.{module}"), name)
    return found


def _require_all(schema: dict[str, Any]) -> None:
    if "properties" in schema:
        schema["required"] = list(schema["properties"])
        for inner in schema["properties"].values():
            inner.pop("default", None)


def _say_schema(schema: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    schema["properties"] = {"schema": {"const": schema_name(struct)}, **_without_schema(schema["properties"])}
    schema["required"] = list(schema["properties"])


def _without_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in properties.items() if key != "schema"}
