import json
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
import typer

from exo_cli.cli import app, run
from exo_cli.commands.tree import tree
from exo_cli.schemas import registry
from exo_cli.schemas.events import ErrorLine, Event, line
from tests.support.jsonschema import problems


def example(hint: Any) -> Any:
    """A value of that type with everything in it filled in."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return parts[0]
    if origin is tuple:
        return tuple(example(part) for part in parts if part is not ...)
    if origin is list:
        return [example(parts[0])]
    if origin is dict:
        return {example(parts[0]): example(parts[1])}
    if parts:
        return example(parts[0])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        hints = get_type_hints(hint)
        return hint(**{field.name: filled(field, hints) for field in msgspec.structs.fields(hint)})
    return {str: "text", int: 7, float: 1.5, bool: True}[hint]


def filled(field: Any, hints: dict[str, Any]) -> Any:
    return field.default if field.name == "schema" else example(hints[field.name])


def printed(struct: type[msgspec.Struct]) -> dict[str, Any]:
    value = example(struct)
    text = line(value) if isinstance(value, Event) else msgspec.json.encode(value).decode()
    document: dict[str, Any] = json.loads(text)
    return document


@pytest.mark.parametrize("name", registry.names())
def test_what_is_printed_obeys_its_schema_and_every_key_is_required(name: str) -> None:
    schema = registry.json_schema(name)
    for struct in registry.structs(name):
        document = printed(struct)
        assert next(iter(document)) == "schema"
        assert problems(document, schema) == []
        for key in document:
            without = {other: value for other, value in document.items() if other != key}
            assert problems(without, schema), f"{struct.__name__} without {key} is accepted"
        assert problems({**document, "schema": "exo.other/9"}, schema)
        assert problems({**document, "a_later_key": 1}, schema) == []


def test_every_verb_has_a_schema_and_every_schema_a_verb() -> None:
    verbs = {leaf.name for leaf in tree(typer.main.get_command(app)).leaves()}
    assert verbs == set(registry.verbs())


def test_one_schema_means_one_thing() -> None:
    by_key: dict[tuple[str | None, Any], str] = {}
    for name in registry.names():
        for struct in registry.structs(name):
            key = (registry.schema_name(struct), struct.__struct_config__.tag)
            assert by_key.setdefault(key, struct.__name__) == struct.__name__


def test_schema_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "discover"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["title"] == "exo discover --json"
    assert document["$schema"].startswith("https://json-schema.org/")
    assert document["$defs"]["Topology"]["required"] == ["schema", "generation", "nodes", "links"]


def test_schema_of_an_error_fits_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "nonsense", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)
    assert problems(error, registry.json_schema("error")) == []
    assert list(error) == list(printed(ErrorLine))


def test_the_list_names_every_verb_and_both_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    names = [row.split("\t")[0] for row in capsys.readouterr().out.splitlines()[1:]]
    assert names == registry.names()
    assert {"topology.json", "plan.json", "error"} <= set(names)
    assert run(["schema", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert problems(document, registry.json_schema("schema")) == []
    assert [item["name"] for item in document["verbs"]] == names


def test_an_unknown_name_is_a_usage_error_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "topology"]) == 2
    assert "did you mean 'topology.json'?" in capsys.readouterr().err


def test_a_verb_of_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "config", "show", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out)["title"] == "exo config show --json"


def test_the_validator_finds_what_is_wrong() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"anyOf": [{"type": "integer"}]}}}
    assert problems({"a": 1}, schema) == []
    assert problems({}, schema)
    assert problems({"a": "1"}, schema)
    assert problems({"a": True}, schema)
    with pytest.raises(ValueError, match="pattern"):
        problems("", {"pattern": "x"})
