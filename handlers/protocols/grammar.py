"""What a text has to match, as requests say it: a JSON schema, a regular expression, some texts; in every form.

Source: OpenAI's API reference, «response_format»; Text Generation Inference's `grammar`; vLLM's `guided_…`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, kind_of, quoted

SCHEMA, REGEX = "json", "regex"
MAX_SCHEMA = 65_536  # characters, as compact JSON
MAX_REGEX = 8_192
MAX_NESTING = 64  # of a schema: lists and objects within each other
# Beyond these a grammar takes seconds to be made, or a token of it tenths of a second.
MAX_REPEATS = 1000
MAX_MULTIPLE = 10_000
_REPEATS = re.compile(r"\{(\d+)(?:,(\d*))?\}")

ANY_OBJECT = json.dumps({"type": "object"})


@dataclass(frozen=True)
class Grammar:
    """kind: SCHEMA or REGEX. text: the schema as JSON, or the regular expression, which the whole text has to match."""

    kind: str
    text: str


def of_schema(value: Any, where: str) -> Grammar:
    """The grammar of a JSON schema.

    Args:
        value: an object, true, or either as JSON text. where: its place in the request, for the message.
    Raises: BadRequest for what is no schema, or too large or nested too deeply.
    """
    if isinstance(value, str):
        if len(value) > MAX_SCHEMA:
            raise BadRequest(f"{where} has {len(value)} characters; at most {MAX_SCHEMA} are allowed")
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{where} is a text that is no JSON; a JSON schema is expected: an object") from error
    if not isinstance(value, dict) and value is not True:
        raise BadRequest(f"{where} is {kind_of(value)}; a JSON schema is expected: an object")
    _check_schema(value, where)
    text = json.dumps(value, separators=(",", ":"))
    if len(text) > MAX_SCHEMA:
        raise BadRequest(f"{where} has {len(text)} characters as JSON; at most {MAX_SCHEMA} are allowed")
    return Grammar(SCHEMA, text)


def of_regex(value: Any, where: str) -> Grammar:
    """The grammar of a regular expression; where: its place in the request. BadRequest for one that is too large."""
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{where} is {kind_of(value)}; a regular expression is expected: a text that is not empty")
    if len(value) > MAX_REGEX:
        raise BadRequest(f"{where} has {len(value)} characters; at most {MAX_REGEX} are allowed")
    if (len(value) - len(value.rstrip("\\"))) % 2:
        raise BadRequest(f"{where} ends in a backslash, behind which nothing stands")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{where} holds a lone surrogate at character {error.start}; send valid Unicode") from error
    _check_regex(value, where)
    return Grammar(REGEX, value)


def of_choices(value: Any, where: str) -> Grammar:
    """The grammar of a list of texts, one of which is written; where: its place in the request. BadRequest."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise BadRequest(f"{where} is {kind_of(value)}; a list of texts is expected, none empty")
    return of_regex("|".join(re.escape(one) for one in value), where)


def of_response_format(value: Any) -> Grammar | None:
    """OpenAI's `response_format`; None for text, which is free. BadRequest says what is wrong with it.

    Whether it is `strict` changes nothing: a schema is always kept.
    """
    where = "'response_format'"
    if value.get("value") is not None:  # as huggingface_hub sends it
        return of_typed(value, where)
    kind = _kind(value, where, ("text", "json_object", "json_schema"))
    if kind != "json_schema":
        _check_keys(value, where, {"type"})
        return None if kind == "text" else Grammar(SCHEMA, ANY_OBJECT)
    _check_keys(value, where, {"type", kind})
    where = "'response_format'.json_schema"
    inner = value.get(kind)
    if not isinstance(inner, dict):
        raise BadRequest(f'{where} is {kind_of(inner)}; an object {{"name": …, "schema": {{…}}}} is expected')
    _check_keys(inner, where, {"name", "schema", "strict", "description"})
    if "schema" not in inner:
        raise BadRequest(f'{where} has no "schema": a JSON schema is expected, an object')
    if not isinstance(inner.get("strict"), bool | None):
        raise BadRequest(
            f"{where}.strict is {kind_of(inner['strict'])}; allowed: true or false, and a schema is always kept"
        )
    return of_schema(inner["schema"], f"{where}.schema")


