"""A validator for the part of JSON Schema that msgspec writes."""

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_KNOWN = {
    *("$ref", "$defs", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum"),
    *("items", "maxItems", "minItems", "prefixItems", "properties", "required", "title", "type"),
}


def problems(
    value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "$"
) -> list[str]:
    """Everything that is wrong with `value`; nothing if it obeys."""
    root = root if root is not None else schema
    unknown = set(schema) - _KNOWN
    if unknown:
        raise ValueError(f"this validator does not know {sorted(unknown)} at {at}")
    found: list[str] = []
    if "$ref" in schema:
        found += problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "anyOf" in schema and all(problems(value, option, root, at) for option in schema["anyOf"]):
        found.append(f"{at} fits none of the alternatives")
    if "const" in schema and value != schema["const"]:
        found.append(f"{at} is {value!r}, not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at} is {value!r}, not one of {schema['enum']}")
    if "type" in schema:
        expected = _TYPES[schema["type"]]
        if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
            return [*found, f"{at} is not of type {schema['type']}"]
    if isinstance(value, dict):
        found += [f"{at}.{key} is missing" for key in schema.get("required", ()) if key not in value]
        for key, inner in value.items():
            rule = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(rule, dict):
                found += problems(inner, rule, root, f"{at}.{key}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{at} has {len(value)} items")
        first = schema.get("prefixItems", [])
        rules = [*first, *[schema.get("items")] * (len(value) - len(first))]
        for number, (inner, rule) in enumerate(zip(value, rules, strict=False)):
            if isinstance(rule, dict):
                found += problems(inner, rule, root, f"{at}[{number}]")
    return found
