"""What may a value be? Its JSON schema in a few words: type, bounds and choices."""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["in_words"]

_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
_SCALAR = ["boolean", "integer", "number", "string"]


def in_words(schema: Mapping[str, Any], *, code: Callable[[str], str], named: Callable[[str], str]) -> str:
    """A schema for a person, where a scalar is a number, a string, true or false.

    Args:
        code: marks a value.
        named: marks the name of a schema that is told of elsewhere.
    """

    def words(one: Mapping[str, Any]) -> str:
        return in_words(one, code=code, named=named)

    if "anyOf" in schema or "oneOf" in schema:
        kinds = [words(one) for one in schema.get("anyOf") or schema["oneOf"]]
        return " or ".join(["scalar", *kinds[4:]] if kinds[:4] == _SCALAR else kinds)
    if "$ref" in schema:
        return named(str(schema["$ref"]).rpartition("/")[2])
    for key, said in (("items", "list of"), ("additionalProperties", "mapping to")):
        if isinstance(schema.get(key), Mapping) and schema[key]:
            return f"{said} {words(schema[key])}"
    if "enum" in schema or "const" in schema:
        return ", ".join(code(str(one)) for one in schema.get("enum", [schema.get("const")]))
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return " ".join([str(schema.get("type", "any")), *bounds])
