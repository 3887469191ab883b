"""The functions that a chat may call, as OpenAI's clients send them: `tools`, `tool_choice`, `parallel_tool_calls`.

Source: OpenAI's API reference, «Chat completions» and «Function calling».
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, is_bool, kind_of, quoted
from handlers.protocols.grammar import Grammar, of_schema
from handlers.protocols.openai.calls import CallForm, CallReader

MAX_TOOLS = 128
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_CHOICES = ("none", "auto", "required")
_SHAPE = '{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}'
PARAMETERS: dict[str, Parameter] = {
    "tools": Parameter(
        lambda value: isinstance(value, list) and len(value) <= MAX_TOOLS, f"a list of at most {MAX_TOOLS} functions"
    ),
    "tool_choice": Parameter(
        lambda value: isinstance(value, (str, dict)),
        '"none", "auto", "required", or {"type": "function", "function": {"name": …}}',
    ),
    "parallel_tool_calls": Parameter(is_bool, "true or false"),
}


@dataclass(frozen=True)
class Tools:
    """Functions that the model may call, at least one.

    listed: as the chat template gets them. grammar, lead: where a call has to come, what it has to match, and what the
    prompt ends in. reader: tells the calls of the answer.
    """

    listed: list[dict[str, Any]]
    reader: CallReader
    grammar: Grammar | None = None
    lead: str = ""


def read_tools(given: Mapping[str, Any], form: CallForm | None) -> Tools | None:
    """The functions that the model may call; None where there are none, or it is told to call none.

    Args:
        given: checked parameters by the names above. form: how the model writes calls, None where its chat template does
            not mention tools.
    Raises: BadRequest saying what is wrong with them, or that this model has no way to call them.
    """
    choice = given.get("tool_choice", "auto")
    if not given.get("tools"):
        if choice not in ("none", "auto"):
            raise BadRequest("'tool_choice' asks for a call and there are no 'tools': send them, or leave it out")
        return None
    if form is None:
        raise BadRequest("this model's chat template does not mention tools: leave 'tools' out")
    listed = [_tool(value, f"tools[{index}]") for index, value in enumerate(given["tools"])]
    schemas = {one["function"]["name"]: _arguments(one["function"]) for one in listed}
    if len(schemas) < len(listed):
        raise BadRequest("'tools' has two functions of one name; name each differently")
    grammars = {name: of_schema(schema, f"the parameters of the function {name!r}") for name, schema in schemas.items()}
    if choice == "none":
        return None
    forced = _forced(choice, schemas)
    reader = CallReader(form, frozenset(schemas), forced, given.get("parallel_tool_calls", True))
    if forced is None:
        return Tools(listed, reader)
    if forced:
        return Tools(listed, reader, grammars[forced], form.opening(forced))
    return Tools(listed, reader, of_schema(_one_of(schemas, form.key), "'tools'"), form.lead)


def _forced(choice: Any, schemas: Mapping[str, Any]) -> str | None:
    """See `CallReader`."""
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise BadRequest(
                f"'tool_choice' is {json.dumps(choice)[:60]}; allowed: {PARAMETERS['tool_choice'].allowed}"
            )
        return None if choice == "auto" else ""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if choice.get("type") != "function" or not isinstance(name, str) or set(choice) != {"type", "function"}:
        raise BadRequest(f"'tool_choice' is an object of another form; allowed: {PARAMETERS['tool_choice'].allowed}")
    if name not in schemas:
        raise BadRequest(f"'tool_choice' names {name[:64]!r}, which is no function of 'tools': {quoted(list(schemas))}")
    return name


def _tool(value: Any, where: str) -> dict[str, Any]:
    """As it was sent, without what was not set."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type") != "function":
        raise BadRequest(f"{where} is no function; allowed: {_SHAPE}")
    found = {name: one for name, one in function.items() if one is not None}
    if unknown := sorted({*value} - {"type", "function"}) + sorted(
        {*found} - {"name", "description", "parameters", "strict"}
    ):
        raise BadRequest(f"{where} has the unknown key {quoted(unknown)}; allowed: {_SHAPE}")
    name = found.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = json.dumps(name)[:60] if isinstance(name, str) else kind_of(name)
        raise BadRequest(f"{where}.function.name is {shown}; allowed: up to 64 letters, digits, _, . and -")
    for key, kind, allowed in (("description", str, "a text"), ("strict", bool, "true or false")):
        if not isinstance(found.get(key, kind()), kind):
            raise BadRequest(f"{where}.function.{key} is {kind_of(found[key])}; allowed: {allowed}")
    parameters = found.get("parameters", {})
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise BadRequest(f"{where}.function.parameters is no JSON schema of an object; its 'type' has to be \"object\"")
    return {"type": "function", "function": found}


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments; of one without parameters, of an object without keys."""
    parameters = function.get("parameters") or {"properties": {}, "additionalProperties": False}
    return {**parameters, "type": "object"}


def _one_of(schemas: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The schema of a call of any of these functions."""
    calls, definitions = [], {}
    for index, (name, schema) in enumerate(schemas.items()):
        definitions[f"f{index}"] = _moved(schema, f"#/$defs/f{index}")
        properties = {"name": {"const": name}, key: {"$ref": f"#/$defs/f{index}"}}
        calls.append(
            {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        )
    return {"anyOf": calls, "$defs": definitions}


def _moved(value: Any, to: str) -> Any:
    """A schema whose references to its own parts still hold where it stands within another one. It is not nested deeply."""
    if isinstance(value, list):
        return [_moved(one, to) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: to + one[1:] if name == "$ref" and isinstance(one, str) and one.startswith("#") else _moved(one, to)
        for name, one in value.items()
    }