def of_typed(value: Any, where: str = "'grammar'") -> Grammar:
    """Text Generation Inference's `grammar`: {"type": …, "value": …}. BadRequest says what is wrong with it."""
    kind = _kind(value, where, (SCHEMA, REGEX, "json_schema", "json_object"))
    _check_keys(value, where, {"type", "value"})
    if "value" not in value:
        raise BadRequest(f"{where} has no 'value': a JSON schema or a regular expression, as its 'type' says")
    if kind == REGEX:
        return of_regex(value["value"], f"{where}.value")
    found = value["value"]
    if kind == "json_schema" and isinstance(found, dict) and "schema" in found:  # with its name, as OpenAI has it
        found = found["schema"]
    return of_schema(found, f"{where}.value")


_OBJECT = Parameter(lambda value: isinstance(value, dict), "an object")
_READERS: dict[str, Callable[[Any], Grammar | None]] = {
    "response_format": of_response_format,
    "grammar": of_typed,
    "guided_json": lambda value: of_schema(value, "'guided_json'"),
    "guided_regex": lambda value: of_regex(value, "'guided_regex'"),
    "guided_choice": lambda value: of_choices(value, "'guided_choice'"),
}
HUGGING_FACE: dict[str, Parameter] = {
    "grammar": Parameter(_OBJECT.check, '{"type": "json" or "regex", "value": …}'),
}
# Beyond OpenAI's own, as vLLM calls them. What is in them is told when they are read.
OPENAI: dict[str, Parameter] = {
    "response_format": Parameter(_OBJECT.check, '{"type": "text", "json_object" or "json_schema", …}'),
    "guided_json": Parameter(lambda value: isinstance(value, (dict, str)), "a JSON schema"),
    "guided_regex": Parameter(lambda value: isinstance(value, str), "a regular expression"),
    "guided_choice": Parameter(lambda value: isinstance(value, list), "a list of texts"),
}


def read_grammar(given: Mapping[str, Any]) -> Grammar | None:
    """What the text of a request has to match.

    Args:
        given: checked parameters by the names above.
    Returns: None where it is free.
    Raises: BadRequest where it is said twice, or is no such thing.
    """
    found = {name: grammar for name, read in _READERS.items() if name in given and (grammar := read(given[name]))}
    if len(found) > 1:
        raise BadRequest(f"{quoted(list(found))} each say what the text has to match: send one of them")
    return next(iter(found.values()), None)


def _kind(value: Any, where: str, allowed: tuple[str, ...]) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in allowed:
        shown = json.dumps(kind)[:60] if isinstance(kind, str) else kind_of(kind)
        raise BadRequest(f"{where}.type is {shown}; allowed: {', '.join(allowed)}")
    return kind


def _check_keys(value: Mapping[str, Any], where: str, allowed: set[str]) -> None:
    if unknown := sorted(name for name, one in value.items() if name not in allowed and one is not None):
        raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: {quoted(sorted(allowed))}")


def _check_schema(schema: Any, where: str) -> None:
    """Whether a schema is small enough to be made a grammar. Without recursion, of which a request has the depth."""
    left = [(schema, 1)]
    while left:
        value, depth = left.pop()
        if depth > MAX_NESTING:
            raise BadRequest(f"{where} is nested more than {MAX_NESTING} deep; nest it less")
        if isinstance(value, list):
            left += [(one, depth + 1) for one in value if isinstance(one, (dict, list))]
        elif isinstance(value, dict):
            left += [(one, depth + 1) for one in value.values() if isinstance(one, (dict, list))]
            if isinstance(pattern := value.get("pattern"), str):
                _check_regex(pattern, f"{where}: the pattern")
            if isinstance(names := value.get("patternProperties"), dict):
                for name in names:
                    _check_regex(name, f"{where}: the pattern of a property's name")
            _check_multiple(value.get("multipleOf"), where)


def _check_regex(value: str, where: str) -> None:
    for least, most in _REPEATS.findall(value):
        if any(len(count) > 6 or int(count) > MAX_REPEATS for count in (least, most) if count):
            raise BadRequest(f"{where} repeats something {{{least[:20]}}} times; at most {MAX_REPEATS} are allowed")


def _check_multiple(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    digits = Decimal(str(value)).normalize().as_tuple() if abs(value) < 1e15 else None
    if digits is None or int("".join(map(str, digits.digits)) or 0) > MAX_MULTIPLE:
        raise BadRequest(
            f"{where}: multipleOf is {str(value)[:20]}; its digits, without the point, may be at most {MAX_MULTIPLE}"
        )
