"""JSON schemas whose values are bounded, made from a seed, and whether a value is one of them."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ("name", "age", "größe", "a b", "tags", "x", "is_it", "of-what")
_WORDS = ("red", "green", "é 😀", 'say "hi"', "", "a\nb")


def bounded(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    """An object at the top, of values of any of the kinds below."""
    kinds = ["integer", "string", "enum", "boolean", "null", "const"] + (
        ["object", "array", "anyOf"] if depth < 2 else []
    )
    kind = "object" if depth == 0 else dice.choice(kinds)
    if kind == "object":
        names = dice.sample(_NAMES, dice.randint(0 if depth else 1, 3))
        return {
            "type": "object",
            "properties": {name: bounded(dice, depth + 1) for name in names},
            "required": [name for name in names if dice.random() < 0.7],
            "additionalProperties": False,
        }
    if kind == "array":
        least = dice.randint(0, 2)
        most = least + dice.randint(0, 2)
        return {"type": "array", "items": bounded(dice, depth + 1), "minItems": least, "maxItems": most}
    if kind == "anyOf":
        return {"anyOf": [bounded(dice, depth + 1) for _ in range(2)]}
    if kind == "integer":
        least = dice.randint(-1000, 1000)
        return {"type": "integer", "minimum": least, "maximum": least + dice.randint(0, 500)}
    if kind == "string":
        least = dice.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + dice.randint(0, 8)}
    if kind == "enum":
        return {"enum": dice.sample([*_WORDS, 1, 2.5, True, None], dice.randint(1, 4))}
    return {"const": dice.choice(_WORDS)} if kind == "const" else {"type": kind}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is one of a schema that `bounded` makes."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(type(value) is type(one) and value == one for one in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "object":
            known = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(known)
                and all(fits(one, known[name]) for name, one in value.items())
            )
        case "array":
            right = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
            return right and all(fits(one, schema["items"]) for one in value)
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "boolean":
            return isinstance(value, bool)
    return value is None
